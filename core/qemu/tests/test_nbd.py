"""NBD without I/O: both sides joined, cut anywhere, lied to, and beside QEMU's own programs."""

from __future__ import annotations

import errno
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from novacron_qemu.nbd import (
    OPTIONS_MAX,
    ClientCore,
    Command,
    Done,
    Export,
    ExportFlag,
    NbdError,
    Piece,
    Request,
    ServerCore,
)

EXPORT = Export(name="disk0", size_bytes=1 << 20, request_bytes_max=64 << 10)


def joined(export: Export = EXPORT, name: str = "disk0") -> tuple[ClientCore, ServerCore]:
    """Both sides after their handshake."""
    client, server = ClientCore(name), ServerCore(export)
    for _ in range(4):
        client.feed(server.output())
        server.feed(client.output())
    client.feed(server.output())
    assert (client.negotiated, server.negotiated) == (True, True)
    return client, server


def test_a_client_learns_what_the_export_is() -> None:
    client, _ = joined()
    assert (client.size_bytes, client.flags) == (1 << 20, EXPORT.flags)


def test_a_write_arrives_however_it_is_cut() -> None:
    whole: list[Request] | None = None
    for cut in range(60):
        client, server = joined()
        client.ask(Command.WRITE, 4096, 512)
        sent = client.output() + bytes(range(256)) * 2
        client.ask(Command.WRITE_ZEROES, 8192, 1 << 19)
        sent += client.output()
        requests = [*server.feed(sent[:cut]), *server.feed(sent[cut:])]
        whole = whole or requests
        assert requests == whole
        for request in requests:
            server.reply(request)
        assert client.feed(server.output()) == [Done(cookie=1), Done(cookie=2)]
    assert whole is not None
    assert [(r.command, r.offset, r.length, len(r.data)) for r in whole] == [
        (Command.WRITE, 4096, 512, 512),
        (Command.WRITE_ZEROES, 8192, 1 << 19, 0),
    ]


def test_a_read_brings_its_bytes_or_its_error() -> None:
    client, server = joined()
    client.ask(Command.READ, 0, 4)
    client.ask(Command.READ, 4, 4)
    first, second = server.feed(client.output())
    server.reply(first, data=b"disk")
    server.reply(second, errno.EIO)
    assert client.feed(server.output()) == [
        Piece(cookie=1, offset=0, length=4, data=b"disk"),
        Done(cookie=1),
        Done(cookie=2, error=errno.EIO),
    ]


def test_what_lies_outside_the_export_is_refused_and_the_connection_goes_on() -> None:
    client, server = joined()
    client.size_bytes = 1 << 40  # as a client would that does not listen
    client.ask(Command.WRITE, (1 << 20) - 2, 4)
    assert server.feed(client.output() + b"four") == []
    client.ask(Command.READ, 1 << 20, 1)
    client.ask(Command.READ, 0, 128 << 10)
    client.ask(Command.TRIM, 0, 4096)
    assert server.feed(client.output()) == []
    assert [event.error for event in client.feed(server.output()) if isinstance(event, Done)] == [
        *(errno.ENOSPC, errno.EINVAL, errno.EOVERFLOW, errno.EINVAL)
    ]


def test_nothing_is_written_to_an_export_that_is_read_only() -> None:
    export = Export(
        name="disk0", size_bytes=4096, flags=ExportFlag.HAS_FLAGS | ExportFlag.READ_ONLY
    )
    client, server = joined(export)
    client.ask(Command.WRITE, 0, 4)
    client.ask(Command.FLUSH)
    assert server.feed(client.output()[:28] + b"four") == []
    assert client.feed(server.output()) == [Done(cookie=1, error=errno.EPERM)]


