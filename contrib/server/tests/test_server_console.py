"""The console: raw bytes both ways, through the node's API."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from novacron import NodeUnavailable, NotFound
from novacron_server._client import Client
from novacron_server._console import attach, open_console
from websockets.exceptions import ConnectionClosed

DEADLINE_S = 20.0
EVERY_BYTE = bytes(range(256)) * 40


class Guest:
    """Something behind a console's socket, in the node's loop."""

    def __init__(self, running: Any) -> None:
        self.running = running
        self.typed = bytearray()
        self.attached = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self) -> None:
        path = self.running.node.console("vm")
        self.server = await asyncio.start_unix_server(self.talk, path)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.attached += 1
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                self.typed += data
                writer.write(data.upper())
                await writer.drain()
        self.attached -= 1
        writer.close()

    def say(self, data: bytes) -> None:
        async def write() -> None:
            self.writers[-1].write(data)

        self.running.call(write())

    def end(self) -> None:
        async def close() -> None:
            for writer in self.writers:
                writer.close()

        self.running.call(close())


@pytest.fixture
def guest(running: Any, client: Client) -> Iterator[Guest]:
    client.wait(client.create("vm", driver="paper", memory_bytes=1)["id"])
    guest = Guest(running)
    running.call(guest.serve())
    yield guest
    guest.end()

    async def close() -> None:
        guest.server.close()

    running.call(close())


def test_every_byte_goes_both_ways_unchanged(client: Client, guest: Guest) -> None:
    with open_console(client, "vm") as link:
        link.send(EVERY_BYTE)
        seen = b""
        while len(seen) < len(EVERY_BYTE):
            data = link.recv(timeout=DEADLINE_S)
            assert isinstance(data, bytes)
            seen += data
    assert bytes(guest.typed) == EVERY_BYTE
    assert seen == EVERY_BYTE.upper()


def test_leaving_lets_go_of_the_machines_console(
    running: Any, client: Client, guest: Guest
) -> None:
    with open_console(client, "vm"):
        running.until(lambda: guest.attached == 1)
    running.until(lambda: guest.attached == 0)
    running.until(lambda: running.service._shared.streams == 0)


def test_the_end_of_the_machine_ends_the_console_after_its_last_words(
    client: Client, guest: Guest
) -> None:
    with open_console(client, "vm") as link:
        link.send(b"x")
        assert link.recv(timeout=DEADLINE_S) == b"X"
        guest.say(b"bye")
        guest.end()
        assert link.recv(timeout=DEADLINE_S) == b"bye"
        with pytest.raises(ConnectionClosed):
            link.recv(timeout=DEADLINE_S)


def test_a_machine_that_does_not_exist_or_has_no_process_is_told(
    running: Any, client: Client
) -> None:
    with pytest.raises(NotFound, match="no machine 'none'"):
        open_console(client, "none").__enter__()
    client.wait(client.create("vm", driver="paper", memory_bytes=1)["id"])
    with pytest.raises(NotFound, match="does not answer") as gone:
        open_console(client, "vm").__enter__()
    assert "process" in gone.value.hint
    assert running.service._shared.streams == 0


def test_a_watcher_that_does_not_read_is_cut_off_and_the_guest_never_waits(
    running: Any, client: Client, guest: Guest
) -> None:
    sock = client.console_socket()
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    sock.sendall(
        "GET /v1/machines/vm/console HTTP/1.1\r\nHost: n\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    with sock:
        assert sock.recv(12) == b"HTTP/1.1 101"
        running.until(lambda: guest.attached == 1)

        async def flood() -> None:
            async with asyncio.timeout(DEADLINE_S):
                with contextlib.suppress(ConnectionError):
                    for _ in range(200):
                        guest.writers[-1].write(b"y" * 65536)
                        await guest.writers[-1].drain()

        running.call(flood())
        running.until(lambda: running.service._shared.streams == 0)
    assert client.node()["node"] == "alpha"


def test_stopping_the_node_closes_consoles(running: Any, client: Client, guest: Guest) -> None:
    with open_console(client, "vm") as link:
        link.send(b"x")
        assert link.recv(timeout=DEADLINE_S) == b"X"
        running.call(running.service.stop())
        with pytest.raises(ConnectionClosed) as closed:
            link.recv(timeout=DEADLINE_S)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code in (1001, 1012)


def test_without_a_node_the_console_says_how_to_start_one(tmp_path: Any) -> None:
    with pytest.raises(NodeUnavailable):
        open_console(Client(tmp_path / "api.sock"), "vm").__enter__()


def test_the_end_of_the_console_log_is_given(running: Any, client: Client) -> None:
    client.wait(client.create("vm", driver="paper", memory_bytes=1)["id"])
    assert client.console_log("vm") == b""
    running.node.console_log("vm").write_bytes(b"a" * 100 + EVERY_BYTE)
    assert client.console_log("vm") == b"a" * 100 + EVERY_BYTE
    assert client.console_log("vm", tail_bytes=300) == EVERY_BYTE[-300:]


# What the command does with a terminal or a pipe.


class Read:
    """Collects what a descriptor gives, in a thread."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.data = b""
        self.grown = threading.Condition()
        self.thread = threading.Thread(target=self.collect, daemon=True)
        self.thread.start()

    def collect(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self.descriptor, 4096):
                with self.grown:
                    self.data += data
                    self.grown.notify_all()

    def until(self, condition: Callable[[bytes], bool]) -> bytes:
        with self.grown:
            assert self.grown.wait_for(lambda: condition(self.data), DEADLINE_S), self.data
            return self.data


