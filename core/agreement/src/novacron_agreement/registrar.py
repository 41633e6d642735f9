"""A node's changes to a replicated register of ownership, such that what it reads is final.

A hand-over that has no answer to its `advance` reads what holds, and acts on that for good. If the
advance were still on its way and took effect after the read, two nodes would run the machine. So a
node is one client of the register for all its lives, asks one thing at a time, with numbers that
only grow, and reads through the log too: once a read is answered, all that was asked before it is
done or will be refused (see `Sessions`). The simulation ``ownership`` finds what happens without.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from novacron_agreement import ownership
from novacron_agreement.machine import FORGOTTEN
from novacron_agreement.ownership import Outcome, Record

# Requests of one life; the bits above them hold the life.
_COUNT_BITS: Final = 24
# A machine that nobody has: names have at least one letter.
_NONE: Final = ""


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
        self._client = client
        self._propose = propose
        self._patience_s = patience_s
        self._life = _next_life(folder / "life")
        self._count = 0
        self._known = False
        self._turn = asyncio.Lock()

    async def advance(self, record: Record, expected_epoch: int | None) -> Outcome:
        """Write a record; see `ownership.Advance`. Raises TimeoutError if it was not asked for."""
        return await self._ask(
            lambda client, number: ownership.advance(
                record, expected_epoch=expected_epoch, client=client, number=number
            )
        )

    async def forget(self, machine: str, epoch: int) -> Outcome:
        """Remove a record; see `ownership.Forget`. Raises TimeoutError if it was not asked for."""
        return await self._ask(
            lambda client, number: ownership.forget(
                machine, epoch=epoch, client=client, number=number
            )
        )

    async def read(self, machine: str) -> Outcome:
        """What holds for a machine; nothing that was asked for before changes it any more."""
        # No record has epoch 0: nothing is forgotten, and what is there is answered.
        return await self.forget(machine, 0)

    async def settle(self) -> Outcome:
        """Return when all that was asked for before is done or never will be."""
        return await self.read(_NONE)

    async def _ask(self, make: Callable[[str, int], bytes]) -> Outcome:
        async with self._alone():
            if not self._known:
                await self._introduce()
            outcome = await self._once(make)
            if outcome.error == FORGOTTEN:
                # Others came in between, more than the register remembers. Nothing was done.
                await self._introduce()
                outcome = await self._once(make)
            return outcome

    async def _introduce(self) -> None:
        """A client's first number is 1. A register that knows it says that this is old: as good."""
        await self._propose(ownership.forget(_NONE, epoch=0, client=self._client, number=1))
        self._known = True

    async def _once(self, make: Callable[[str, int], bytes]) -> Outcome:
        self._count += 1
        number = (self._life << _COUNT_BITS) + self._count
        return ownership.outcome(await self._propose(make(self._client, number)))

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
