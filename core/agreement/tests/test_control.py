"""A command asks a node's process by a socket, however deep the folder is that it lies in."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from novacron_agreement.control import Asker, ControlSocket, ask

LINE_BYTES_MAX = 100


async def echo(line: bytes, asker: Asker) -> None:
    if line == b"wrong":
        raise ValueError("asked nonsense")
    for word in line.split():
        await asker.tell(word)


def ask_all(path: Path, line: bytes) -> list[bytes]:
    """The answer's lines; none if the connection ended, in whichever way, without an answer."""
    try:
        return list(ask(path, line, 10.0))
    except (BrokenPipeError, ConnectionResetError):
        return []


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else 0


def served(
    path: Path,
    work: Callable[[], Coroutine[Any, Any, None]],
    answer: Callable[[bytes, Asker], Coroutine[Any, Any, None]] = echo,
    **limits: int,
) -> None:
    async def run() -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        control = ControlSocket(path, answer, request_bytes_max=LINE_BYTES_MAX, **limits)
        await control.start()
        try:
            assert mode(path) == 0o600
            await work()
        finally:
            await control.stop()
            await control.stop()
        assert mode(path) == 0

    asyncio.run(run())


@pytest.mark.parametrize("depth", [1, 20])
def test_a_line_is_answered_with_lines(tmp_path: Path, depth: int) -> None:
    path = tmp_path.joinpath(*["a-folder-deep-down"] * depth, "control.sock")

    async def work() -> None:
        found = await asyncio.to_thread(ask_all, path, b"one two")
        assert found == [b"one\n", b"two\n"]
        # Nonsense, and a line that is too long, end the connection.
        assert await asyncio.to_thread(ask_all, path, b"wrong") == []
        assert await asyncio.to_thread(ask_all, path, b"x" * (4 * LINE_BYTES_MAX)) == []

    served(path, work)


def test_one_client_too_many_finds_its_connection_closed(tmp_path: Path) -> None:
    path, asked, go = tmp_path / "control.sock", asyncio.Event(), asyncio.Event()

    async def slow(line: bytes, asker: Asker) -> None:
        asked.set()
        await go.wait()
        await asker.tell(line)

    async def work() -> None:
        first = asyncio.create_task(asyncio.to_thread(ask_all, path, b"first"))
        await asked.wait()
        assert await asyncio.to_thread(ask_all, path, b"second") == []
        go.set()
        assert await first == [b"first\n"]

    served(path, work, slow, clients_max=1)


def test_news_come_until_the_client_hangs_up(tmp_path: Path) -> None:
    path, ended = tmp_path / "control.sock", asyncio.Event()
    news: asyncio.Queue[bytes] = asyncio.Queue()

    async def watch(_: bytes, asker: Asker) -> None:
        try:
            async for one in asker.until_it_goes(news):
                await asker.tell(one)
        finally:
            ended.set()

    async def work() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"watch\n")
        for one in (b"a", b"b"):
            news.put_nowait(one)
            assert await reader.readline() == one + b"\n"
        writer.close()
        await ended.wait()

    served(path, work, watch)
