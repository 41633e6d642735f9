"""How the moves that leave a node share its links: asked of the plugins, applied to the links."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from attrs import define, field

from novacron.hookspecs.move import MoveNeed
from novacron.session import SourceSession

if TYPE_CHECKING:
    from novacron.node import Node

INTERVAL_S: Final = 1.0


@define(eq=False)
class Sharing:
    """Asks once a second while moves run; without them there is no task."""

    node: Node
    _task: asyncio.Task[None] | None = field(default=None, init=False)

    def wake(self) -> None:
        """A move has begun."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="sharing")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _moves(self) -> list[SourceSession]:
        sessions = self.node.sessions.values()
        return [session for session in sessions if isinstance(session, SourceSession)]

    async def _run(self) -> None:
        while moves := self._moves():
            self._ask([session for session in moves if session.copies])
            await asyncio.sleep(INTERVAL_S)

    def _ask(self, moves: list[SourceSession]) -> None:
        if not moves:
            return
        needs = [need(session) for session in moves]
        rates = self.node.manager.choose("novacron_choose_rates", moves=needs, node=self.node.facts)
        if rates is None:
            return
        for session in moves:
            share = rates.get(session.terms.session)
            session.share_bytes_per_s = None if share is None else max(1, int(share))
            session.limit()


def need(session: SourceSession) -> MoveNeed:
    """What a move needs now; only while it copies."""
    facts = session.facts()
    deadline_s = session.deadline_s
    return MoveNeed(
        session=session.terms.session,
        machine=session.terms.machine,
        target=session.terms.target,
        priority=session.priority,
        deadline_s=None if deadline_s is None else deadline_s - time.monotonic(),
        remaining_bytes=facts.remaining_bytes,
        dirty_bytes_per_s=facts.dirty_bytes_per_s,
        rate_bytes_per_s=facts.rate_bytes_per_s or 0.0,
        limit_bytes_per_s=facts.limit_bytes_per_s,
    )
