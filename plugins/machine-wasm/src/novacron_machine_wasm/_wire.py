"""What a node and a runner say to each other, over unix sockets in the machine's home.

Control: a length (u32, little-endian, bounded) and a msgpack message, each way. Data: a fixed
header and up to three runs of bytes. Both sides bound every length before they allocate.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from blake3 import blake3
from novacron import BATCH_BYTES_MAX, Buffer, PeerProtocolError

CONTROL_MAX: Final = 256 << 10
HAVE_MAX: Final = 8 << 20
PAGE: Final = 4096
CONSOLE_INPUT_MAX: Final = 4096
LENGTH: Final = struct.Struct("<I")
# kind, layout, addresses, pages, round, done, remaining, dirty rate
FRAME: Final = struct.Struct("<B3xIIIIQQQ")
BATCH: Final = 1
PROGRESS: Final = 2
END: Final = 3

RECORD: Final = "machine.json"
LOCK: Final = "runner.lock"
PID: Final = "runner.pid"
LOG: Final = "runner.log"
MODULE: Final = "guest.wasm"
FAILURE: Final = "failure.txt"
CONSOLE_LOG: Final = "console.log"
RUNS_LOG: Final = "runs.log"
SHADOW: Final = "shadow"
BASE: Final = "base"


class WireError(Exception):
    """The other side broke the rules of the wire, or is gone."""


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``machine.json``: there should be a process for this machine."""

    token: str
    name: str
    memory_bytes: int
    settings: dict[str, str | int]
    sockets: str
    receiving: bool
    guest: str = ""
    guest_bytes: int = 0
    base_bytes_max: int = 0
    console_log_bytes_max: int = 16 << 20
    runs_log: str = ""


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    op: str
    token: str
    max_downtime_ms: int = 300
    rate_bytes_per_s: int | None = None


class Reply(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``error`` is empty, or the code of the error class to raise."""

    token: str = ""
    error: str = ""
    message: str = ""
    hint: str = ""
    state: str = ""
    text: str = ""
    number: int = 0


class ModulePart(msgspec.Struct, tag="module", kw_only=True, forbid_unknown_fields=True):
    """A piece of the module, in order; with the last one the guest is made."""

    offset: int
    total: int
    data: bytes


class Pages(msgspec.Struct, tag="pages", kw_only=True, forbid_unknown_fields=True):
    """Pages of memory."""

    round: int


class PassEnd(msgspec.Struct, tag="pass-end", kw_only=True, forbid_unknown_fields=True):
    """A pass is over: a good moment to hash what came."""

    round: int


class Rest(msgspec.Struct, tag="rest", kw_only=True, forbid_unknown_fields=True):
    """The machine is paused and this is all: globals, the runner's own state and the proof."""

    globals: dict[str, int]
    ticks: int
    console_bytes: int
    console_input: bytes
    pages: int
    batches: int
    digest: bytes = b""


Layout = ModulePart | Pages | PassEnd | Rest
encode_layout: Final = msgspec.msgpack.Encoder(order="sorted").encode
decode_layout: Final = msgspec.msgpack.Decoder(Layout)


def proof(memory: bytes, rest: Rest) -> bytes:
    """What ``Rest.digest`` must be: BLAKE3 over the memory's digest and everything else."""
    bare = msgspec.structs.replace(rest, digest=b"")
    return blake3(memory + encode_layout(bare)).digest()


# What a destination holds already: a kind, a seed, how many tags; the tags follow.
HAVE: Final = struct.Struct("<8sQQ")
_MAGIC: Final = b"NCWASM\x00\x01"


def have_header(seed: int, tags: int) -> bytes:
    return HAVE.pack(_MAGIC, seed, tags)


def check_have(have: Buffer, memory_bytes: int) -> int:
    """The seed of a list of pages. Raises PeerProtocolError; the input is hostile."""
    count = memory_bytes // PAGE
    if len(have) != HAVE.size + 8 * count:
        raise PeerProtocolError(
            f"the destination's list of pages is {len(have)} bytes long, not "
            f"{HAVE.size + 8 * count}"
        )
    magic, seed, claimed = HAVE.unpack_from(have)
    if magic != _MAGIC or claimed != count:
        raise PeerProtocolError("the destination's list of pages is of a kind not known here")
    return int(seed)


def receive_exactly(sock: socket.socket, view: memoryview) -> None:
    """Fill the view. Raises WireError when the other side closes before that."""
    while view:
        count = sock.recv_into(view)
        if not count:
            raise WireError("the connection was closed")
        view = view[count:]


def receive_bytes(sock: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    receive_exactly(sock, memoryview(data))
    return data


def send_all(sock: socket.socket, buffers: Sequence[Buffer]) -> None:
    """All of the buffers, in one system call where the socket takes them at once."""
    views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    while views:
        count = sock.sendmsg(views)
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]


def pack_control(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    if len(body) > CONTROL_MAX:
        raise WireError(f"a control message of {len(body)} bytes")
    return LENGTH.pack(len(body)) + body


def control_length(header: Buffer) -> int:
    (length,) = LENGTH.unpack(header)
    if length > CONTROL_MAX:
        raise WireError(f"a control message claims {length} bytes")
    return int(length)


def parse_reply(body: Buffer) -> Reply:
    try:
        return msgspec.msgpack.decode(body, type=Reply)
    except msgspec.MsgspecError as error:
        raise WireError(f"not a reply: {error}") from error


def parse_request(body: Buffer) -> Request:
    try:
        return msgspec.msgpack.decode(body, type=Request)
    except msgspec.MsgspecError as error:
        raise WireError(f"not a request: {error}") from error


def receive_reply(sock: socket.socket) -> Reply:
    return parse_reply(receive_bytes(sock, control_length(receive_bytes(sock, LENGTH.size))))


def receive_request(sock: socket.socket) -> Request:
    return parse_request(receive_bytes(sock, control_length(receive_bytes(sock, LENGTH.size))))


def frame_lengths(header: Sequence[Any]) -> tuple[int, int, int]:
    """The three lengths of a data frame's unpacked header, bounded."""
    layout, addresses, pages = header[1:4]
    if layout + addresses + pages > BATCH_BYTES_MAX:
        raise WireError(f"a batch claims {layout + addresses + pages} bytes")
    return layout, addresses, pages


def hang_up(sock: socket.socket) -> None:
    """Wake whoever is blocked on the socket; it is closed by its owner."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
