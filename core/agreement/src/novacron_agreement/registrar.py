"""Carries a node's requests to a replicated register of ownership.

What it reads is final: no change that the node asked for before, in this life or an earlier one,
takes effect afterwards. `requests` sees to that; here is the life's number, and the waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

from novacron_agreement.ownership import Outcome, Record
from novacron_agreement.requests import Requests, Then


class RegisterRefused(ValueError):
    """The register does not do what this client asks for; the message is its reason."""


class Registrar:
    """See the module. On one event loop.

    Args:
        client: The node's name as a client of the register; no other node has it.
        folder: Where the number of the node's life is kept.
        propose: The register's answer to a command, which is repeated until it is known or given
            up; raises what it likes.
        patience_s: How long a request waits for those before it.
    """

    def __init__(
        self,
        client: str,
        folder: Path,
        propose: Callable[[bytes], Awaitable[bytes]],
        patience_s: float,
    ) -> None:
        self._requests = Requests(client, _next_life(folder / "life"))
        self._propose = propose
        self._patience_s = patience_s
        self._turn = asyncio.Lock()

    # All of them raise TimeoutError if it was not asked for, RegisterRefused if it was refused.

    async def advance(self, record: Record, expected_epoch: int | None) -> Outcome:
        """Write a record; see `ownership.Advance`."""
        return await self._ask(partial(self._requests.advance, record, expected_epoch))

    async def forget(self, machine: str, epoch: int) -> Outcome:
        """Remove a record; see `ownership.Forget`."""
        return await self._ask(partial(self._requests.forget, machine, epoch))

    async def read(self, machine: str) -> Outcome:
        """What holds for a machine; nothing that was asked for before changes it any more."""
        return await self._ask(partial(self._requests.read, machine))

    async def settle(self) -> Outcome:
        """Return when all that was asked for before is done or never will be."""
        return await self._ask(self._requests.settle)

    async def _ask(self, put: Callable[[Then], None]) -> Outcome:
        answers: list[tuple[Outcome | None, str]] = []
        async with self._alone():
            put(lambda outcome, why: answers.append((outcome, why)))
            while (asked := self._requests.next()) is not None:
                try:
                    self._requests.said(asked.number, await self._propose(asked.command))
                except BaseException:
                    self._requests.give_up(asked.number)
                    raise
        outcome, why = answers[0]
        if outcome is None:
            raise RegisterRefused(why)
        return outcome

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with asyncio.timeout(self._patience_s):
            await self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()


def _next_life(path: Path) -> int:
    """A number higher than that of any earlier life; also of those whose file was lost, as long as
    the clock is not set back as well: then the register refuses what is asked for."""
    try:
        last = int(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        last = 0
    life = max(last + 1, int(time.time()))
    fresh = path.with_suffix(".new")
    with open(fresh, "w", encoding="ascii") as file:
        file.write(str(life))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return life