@pytest.fixture
def pipes() -> Iterator[tuple[int, int, int, int]]:
    stdin, typing = os.pipe()
    seeing, stdout = os.pipe()
    yield stdin, typing, seeing, stdout
    for descriptor in (stdin, typing, seeing, stdout):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_a_pipe_is_typed_in_and_the_answer_shown_until_a_moment_after_its_end(
    client: Client, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    stdin, typing, seeing, stdout = pipes
    seen = Read(seeing)
    os.write(typing, b"hello\n")
    os.close(typing)
    with open_console(client, "vm") as link:
        why = attach(link, linger_s=0.5, stdin=stdin, stdout=stdout)
    assert why == "the pipe has ended"
    assert seen.until(lambda data: data == b"HELLO\n")


def cooked(terminal: int) -> bool:
    return bool(termios.tcgetattr(terminal)[3] & termios.ICANON)


def test_ctrl_right_bracket_leaves_a_terminal_and_every_other_key_is_the_guests(
    client: Client, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    _, _, seeing, stdout = pipes
    keyboard, terminal = pty.openpty()
    seen = Read(seeing)
    ended: list[str] = []

    def sit() -> None:
        with open_console(client, "vm") as link:
            ended.append(attach(link, linger_s=5, stdin=terminal, stdout=stdout))

    sitting = threading.Thread(target=sit)
    sitting.start()
    guest.running.until(lambda: guest.attached == 1 and not cooked(terminal))
    os.write(keyboard, b"ab\x03\x1a")
    # Ctrl-C and Ctrl-Z reach the guest once the terminal is raw.
    assert seen.until(lambda data: data.endswith(b"\x03\x1a"))
    os.write(keyboard, b"c\x1dignored")
    sitting.join(DEADLINE_S)
    assert ended == ["left"]
    assert cooked(terminal)
    guest.running.until(lambda: guest.attached == 0)
    assert bytes(guest.typed) == b"ab\x03\x1ac"
    os.close(keyboard)
    os.close(terminal)


def test_the_terminal_is_left_when_the_machine_ends(
    client: Client, guest: Guest, pipes: tuple[int, int, int, int]
) -> None:
    stdin, typing, seeing, stdout = pipes
    seen = Read(seeing)
    os.write(typing, b"x")

    def end() -> None:
        seen.until(lambda data: data == b"X")
        guest.end()

    thread = threading.Thread(target=end)
    thread.start()
    with open_console(client, "vm") as link:
        why = attach(link, linger_s=5, stdin=stdin, stdout=stdout)
    thread.join(DEADLINE_S)
    assert why == "the console has ended"