def test_an_unknown_export_and_a_good_bye_are_said_plainly() -> None:
    client, server = ClientCore("other"), ServerCore(EXPORT)
    client.feed(server.output())
    server.feed(client.output())
    client.feed(server.output())
    server.feed(client.output())
    with pytest.raises(NbdError, match="does not give its export 'other'"):
        client.feed(server.output())
    client, server = joined()
    client.ask(Command.DISCONNECT)
    assert [request.command for request in server.feed(client.output())] == [Command.DISCONNECT]
    assert server.ended


def greeting() -> bytes:
    return struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (struct.pack(">I", 0), "flags"),
        (struct.pack(">I", 0xFF), "flags"),
        (struct.pack(">I", 3) + b"\0" * 16, "no option"),
        (struct.pack(">IQII", 3, 0x49484156454F5054, 7, 1 << 30), "claims 1073741824"),
        (
            struct.pack(">I", 3) + OPTIONS_MAX * struct.pack(">QII", 0x49484156454F5054, 99, 0),
            "more than 64 options",
        ),
        (struct.pack(">IQII", 3, 0x49484156454F5054, 1, 3) + b"abc", "not here"),
    ],
)
def test_a_client_that_misbehaves_is_refused_before_anything_is_allocated(
    sent: bytes, said: str
) -> None:
    with pytest.raises(NbdError, match=said):
        ServerCore(EXPORT).feed(sent)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (struct.pack(">IHHQQI", 1, 0, 0, 1, 0, 0), "no request"),
        (struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, 1 << 31), "at once"),
    ],
)
def test_a_request_that_is_none_ends_the_connection(request_: bytes, said: str) -> None:
    _, server = joined()
    with pytest.raises(NbdError, match=said):
        server.feed(request_)


def test_an_unknown_command_is_answered_and_the_connection_goes_on() -> None:
    client, server = joined()
    assert server.feed(struct.pack(">IHHQQI", 0x25609513, 0, 77, 5, 0, 0)) == []
    assert server.output() == struct.pack(">IIQ", 0x67446698, errno.EINVAL, 5)
    client.ask(Command.FLUSH)
    assert len(server.feed(client.output())) == 1


def structured(size: int = 1 << 20) -> ClientCore:
    """A client whose server agreed to answer in parts."""
    client = ClientCore("disk0")
    reply = 0x0003E889045565A9
    client.feed(greeting())
    client.feed(struct.pack(">QIII", reply, 8, 1, 0))
    client.feed(struct.pack(">QIII", reply, 7, 3, 12) + struct.pack(">HQH", 0, size, 1))
    client.feed(struct.pack(">QIII", reply, 7, 1, 0))
    assert client.negotiated
    client.output()
    return client


def part(kind: int, data: bytes, cookie: int = 1, *, last: bool = True) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, int(last), kind, cookie, len(data)) + data


def test_a_hole_costs_no_bytes() -> None:
    client = structured()
    client.ask(Command.READ, 0, 1 << 20)
    parts = part(1, struct.pack(">Q", 0) + b"data", last=False)
    parts += part(2, struct.pack(">QI", 4, (1 << 20) - 4))
    assert client.feed(parts) == [
        Piece(cookie=1, offset=0, length=4, data=b"data"),
        Piece(cookie=1, offset=4, length=(1 << 20) - 4, data=None),
        Done(cookie=1),
    ]


def test_an_error_in_parts_says_what_the_server_says() -> None:
    client = structured()
    client.ask(Command.WRITE, 0, 4096)
    said = struct.pack(">IH", errno.ENOSPC, 4) + b"full"
    assert client.feed(part(0x8001, said)) == [Done(cookie=1, error=errno.ENOSPC, message="full")]


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack(">I", 7),
        part(0, b"", cookie=9),
        part(0, b"x"),
        part(1, struct.pack(">Q", 4096) + b"elsewhere"),
        part(2, struct.pack(">QI", 0, 5000)),
        part(2, struct.pack(">QI", 0, 0)),
        part(77, b""),
        part(0x8001, b"x"),
        part(0x8001, struct.pack(">IH", 5, 900)),
        part(0, b""),  # nothing of what was to be read
        struct.pack(">IHHQI", 0x668E33EF, 1, 1, 1, 1 << 31),
        struct.pack(">IIQ", 0x67446698, 0, 1),  # a read, answered simply
    ],
)
def test_a_server_that_misbehaves_is_refused(answer: bytes) -> None:
    client = structured()
    client.ask(Command.READ, 0, 4096)
    with pytest.raises(NbdError):
        client.feed(answer)


