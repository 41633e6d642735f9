"""Requests to a member that can serve them: from other members, and from nodes that are none.

A stream carries requests one way and answers the other, many under way at a time, in any order.
Both are MessagePack in the frames of `peers`.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from typing import Final, Literal

import msgspec
from attrs import define, field, frozen

from novacron_agreement.effects import COMMAND_BYTES_MAX, NAME_CHARS_MAX, Reason
from novacron_agreement.peers import ByteStream, FrameError, Outbox, frames

log = logging.getLogger("novacron.agreement.forwarding")

REQUEST_BYTES_MAX: Final = COMMAND_BYTES_MAX + 1024
ANSWER_BYTES_MAX: Final = 16 << 20
# One stream has at most so many requests under way; more are told to come again.
UNDER_WAY_MAX: Final = 1024
NUMBER_MAX: Final = 2**63 - 1


@frozen
class Outcome:
    """What became of a request.

    Attributes:
        reason: "" if it was done, else one of `Reason`.
        answer: What was answered; of a request that was refused, why, as text.
        leader: Who might serve it.
    """

    reason: str = ""
    answer: bytes = b""
    leader: str | None = None


Kind = Literal["propose", "query", "manage"]


class Request(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``propose`` a command to the log, ``query`` the state machine, or ``manage`` the cluster."""

    number: int
    kind: Kind
    command: bytes = b""


class _Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    number: int
    reason: str
    answer: bytes
    leader: str | None


_encode: Final = msgspec.msgpack.Encoder().encode
_requests: Final = msgspec.msgpack.Decoder(Request)
_answers: Final = msgspec.msgpack.Decoder(_Answer)

Settle = Callable[[Outcome], None]


def decode_request(data: bytes) -> Request:
    """Raises: FrameError for anything but a sound request."""
    try:
        request = _requests.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FrameError(f"no request: {error}") from None
    if not 0 <= request.number <= NUMBER_MAX or len(request.command) > COMMAND_BYTES_MAX:
        raise FrameError("a request with impossible values")
    return request


def decode_answer(data: bytes) -> tuple[int, Outcome]:
    """The request's number and its outcome. Raises: FrameError for anything else."""
    try:
        found = _answers.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FrameError(f"no answer: {error}") from None
    if found.leader is not None and len(found.leader) > NAME_CHARS_MAX:
        raise FrameError("an answer with impossible values")
    return found.number, Outcome(found.reason, found.answer, found.leader)


def serve(stream: ByteStream, submit: Callable[[Kind, bytes, Settle], None]) -> None:
    """Serve requests that come over a stream, until it ends.

    Args:
        submit: Takes a request's kind, its command, and what to call, once, from any thread.
    """
    outbox = Outbox()
    under_way = 0
    lock = threading.Lock()

    def write() -> None:
        try:
            while batch := outbox.take():
                stream.send(batch)
        # Who asked will ask elsewhere; the reader below sees the end of the stream.
        except Exception:
            stream.close()

    def answer(number: int, outcome: Outcome) -> None:
        outbox.put(_encode(_Answer(number, outcome.reason, outcome.answer, outcome.leader)))

    def one(number: int) -> Settle:
        def settle(outcome: Outcome) -> None:
            nonlocal under_way
            with lock:
                under_way -= 1
            answer(number, outcome)

        return settle

    threading.Thread(target=write, name="answers", daemon=True).start()
    try:
        for data in frames(stream, REQUEST_BYTES_MAX):
            request = decode_request(data)
            with lock:
                busy = under_way >= UNDER_WAY_MAX
                under_way += not busy
            if busy:
                answer(request.number, Outcome(Reason.BUSY))
            else:
                submit(request.kind, request.command, one(request.number))
    finally:
        outbox.end()


@define(eq=False)
class Remote:
    """Requests to one member over one stream, from any thread.

    Args:
        stream: To it, open. When it breaks, `broken` is set, every request under way gets
            `Reason.UNCERTAIN`, and so does each later one.
    """

    stream: ByteStream
    broken: threading.Event = field(factory=threading.Event, init=False)
    _outbox: Outbox = field(factory=Outbox, init=False)
    _waiting: dict[int, Settle] = field(factory=dict, init=False)
    _numbers: itertools.count[int] = field(factory=itertools.count, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        for work in (self._write, self._read):
            threading.Thread(target=work, name="requests", daemon=True).start()

    def ask(self, kind: Kind, command: bytes, settle: Settle) -> None:
        """Send a request; ``settle`` is called once, in a thread of this object's."""
        with self._lock:
            number = next(self._numbers)
            broken = self.broken.is_set()
            if not broken:
                self._waiting[number] = settle
        if broken:
            settle(Outcome(Reason.UNCERTAIN))
            return
        self._outbox.put(_encode(Request(number, kind, command)))

    def close(self) -> None:
        self.stream.close()
        self._end()

    def _write(self) -> None:
        try:
            while batch := self._outbox.take():
                self.stream.send(batch)
        # Whatever broke the stream: those that wait are told.
        except Exception:
            self._end()

    def _read(self) -> None:
        try:
            for data in frames(self.stream, ANSWER_BYTES_MAX):
                number, outcome = decode_answer(data)
                with self._lock:
                    settle = self._waiting.pop(number, None)
                if settle is not None:
                    settle(outcome)
        except Exception as error:
            log.debug("a stream of requests ended: %s", error)
        finally:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self.broken.set()
            waiting, self._waiting = self._waiting, {}
        self._outbox.end()
        self.stream.close()
        for settle in waiting.values():
            settle(Outcome(Reason.UNCERTAIN))
