"""The NBD protocol without I/O: what QEMU's block layer and this project's programs say to each
other about a disk. Bytes in, requests or replies out, and bytes to send.

Newstyle, fixed; no TLS, for both ends are on one host and meet in a socket that nobody else can
open. `ServerCore` offers one export; it answers each request simply. `ClientCore` asks for
structured replies, so that what it reads of a sparse disk costs nothing where there is nothing.

Source of the format: the NBD project's ``doc/proto.md``. Either peer is taken for hostile: lengths
are bounded before anything is allocated, and what breaks the rules raises `NbdError`.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Generator
from enum import IntEnum, IntFlag
from typing import Final

from attrs import define, frozen
from novacron_dwcp import Buffer, ProtocolError

# A request carries at most so much; QEMU's own limit is 32 MiB.
REQUEST_BYTES_MAX: Final = 32 << 20
# What one option, or the answer to one, may hold: a name has at most 4096 bytes.
OPTION_BYTES_MAX: Final = 16 << 10
# A handshake with more options, or more answers to one of them, is no honest one.
OPTIONS_MAX: Final = 64
NAME_BYTES_MAX: Final = 4096
# Requests that a client may have under way.
REQUESTS_MAX: Final = 1024
SIZE_BYTES_MAX: Final = (1 << 63) - 1

_NBD: Final = int.from_bytes(b"NBDMAGIC", "big")
_OPTION: Final = int.from_bytes(b"IHAVEOPT", "big")
_OPTION_REPLY: Final = 0x0003E889045565A9
_REQUEST: Final = 0x25609513
_SIMPLE: Final = 0x67446698
_STRUCTURED: Final = 0x668E33EF

_GREETING = struct.Struct(">QQH")
_OPTION_HEAD = struct.Struct(">QII")
_OPTION_REPLY_HEAD = struct.Struct(">QIII")
_REQUEST_HEAD = struct.Struct(">IHHQQI")
_SIMPLE_HEAD = struct.Struct(">IIQ")
_STRUCTURED_HEAD = struct.Struct(">IHHQI")

_FIXED_NEWSTYLE: Final = 1
_NO_ZEROES: Final = 2
_CHUNK_DONE: Final = 1
_ERROR_BIT: Final = 1 << 31
_CHUNK_ERROR_BIT: Final = 1 << 15


class NbdError(ProtocolError):
    """The peer broke the rules of NBD; the connection is to be closed."""


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


class ExportFlag(IntFlag):
    """What can be done with an export."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    FLUSH = 4
    FUA = 8
    TRIM = 32
    WRITE_ZEROES = 64


class _Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8