@pytest.mark.parametrize(
    "answers",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        greeting() + struct.pack(">QIII", 1, 8, 1, 0),
        greeting() + struct.pack(">QIII", 0x0003E889045565A9, 8, 1, 1 << 30),
        greeting()
        + struct.pack(">QIII", 0x0003E889045565A9, 8, 1, 0)
        + struct.pack(">QIII", 0x0003E889045565A9, 7, 1, 0),
        greeting()
        + struct.pack(">QIII", 0x0003E889045565A9, 8, 1, 0)
        + struct.pack(">QIIIHQH", 0x0003E889045565A9, 7, 3, 12, 0, 1 << 63, 0),
    ],
)
def test_a_handshake_that_is_none_is_refused(answers: bytes) -> None:
    with pytest.raises(NbdError):
        ClientCore("disk0").feed(answers)


def test_what_cannot_be_answered_is_not_asked() -> None:
    client = ClientCore("disk0")
    with pytest.raises(ValueError, match="handshake"):
        client.ask(Command.FLUSH)
    client, _ = joined()
    with pytest.raises(ValueError, match="not inside"):
        client.ask(Command.READ, 1 << 20, 1)


@pytest.fixture
def qemu_nbd(tmp_path: Path) -> Iterator[Path]:
    """QEMU's own server, with a sparse disk of 8 MiB that holds a MiB of sevens at its 4th."""
    program, image, path = shutil.which("qemu-nbd"), tmp_path / "disk.qcow2", tmp_path / "nbd"
    if program is None or shutil.which("qemu-img") is None:
        pytest.skip("qemu-nbd is not on this host; run scripts/debian-packages")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"], check=True)
    argv = [program, "-f", "qcow2", "-x", "disk0", "-k", str(path), "--fork", "-t"]
    pid_file = tmp_path / "pid"
    subprocess.run([*argv, "--pid-file", str(pid_file), str(image)], check=True, timeout=20)
    pid = int(pid_file.read_text())
    try:
        yield path
    finally:
        subprocess.run(["kill", str(pid)], check=False)


def test_the_client_writes_and_reads_what_qemu_serves(qemu_nbd: Path) -> None:
    client = ClientCore("disk0")
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(20)
        stream.connect(str(qemu_nbd))

        def until(events: int) -> list[Piece | Done]:
            found: list[Piece | Done] = []
            while len([event for event in found if isinstance(event, Done)]) < events:
                stream.sendall(client.output())
                found += client.feed(stream.recv(1 << 20))
            return found

        while not client.negotiated:
            stream.sendall(client.output())
            client.feed(stream.recv(1 << 16))
        assert client.size_bytes == 8 << 20
        client.ask(Command.WRITE, 4 << 20, 1 << 20)
        stream.sendall(client.output() + b"\7" * (1 << 20))
        assert until(1) == [Done(cookie=1)]
        client.ask(Command.WRITE_ZEROES, 4 << 20, 1 << 19)
        client.ask(Command.FLUSH)
        assert {event.error for event in until(2) if isinstance(event, Done)} == {0}
        client.ask(Command.READ, 0, 8 << 20)
        pieces = [event for event in until(1) if isinstance(event, Piece)]
        held = sum(piece.length for piece in pieces if piece.data is not None)
        assert (sum(piece.length for piece in pieces), held) == (8 << 20, 1 << 19)
        client.ask(Command.DISCONNECT)
        stream.sendall(client.output())
