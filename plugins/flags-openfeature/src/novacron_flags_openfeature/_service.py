"""The flags as a service of the node: asked before each move, told of each end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from attrs import asdict, define, field
from novacron import MoveContext, MoveFacts, NodeFacts, NotFound, NovacronError, OperationEvent

from novacron_flags_openfeature._settings import FOLDER, FlagsSettings

if TYPE_CHECKING:
    from novacron import Node

    from novacron_flags_openfeature._decisions import Rollback
    from novacron_flags_openfeature._provider import Client
    from novacron_flags_openfeature._rollout import Rollout

log = logging.getLogger("novacron.flags")

# The kernel's words before it makes another attempt.
ANEW: Final = "beginning anew"
FAILED_MAX: Final = 100


# The services of the nodes that run in this process: hooks are told which node they are for.
_running: Final[dict[Path, FlagsService]] = {}


def running(node: NodeFacts) -> FlagsService | None:
    """The service of a node; None while its flags are off."""
    return _running.get(node.state_dir)


@define(eq=False)
class FlagsService:
    """The service ``flags``."""

    name: ClassVar[str] = "flags"
    Settings: ClassVar[type] = FlagsSettings

    settings: Any
    node: Node
    rollout: Rollout = field(init=False)
    _client: Client | None = field(default=None, init=False)
    _failed: dict[str, tuple[MoveFacts, str, bool]] = field(factory=dict, init=False)
    _tasks: set[asyncio.Task[None]] = field(factory=set, init=False)

    async def start(self) -> None:
        # What evaluates flags is loaded only where they are on: each command loads this module.
        from novacron_flags_openfeature._provider import Client, make_provider
        from novacron_flags_openfeature._rollout import make_rollout

        facts = self.node.facts
        provider = make_provider(self.settings, facts.state_dir / FOLDER)
        self._client = await asyncio.to_thread(Client, provider)
        self.rollout = make_rollout(self.settings, facts.name, facts.state_dir, self._client)
        self.rollout.on_rollback = self._tell
        _running[facts.state_dir] = self

    async def stop(self) -> None:
        _running.pop(self.node.facts.state_dir, None)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            self._client.close()
            self._client = None

    # What the hooks bring.

    def choose(
        self, domain: str, chosen: str, available: Sequence[str], move: MoveContext
    ) -> str | None:
        return self.rollout.choose(domain, chosen, available, move)

    def move_ended(self, move: MoveFacts, moved: bool, reason: str) -> None:
        if moved:
            self.rollout.ended(move, None)
            return
        # Whether the kernel would begin anew is told by the operation's next event.
        session = self.node.sessions.get(move.session)
        up = session is not None and session.link is not None and session.link.connected
        self._failed[move.session] = (move, reason, up)
        while len(self._failed) > FAILED_MAX:  # of operations that never said what became of them
            del self._failed[next(iter(self._failed))]

    def operation_told(self, event: OperationEvent) -> None:
        if not self._failed or event.kind not in ("message", "state"):
            return
        try:
            operation = self.node.operations.get(event.operation)
        except NotFound:
            return
        failed = self._failed.get(str(operation.progress.get("session", "")))
        if failed is None:
            return
        if event.kind == "state":
            facts = (event.data.get("error") or {}).get("facts") or {}
            again = bool(facts.get("again"))
        elif ANEW in str(event.data.get("text", "")):
            again = True
        else:
            return
        from novacron_flags_openfeature._blame import Failure

        move, reason, up = self._failed.pop(failed[0].session)
        self.rollout.ended(move, Failure(reason=reason, again=again, link_up=up))

    # What is told.

    def _tell(self, rollback: Rollback, session: str) -> None:
        """Say it where operators and programs look: the move's operation, and the log of record."""
        text = f"flag {rollback.flag}: {rollback.value} is rolled back: {rollback.why}"
        operation = ""
        for one in reversed(self.node.operations.list()):
            if session and one.progress.get("session") == session:
                operation = one.id
                one.tell("message", {"text": text, "flag": asdict(rollback)})
                break
        detail = asdict(rollback)
        task = asyncio.get_running_loop().create_task(self._log(operation, detail))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _log(self, operation: str, detail: dict[str, Any]) -> None:
        try:
            await self.node.operations.log.append(operation, "flag-rolled-back", detail)
        except (OSError, NovacronError) as error:
            log.error("the rollback is not in the operation log: %s", error)