class _Answer(IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    UNSUPPORTED = _ERROR_BIT | 1
    INVALID = _ERROR_BIT | 3
    UNKNOWN = _ERROR_BIT | 6


class _Info(IntEnum):
    EXPORT = 0
    BLOCK_SIZE = 3


class _Chunk(IntEnum):
    NONE = 0
    DATA = 1
    HOLE = 2


# What NBD calls an error, by the system's name; the others go as EINVAL.
_ERRORS: Final = {
    *[errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC],
    *[errno.EOVERFLOW, errno.ENOTSUP, errno.ESHUTDOWN],
}

_Talk = Generator[int, bytes, None]


class _Reader:
    """Feeds a conversation the bytes that it asks for, however they come."""

    def __init__(self, talk: _Talk) -> None:
        self._talk = talk
        self._need = next(talk)
        self._buffer = bytearray()
        self.ended = False

    def feed(self, data: Buffer) -> None:
        self._buffer += data
        while not self.ended and len(self._buffer) >= self._need:
            piece = bytes(memoryview(self._buffer)[: self._need])
            del self._buffer[: self._need]
            try:
                self._need = self._talk.send(piece)
            except StopIteration:
                self.ended = True


@frozen(kw_only=True)
class Export:
    """A disk that a server offers.

    Attributes:
        name: By which a client asks for it.
        size_bytes: Its length.
        request_bytes_max: The most that one request may carry.
        preferred_bytes: What a request had best be a multiple of.
        flags: What can be done with it.
    """

    name: str
    size_bytes: int
    request_bytes_max: int = 1 << 20
    preferred_bytes: int = 4096
    flags: ExportFlag = ExportFlag.HAS_FLAGS | ExportFlag.FLUSH | ExportFlag.WRITE_ZEROES


@frozen(kw_only=True)
class Request:
    """What a client wants; ``cookie`` is its name for it."""

    command: Command
    cookie: int
    offset: int = 0
    length: int = 0
    data: bytes = b""


class ServerCore:
    """The server's side of one connection.

    Attributes:
        negotiated: Whether requests may come.
        ended: Whether the client has said good-bye.
    """

    def __init__(self, export: Export) -> None:
        self._export = export
        self._out: list[bytes] = [
            _GREETING.pack(_NBD, _OPTION, _FIXED_NEWSTYLE | _NO_ZEROES),
        ]
        self._requests: list[Request] = []
        self._reader = _Reader(self._talk())
        self.negotiated = False

    @property
    def ended(self) -> bool:
        return self._reader.ended

    def feed(self, data: Buffer) -> list[Request]:
        """Take the next bytes; returns the requests that are whole. Each wants a `reply`, but a
        disconnection. Raises NbdError."""
        self._reader.feed(data)
        found, self._requests = self._requests, []
        return found

    def output(self) -> bytes:
        """What is to be sent now."""
        out, self._out = b"".join(self._out), []
        return out

    def reply(self, request: Request, error: int = 0, data: Buffer = b"") -> None:
        """Answer a request. ``error`` is one of the system's numbers, 0 for none."""
        if error and error not in _ERRORS:
            error = errno.EINVAL
        self._out.append(_SIMPLE_HEAD.pack(_SIMPLE, error, request.cookie))
        if request.command is Command.READ and not error:
            if len(data) != request.length:
                raise ValueError(f"{len(data)} bytes answer a read of {request.length}")
            self._out.append(bytes(data))

    def _talk(self) -> _Talk:
        flags = int.from_bytes((yield 4), "big")
        if not flags & _FIXED_NEWSTYLE or flags & ~(_FIXED_NEWSTYLE | _NO_ZEROES):
            raise NbdError(f"an NBD client began with the flags {flags:#x}")
        for _ in range(OPTIONS_MAX):
            magic, option, length = _OPTION_HEAD.unpack((yield _OPTION_HEAD.size))
            if magic != _OPTION:
                raise NbdError("an NBD client sent no option where one was due")
            if length > OPTION_BYTES_MAX:
                raise NbdError(f"an NBD client's option claims {length} bytes")
            data = (yield length) if length else b""
            if option == _Option.EXPORT_NAME:
                self._begin_by_name(data, flags)
                break
            if option == _Option.ABORT:
                self._answer(option, _Answer.ACK)
                return
            if self._answered(option, data):
                break
        else:
            raise NbdError(f"an NBD client sent more than {OPTIONS_MAX} options")
        self.negotiated = True
        yield from self._transmission()

    def _begin_by_name(self, name: bytes, flags: int) -> None:
        if name not in (b"", self._export.name.encode()):
            raise NbdError(f"an NBD client asks for an export {name[:80]!r}, which is not here")
        zeroes = b"" if flags & _NO_ZEROES else bytes(124)
        self._out.append(struct.pack(">QH", self._export.size_bytes, self._export.flags) + zeroes)

    def _answered(self, option: int, data: bytes) -> bool:
        """Answer an option; True if requests come next."""
        if option == _Option.LIST:
            name = self._export.name.encode()
            if data:
                self._answer(option, _Answer.INVALID)
            else:
                self._answer(option, _Answer.SERVER, struct.pack(">I", len(name)) + name)
                self._answer(option, _Answer.ACK)
        elif option in (_Option.INFO, _Option.GO):
            name_wanted = _wanted_name(data)
            if name_wanted is None:
                self._answer(option, _Answer.INVALID)
            elif name_wanted not in (b"", self._export.name.encode()):
                self._answer(option, _Answer.UNKNOWN)
            else:
                export = self._export
                self._answer(
                    option,
                    _Answer.INFO,
                    struct.pack(">HQH", _Info.EXPORT, export.size_bytes, export.flags),
                )
                sizes = (1, export.preferred_bytes, export.request_bytes_max)
                self._answer(option, _Answer.INFO, struct.pack(">HIII", _Info.BLOCK_SIZE, *sizes))
                self._answer(option, _Answer.ACK)
                return option == _Option.GO
        else:
            self._answer(option, _Answer.UNSUPPORTED)
        return False

    def _answer(self, option: int, answer: _Answer, data: bytes = b"") -> None:
        self._out.append(
            _OPTION_REPLY_HEAD.pack(_OPTION_REPLY, option, int(answer), len(data)) + data
        )

    def _transmission(self) -> _Talk:
        export = self._export
        while True:
            head = _REQUEST_HEAD.unpack((yield _REQUEST_HEAD.size))
            magic, _, kind, cookie, offset, length = head
            if magic != _REQUEST:
                raise NbdError("an NBD client sent no request where one was due")
            data = b""
            if kind == Command.WRITE:
                if length > export.request_bytes_max:
                    raise NbdError(f"an NBD client writes {length} bytes at once")
                data = (yield length) if length else b""
            if kind == Command.DISCONNECT:
                self._requests.append(Request(command=Command.DISCONNECT, cookie=cookie))
                return
            try:
                request = Request(
                    command=Command(kind), cookie=cookie, offset=offset, length=length, data=data
                )
            except ValueError:
                # Told apart from all others by nothing but its cookie.
                self._out.append(_SIMPLE_HEAD.pack(_SIMPLE, errno.EINVAL, cookie))
                continue
            if (error := self._objection(request)) is not None:
                self.reply(request, error)
            else:
                self._requests.append(request)

    def _objection(self, request: Request) -> int | None:
        export, command = self._export, request.command
        if command is Command.FLUSH:
            return None if export.flags & ExportFlag.FLUSH else errno.EINVAL
        if request.offset + request.length > export.size_bytes:
            return errno.EINVAL if command is Command.READ else errno.ENOSPC
        if command is Command.READ:
            return errno.EOVERFLOW if request.length > export.request_bytes_max else None
        if export.flags & ExportFlag.READ_ONLY:
            return errno.EPERM
        if command is Command.TRIM and not export.flags & ExportFlag.TRIM:
            return errno.EINVAL
        if command is Command.WRITE_ZEROES and not export.flags & ExportFlag.WRITE_ZEROES:
            return errno.EINVAL
        return None


def _wanted_name(data: bytes) -> bytes | None:
    """The name in an option INFO or GO, None if the option is not sound."""
    if len(data) < 6:
        return None
    length = int.from_bytes(data[:4], "big")
    if length > NAME_BYTES_MAX or len(data) < 6 + length:
        return None
    infos = int.from_bytes(data[4 + length : 6 + length], "big")
    return data[4 : 4 + length] if len(data) == 6 + length + 2 * infos else None


@frozen(kw_only=True)
class Piece:
    """A part of what was asked for by a read; ``data`` is None where the disk holds zeros."""

    cookie: int
    offset: int
    length: int
    data: bytes | None


@frozen(kw_only=True)
class Done:
    """A request has ended; ``error`` is one of the system's numbers, 0 if it succeeded."""

    cookie: int
    error: int = 0
    message: str = ""


@define
class _Asked:
    command: Command
    offset: int
    length: int
    came: int = 0
    error: int = 0
    message: str = ""


class ClientCore:
    """The client's side of one connection.

    Attributes:
        negotiated: Whether requests may be made; the following is known then.
        size_bytes: The export's length.
        flags: What can be done with it.
    """

    def __init__(self, export: str) -> None:
        self._name = export.encode()
        self._out: list[bytes] = []
        self._events: list[Piece | Done] = []
        self._asked: dict[int, _Asked] = {}
        self._cookie = 0
        self._structured = False
        self.negotiated = False
        self.size_bytes = 0
        self.flags = ExportFlag(0)
        self._reader = _Reader(self._talk())

    @property
    def under_way(self) -> int:
        """Requests that were made and are not answered."""
        return len(self._asked)

    def feed(self, data: Buffer) -> list[Piece | Done]:
        """Take the next bytes; returns what they answer. Raises NbdError."""
        self._reader.feed(data)
        found, self._events = self._events, []
        return found

    def output(self) -> bytes:
        """What is to be sent now; of a write its head, to be followed by its data."""
        out, self._out = b"".join(self._out), []
        return out

    def ask(self, command: Command, offset: int = 0, length: int = 0) -> int:
        """Make a request; returns its cookie.

        Raises: ValueError if it could not be answered: too long, outside, or too many under way.
        """
        if not self.negotiated:
            raise ValueError("nothing can be asked before the handshake has ended")
        if len(self._asked) >= REQUESTS_MAX:
            raise ValueError(f"{len(self._asked)} requests are under way")
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise ValueError(f"{length} bytes at {offset} are not inside {self.size_bytes}")
        carries = command in (Command.READ, Command.WRITE)
        if length > (REQUEST_BYTES_MAX if carries else 0xFFFF_FFFF):
            raise ValueError(f"{length} bytes are too many for one request")
        self._cookie += 1
        self._out.append(
            _REQUEST_HEAD.pack(_REQUEST, 0, int(command), self._cookie, offset, length)
        )
        if command is not Command.DISCONNECT:
            self._asked[self._cookie] = _Asked(command, offset, length)
        return self._cookie

    # The handshake.

    def _talk(self) -> _Talk:
        magic, option, flags = _GREETING.unpack((yield _GREETING.size))
        if magic != _NBD or option != _OPTION or not flags & _FIXED_NEWSTYLE:
            raise NbdError("what answers is no NBD server of the newstyle")
        self._out.append(struct.pack(">I", _FIXED_NEWSTYLE | (flags & _NO_ZEROES)))
        self._option(_Option.STRUCTURED_REPLY)
        answer, _ = yield from self._hear(_Option.STRUCTURED_REPLY)
        self._structured = answer == _Answer.ACK
        wants = struct.pack(">I", len(self._name)) + self._name
        self._option(_Option.GO, wants + struct.pack(">HH", 1, _Info.BLOCK_SIZE))
        known = False
        for _ in range(OPTIONS_MAX):
            answer, data = yield from self._hear(_Option.GO)
            if answer == _Answer.ACK:
                break
            if answer != _Answer.INFO:
                said = data.decode(errors="replace")[:200]
                raise NbdError(
                    f"the NBD server does not give its export {self._name.decode()!r} "
                    f"({answer:#x}{': ' if said else ''}{said})"
                )
            known = self._learn(data) or known
        else:
            raise NbdError(f"the NBD server answers an option more than {OPTIONS_MAX} times")
        if not known:
            raise NbdError("the NBD server does not tell its export's size")
        self.negotiated = True
        yield from self._answers()

    def _option(self, option: _Option, data: bytes = b"") -> None:
        self._out.append(_OPTION_HEAD.pack(_OPTION, option, len(data)) + data)

    def _hear(self, option: _Option) -> Generator[int, bytes, tuple[int, bytes]]:
        magic, about, answer, length = _OPTION_REPLY_HEAD.unpack((yield _OPTION_REPLY_HEAD.size))
        if magic != _OPTION_REPLY or about != option:
            raise NbdError("the NBD server answers what was not asked")
        if length > OPTION_BYTES_MAX:
            raise NbdError(f"the NBD server's answer to an option claims {length} bytes")
        data = (yield length) if length else b""
        return answer, data

    def _learn(self, data: bytes) -> bool:
        if len(data) < 2 or int.from_bytes(data[:2], "big") != _Info.EXPORT:
            return False
        if len(data) != 12:
            raise NbdError("the NBD server's word on its export is not sound")
        size, flags = struct.unpack(">QH", data[2:])
        if size > SIZE_BYTES_MAX:
            raise NbdError(f"the NBD server claims an export of {size} bytes")
        self.size_bytes, self.flags = size, ExportFlag(flags & sum(ExportFlag))
        return True

    # Answers.

    def _answers(self) -> _Talk:
        while True:
            magic = int.from_bytes((yield 4), "big")
            if magic == _SIMPLE:
                yield from self._simple()
            elif magic == _STRUCTURED and self._structured:
                yield from self._structured_chunk()
            else:
                raise NbdError("the NBD server sent no answer where one was due")

    def _find(self, cookie: int) -> _Asked:
        try:
            return self._asked[cookie]
        except KeyError:
            raise NbdError("the NBD server answers what was not asked") from None

    def _simple(self) -> _Talk:
        error, cookie = struct.unpack(">IQ", (yield 12))
        asked = self._find(cookie)
        if asked.command is Command.READ and not error:
            if self._structured:
                raise NbdError("the NBD server answers a read simply, against what was agreed on")
            data = (yield asked.length) if asked.length else b""
            self._piece(cookie, asked, asked.offset, asked.length, data)
        self._done(cookie, asked, error, "")

    def _structured_chunk(self) -> _Talk:
        flags, kind, cookie, length = struct.unpack(">HHQI", (yield 16))
        asked = self._find(cookie)
        most = asked.length + 8 if kind == _Chunk.DATA else OPTION_BYTES_MAX
        if length > most:
            raise NbdError(f"a part of an answer of the NBD server claims {length} bytes")
        data = (yield length) if length else b""
        if kind & _CHUNK_ERROR_BIT:
            asked.error, asked.message = _read_error(data)
        elif kind == _Chunk.NONE:
            if length or not flags & _CHUNK_DONE:
                raise NbdError("an empty part of an answer is not empty, or not the last")
        elif kind == _Chunk.DATA and asked.command is Command.READ and length > 8:
            offset = int.from_bytes(data[:8], "big")
            self._piece(cookie, asked, offset, length - 8, data[8:])
        elif kind == _Chunk.HOLE and asked.command is Command.READ and length == 12:
            offset, hole = struct.unpack(">QI", data)
            self._piece(cookie, asked, offset, hole, None)
        else:
            raise NbdError(f"the NBD server answers with a part of the unknown kind {kind}")
        if flags & _CHUNK_DONE:
            self._done(cookie, asked, asked.error, asked.message)

    def _piece(
        self, cookie: int, asked: _Asked, offset: int, length: int, data: bytes | None
    ) -> None:
        # The protocol lets the parts come in any order; QEMU sends them in theirs, and so that
        # none can be missing or come twice no other order is taken.
        if offset != asked.offset + asked.came or not 0 < length <= asked.length - asked.came:
            raise NbdError("the NBD server answers a read with what was not asked for")
        asked.came += length
        self._events.append(Piece(cookie=cookie, offset=offset, length=length, data=data))

    def _done(self, cookie: int, asked: _Asked, error: int, message: str) -> None:
        del self._asked[cookie]
        if asked.command is Command.READ and not error and asked.came != asked.length:
            raise NbdError(f"the NBD server gave {asked.came} of {asked.length} bytes")
        self._events.append(Done(cookie=cookie, error=error, message=message))


def _read_error(data: bytes) -> tuple[int, str]:
    if len(data) < 6:
        raise NbdError("the NBD server's word on an error is not sound")
    error, length = struct.unpack_from(">IH", data)
    if length > len(data) - 6:
        raise NbdError("the NBD server's word on an error is not sound")
    return error or errno.EIO, data[6 : 6 + length].decode(errors="replace")
