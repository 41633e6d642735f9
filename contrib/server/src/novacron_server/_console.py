"""The terminal, attached to a machine's console."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from typing import Final

import msgspec
from novacron import NodeUnavailable, NovacronError, PeerProtocolError
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from novacron_server._client import Client, console_path
from novacron_server._problems import from_problem

ESCAPE: Final = b"\x1d"  # Ctrl-]
_CHUNK: Final = 64 << 10
# The end of a pipe is noticed by another thread; so often is looked whether it was.
_LOOK_UP_S: Final = 0.2


@contextlib.contextmanager
def open_console(client: Client, name: str) -> Iterator[ClientConnection]:
    """A websocket to a machine's console. Raises what the node answers instead."""
    sock = client.console_socket()
    with contextlib.ExitStack() as stack:
        stack.callback(sock.close)
        try:
            link = stack.enter_context(
                connect(
                    f"ws://novacron{console_path(name)}",
                    sock=sock,
                    proxy=None,
                    compression=None,
                    open_timeout=client.timeout_s,
                    close_timeout=2,
                    max_size=2 << 20,
                )
            )
        except InvalidStatus as refused:
            raise _refusal(refused) from refused
        except (OSError, TimeoutError, WebSocketException) as error:
            raise NodeUnavailable(f"the console could not be opened: {error}") from error
        yield link


def _refusal(refused: InvalidStatus) -> NovacronError:
    try:
        return from_problem(msgspec.json.decode(refused.response.body or b"", type=dict))
    except msgspec.MsgspecError:
        status = refused.response.status_code
        return PeerProtocolError(f"the node answered {status} without saying why")


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def attach(link: ClientConnection, *, linger_s: float, stdin: int, stdout: int) -> str:
    """Carry bytes both ways until either side ends; why it ended.

    On a terminal Ctrl-] leaves. From a pipe, the console is shown for another ``linger_s`` after
    the pipe's end.
    """
    terminal = os.isatty(stdin)
    leave_reader, leave_writer = os.pipe()
    typed_all = threading.Event()
    left = threading.Event()

    def type_in() -> None:
        try:
            while True:
                ready, _, _ = select.select([stdin, leave_reader], [], [])
                if leave_reader in ready:
                    return
                data = os.read(stdin, _CHUNK)
                if terminal and ESCAPE in data:
                    left.set()
                    data = data.partition(ESCAPE)[0]
                    if data:
                        link.send(data)
                    link.close()
                    return
                if not data:
                    return
                link.send(data)
        except (ConnectionClosed, OSError):
            return
        finally:
            typed_all.set()

    typist = threading.Thread(target=type_in, name="console", daemon=True)
    with _raw(stdin) if terminal else contextlib.nullcontext():
        typist.start()
        try:
            return _show(link, stdout, typed_all, left, linger_s)
        finally:
            os.write(leave_writer, b"x")
            typist.join(5)
            link.close()
            os.close(leave_reader)
            os.close(leave_writer)


def _show(
    link: ClientConnection,
    stdout: int,
    typed_all: threading.Event,
    left: threading.Event,
    linger_s: float,
) -> str:
    until: float | None = None
    while True:
        if until is None and typed_all.is_set():
            until = time.monotonic() + linger_s
        wait_s = _LOOK_UP_S if until is None else until - time.monotonic()
        if wait_s <= 0:
            return "the pipe has ended"
        try:
            data = link.recv(timeout=wait_s)
        except TimeoutError:
            continue
        except ConnectionClosed as closed:
            if left.is_set():
                return "left"
            reason = closed.rcvd.reason if closed.rcvd else ""
            return reason or "the console has ended"
        _write(stdout, data.encode() if isinstance(data, str) else data)


def _write(stdout: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(stdout, view) :]


def interactive() -> bool:
    """Whether somebody types."""
    return sys.stdin.isatty()
