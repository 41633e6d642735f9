"""Streams between nodes for the protocols of providers, beside the links of migrations."""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

from attrs import define, field
from novacron_dwcp import LinkBroken, ProtocolError
from novacron_dwcp.driver import read_frame
from novacron_dwcp.link import CHANNEL_BYTES_MAX, Frame, Kind

from novacron.errors import Conflict, TransportError
from novacron.hookspecs.security import SecureStream

log = logging.getLogger("novacron.channels")

PROTOCOL: Final = re.compile(rf"[a-z0-9][a-z0-9./-]{{0,{CHANNEL_BYTES_MAX - 1}}}")
OPEN_TIMEOUT_S: Final = 10.0
CHANNELS_PER_PEER_MAX: Final = 8
Handler = Callable[[SecureStream], None]


@define(eq=False)
class PeerChannels:
    """A node's `Channels`.

    Args:
        dial: A secured and admitted stream to a peer, at an address if one is given.
    """

    dial: Callable[[str, str], SecureStream]
    _handlers: dict[str, Handler] = field(factory=dict, init=False)
    _served: set[SecureStream] = field(factory=set, init=False)
    _counts: Counter[tuple[str, str]] = field(factory=Counter, init=False)
    _closed: bool = field(default=False, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def open(self, peer: str, protocol: str, address: str = "") -> SecureStream:
        if not PROTOCOL.fullmatch(protocol):
            raise ValueError(f"{protocol!r} is no name of a protocol (use {PROTOCOL.pattern})")
        asked = Frame(Kind.CHANNEL, 0, protocol.encode())
        stream = self.dial(peer, address)
        watchdog = threading.Timer(OPEN_TIMEOUT_S, stream.close)
        watchdog.start()
        try:
            stream.send([asked.head(), asked.payload])
            answer = read_frame(stream)
            if answer is None or answer.kind is not Kind.CHANNEL or answer.payload != asked.payload:
                raise LinkBroken("it ended the stream")
        except (LinkBroken, ProtocolError) as error:
            stream.close()
            raise TransportError(
                f"{peer} opens no channel for {protocol}: {error}",
                hint="does its configuration choose the same consensus provider?",
            ) from error
        finally:
            watchdog.cancel()
        return stream

    def serve(self, protocol: str, handler: Handler) -> None:
        if not PROTOCOL.fullmatch(protocol):
            raise ValueError(f"{protocol!r} is no name of a protocol (use {PROTOCOL.pattern})")
        if self._handlers.setdefault(protocol, handler) is not handler:
            raise Conflict(f"two providers of this node serve the protocol {protocol!r}")

    def run(self, protocol: str, stream: SecureStream) -> None:
        """Serve a stream that a peer has opened, until its handler is done with it."""
        key = (stream.peer.node, protocol)
        with self._lock:
            handler = self._handlers.get(protocol)
            if handler is None or self._closed:
                raise ProtocolError(f"{key[0]} wants a channel for {protocol!r}, not served here")
            if self._counts[key] >= CHANNELS_PER_PEER_MAX:
                raise ProtocolError(f"{key[0]} has too many channels for {protocol}")
            self._counts[key] += 1
            self._served.add(stream)
        try:
            granted = Frame(Kind.CHANNEL, 0, protocol.encode())
            stream.send([granted.head(), granted.payload])
            handler(stream)
        except (LinkBroken, ProtocolError):
            raise
        # The boundary of a provider: its fault ends its stream, and is seen.
        except Exception:
            log.exception("a channel of %s with %s failed", protocol, key[0])
        finally:
            with self._lock:
                self._counts[key] -= 1
                self._served.discard(stream)

    def close(self) -> None:
        """Serve no more, and end what is served."""
        with self._lock:
            self._closed, streams = True, list(self._served)
        for stream in streams:
            stream.close()
