"""Requests to whichever member leads, from a member or from a node that is none.

A client asks the member that it believes to lead, is told of another one, and asks that. A request
that is in doubt is repeated only where repeating it does no harm: the caller says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from attrs import define, field

from novacron_agreement.effects import Reason
from novacron_agreement.forwarding import Kind, Outcome, Remote, Settle
from novacron_agreement.peers import ByteStream

# How long to wait before a request is made again where nobody leads, or all are busy.
AGAIN_S: Final = 0.02


class Unanswered(Exception):
    """No member served a request in time.

    Attributes:
        outcome: What the last one that was asked said.
        in_doubt: Whether it may still take effect, or have taken it.
    """

    def __init__(self, message: str, outcome: Outcome, *, in_doubt: bool) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.in_doubt = in_doubt


@define(eq=False)
class Client:
    """Asks the members of one cluster.

    Args:
        open_stream: A stream for requests to a member by its name; blocks, and raises when that
            fails.
        members: The names of those to ask when nobody is known to lead.
        local: Serves requests in this process, if its node is a member: its name, and what takes a
            request as `forwarding.serve` hands it over.
    """

    open_stream: Callable[[str], ByteStream]
    members: Callable[[], Iterable[str]]
    local: Callable[[], tuple[str, Callable[[Kind, bytes, Settle], None]] | None]
    leader: str | None = field(default=None, init=False)
    _remotes: dict[str, Remote] = field(factory=dict, init=False)
    _opening: threading.Lock = field(factory=threading.Lock, init=False)
    _turn: int = field(default=0, init=False)

    async def ask(
        self, kind: Kind, command: bytes, timeout_s: float, *, repeatable: bool = True
    ) -> bytes:
        """The answer to a request.

        Raises: Unanswered. A request that was refused as senseless, or as too large, is not made
            again, and one that is in doubt only if it is ``repeatable``.
        """
        ends_s = time.monotonic() + timeout_s
        in_doubt = False
        trouble = "no member is known"
        outcome = Outcome(Reason.NOT_LEADER)
        while (left_s := ends_s - time.monotonic()) > 0:
            member = self._choose()
            if member is not None:
                try:
                    outcome = await asyncio.wait_for(self._one(member, kind, command), left_s)
                    trouble = outcome.answer.decode(errors="replace") or outcome.reason
                except TimeoutError:
                    in_doubt = True
                    break
                # Whatever a transport raises: it was not asked.
                except Exception as error:
                    outcome, trouble = Outcome(Reason.NOT_LEADER), str(error)
                if not outcome.reason:
                    self.leader = member
                    return outcome.answer
                in_doubt = in_doubt or outcome.reason == Reason.UNCERTAIN
                if outcome.reason in (Reason.INVALID, Reason.TOO_LARGE):
                    break
                if in_doubt and not repeatable:
                    break
                known = outcome.leader
                self.leader = known if known != member else None
                if self.leader is not None:
                    continue
            await asyncio.sleep(min(AGAIN_S, max(0.0, ends_s - time.monotonic())))
        raise Unanswered(f"{member or 'nobody'}: {trouble}", outcome, in_doubt=in_doubt)

    def close(self) -> None:
        for remote in self._remotes.values():
            remote.close()

    def _choose(self) -> str | None:
        """The leader; this member itself, which knows best; or one after the other."""
        if self.leader is not None:
            return self.leader
        local = self.local()
        names = sorted(self.members())
        if local is not None:
            names = [local[0], *(name for name in names if name != local[0])]
        if not names:
            return None
        self._turn += 1
        return names[(self._turn - 1) % len(names)]

    async def _one(self, member: str, kind: Kind, command: bytes) -> Outcome:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def settle(outcome: Outcome) -> None:
            def tell() -> None:
                if not future.done():
                    future.set_result(outcome)

            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell)

        local = self.local()
        if local is not None and local[0] == member:
            local[1](kind, command, settle)
        else:
            remote = self._remotes.get(member)
            if remote is None or remote.broken.is_set():
                remote = await asyncio.to_thread(self._open, member)
            remote.ask(kind, command, settle)
        return await future

    def _open(self, member: str) -> Remote:
        with self._opening:  # those who wait find what the first one has opened
            remote = self._remotes.get(member)
            if remote is None or remote.broken.is_set():
                remote = self._remotes[member] = Remote(self.open_stream(member))
            return remote
