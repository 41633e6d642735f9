"""The side that is dialled: strangers' streams are secured, greeted and given to their links."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from attrs import define, field

from novacron_dwcp.driver import Link, read_frame
from novacron_dwcp.link import VERSION, Frame, Greeting, Kind, parse_greeting
from novacron_dwcp.values import ByteStream, LinkBroken, ProtocolError

log = logging.getLogger("novacron.link")

GREETING_TIMEOUT_S: Final = 10.0
STREAMS_GREETING_MAX: Final = 64
LINKS_MAX: Final = 1024

Raw = TypeVar("Raw", bound="Closes")


class Closes(Protocol):
    def close(self) -> None: ...


@define(eq=False)
class Acceptor(Generic[Raw]):
    """Takes streams until `accept` fails. Its threads are daemons.

    Args:
        accept: Waits for the next stream; raises LinkBroken once nobody listens any more.
        secure: The stream secured and its peer's name; raises LinkBroken if it is not trusted.
        make_link: A link that has not begun, for a greeting that belongs to none, and its peer.
        run_channel: Uses a secured stream for what its first frame names, until that is over; the
            stream is closed when it returns. Raises ProtocolError if nothing is served by that
            name.
        newest: The newest version of the protocol that is spoken here.
    """

    accept: Callable[[], Raw]
    secure: Callable[[Raw], tuple[ByteStream, str]]
    make_link: Callable[[Greeting, str], Link]
    run_channel: Callable[[str, ByteStream, str], None] | None = None
    newest: int = VERSION
    _links: dict[bytes, tuple[Link, str]] = field(factory=dict, init=False)
    _attaching: threading.Lock = field(factory=threading.Lock, init=False)
    _greeting: threading.Semaphore = field(
        factory=lambda: threading.Semaphore(STREAMS_GREETING_MAX), init=False
    )

    def start(self) -> None:
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def __iter__(self) -> Iterator[Link]:
        return iter([link for link, _ in list(self._links.values())])

    def _accept(self) -> None:
        while True:
            try:
                stream = self.accept()
            except LinkBroken:
                return
            if not self._greeting.acquire(blocking=False):
                stream.close()  # a flood of strangers must not take all threads
                continue
            threading.Thread(target=self._greet, args=(stream,), name="greet", daemon=True).start()

    def _greet(self, stream: Raw) -> None:
        try:
            try:
                secured, peer, first = self._first_frame(stream)
            finally:
                self._greeting.release()
            if first.kind is Kind.CHANNEL:
                self._channel(secured, peer, first)
                return
            try:
                self._attach(secured, peer, parse_greeting(first.payload, self.newest))
            except (LinkBroken, ProtocolError):
                secured.close()
                raise
        except (LinkBroken, ProtocolError) as error:
            where = getattr(stream, "peer_address", "somewhere")
            log.warning("a stream from %s was closed: %s", where, error)

    def _first_frame(self, stream: Raw) -> tuple[ByteStream, str, Frame]:
        secured, peer = self.secure(stream)
        watchdog = threading.Timer(GREETING_TIMEOUT_S, secured.close)
        watchdog.start()
        try:
            frame = read_frame(secured)
            if frame is None or frame.kind not in (Kind.HELLO, Kind.CHANNEL):
                raise ProtocolError("a stream that does not begin with a greeting")
            return secured, peer, frame
        except (LinkBroken, ProtocolError):
            secured.close()
            raise
        finally:
            watchdog.cancel()

    def _channel(self, stream: ByteStream, peer: str, first: Frame) -> None:
        try:
            name = bytes(first.payload).decode("ascii", "replace")
            if self.run_channel is None:
                raise ProtocolError(f"a channel for {name!r}, and none are served here")
            self.run_channel(name, stream, peer)
        finally:
            stream.close()

    def _attach(self, stream: ByteStream, peer: str, hello: Greeting) -> None:
        with self._attaching:  # two streams of one new link must not make two of it
            self._links = {key: pair for key, pair in self._links.items() if not pair[0].closed}
            link, owner = self._links.get(hello.link, (None, peer))
            if link is None or owner != peer:
                if len(self._links) >= LINKS_MAX:
                    raise ProtocolError(f"more than {LINKS_MAX} links at a time")
                link = self.make_link(hello, peer)
                self._links[hello.link] = (link, peer)
                link.start_accepted(stream, hello)
                return
        link.attach(stream, hello)
