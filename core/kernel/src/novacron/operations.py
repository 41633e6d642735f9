"""Operations: every change of the world is one.

An operation has an id, phases, progress and events; policy is asked before it and the log written
before and after it. It can be cancelled and watched, and it is kept on disk, so that the answer to
"what became of it?" outlives the node.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import cattrs
from attrs import define, field

from novacron import durable
from novacron.errors import (
    Cancelled,
    Conflict,
    InternalError,
    NotFound,
    NovacronError,
    Refused,
)
from novacron.hookspecs.compliance import OperationLog, OperationRequest
from novacron.hookspecs.node import NodeFacts, OperationEvent
from novacron.loader import Objection, PluginManager

log = logging.getLogger("novacron.operations")

EVENTS_KEPT: Final = 1000
FINISHED_KEPT: Final = 500


class OperationState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"  # the node ended in the middle of it


@define(kw_only=True, eq=False)
class Operation:
    """One change of the world.

    Attributes:
        id: Unique, sortable by time.
        request: What was asked, and by whom.
        state: See `OperationState`.
        phase: What it does now, in the words of its kind.
        progress: Figures for people and programs, by name; units are in the names.
        result: JSON-like, once it has succeeded.
        error: The error's members, once it has failed.
        began, ended: UTC, ISO 8601; ``ended`` is empty while it runs.
        key: The idempotency key it came with, empty if none.
    """

    id: str
    request: OperationRequest
    state: OperationState = OperationState.RUNNING
    phase: str = "requested"
    progress: dict[str, Any] = field(factory=dict)
    result: dict[str, Any] = field(factory=dict)
    error: dict[str, Any] = field(factory=dict)
    began: str = ""
    ended: str = ""
    key: str = ""
    _events: deque[OperationEvent] = field(factory=lambda: deque(maxlen=EVENTS_KEPT), init=False)
    _sequence: int = field(default=0, init=False)
    _changed: asyncio.Event = field(factory=asyncio.Event, init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)
    _canceller: Callable[[], Awaitable[None]] | None = field(default=None, init=False)
    _observe: Callable[[OperationEvent], None] = field(default=lambda event: None, init=False)

    @property
    def finished(self) -> bool:
        return self.state is not OperationState.RUNNING

    def tell(self, kind: str, data: Mapping[str, Any]) -> None:
        """Record an event and wake those who watch."""
        self._sequence += 1
        event = OperationEvent(
            sequence=self._sequence, operation=self.id, kind=kind, data=dict(data)
        )
        self._events.append(event)
        self._observe(event)
        self._changed.set()
        self._changed = asyncio.Event()

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self.phase = phase
        self.tell("phase", {"phase": phase})

    def report(self, **figures: Any) -> None:
        """Renew some of the progress figures."""
        self.progress |= figures
        self.tell("progress", self.progress)

    def on_cancel(self, canceller: Callable[[], Awaitable[None]] | None) -> None:
        """Say how this operation is cancelled from here on; None: it no longer can be."""
        self._canceller = canceller

    async def events(self, *, after: int = 0) -> AsyncIterator[OperationEvent]:
        """Events with a higher sequence, as they come, until the operation has ended.

        Events older than the last thousand are gone; their sequence numbers are missing then.
        """
        while True:
            changed, finished = self._changed, self.finished
            for event in [event for event in self._events if event.sequence > after]:
                after = event.sequence
                yield event
            if finished:
                return
            await changed.wait()

    async def wait(self) -> None:
        """Return when the operation has ended, however it did."""
        while not self.finished:
            await self._changed.wait()

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.request.kind,
            "machine": self.request.machine,
            "subject": self.request.subject,
            "parameters": dict(self.request.parameters),
            "state": self.state.value,
            "phase": self.phase,
            "progress": self.progress,
            "result": self.result,
            "error": self.error or None,
            "began": self.began,
            "ended": self.ended or None,
            "key": self.key,
        }


Work = Callable[[Operation], Awaitable[dict[str, Any] | None]]


def new_id(prefix: str) -> str:
    """An id that sorts by time and cannot be guessed."""
    return f"{prefix}-{time.time_ns() // 1_000_000:011x}{secrets.token_hex(5)}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@define(kw_only=True, eq=False)
class Operations:
    """All operations of a node."""

    folder: Path
    facts: NodeFacts
    manager: PluginManager
    log: OperationLog
    _all: dict[str, Operation] = field(factory=dict, init=False)
    _keys: dict[str, str] = field(factory=dict, init=False)

    def load(self) -> None:
        """Read what earlier runs of the node left; what was under way is marked interrupted."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(self.folder.glob("op-*.json")):
            try:
                operation = _from_json(durable.read_json(path))
            except (NovacronError, cattrs.BaseValidationError, KeyError, TypeError) as error:
                log.error("%s is left alone: %s", path, error)
                continue
            if not operation.finished:
                operation.state = OperationState.INTERRUPTED
                operation.ended = now()
                self._save(operation)
            self._all[operation.id] = operation
            if operation.key:
                self._keys[operation.key] = operation.id
        self._prune()

    def list(self) -> list[Operation]:
        """All that are kept, the oldest first."""
        return sorted(self._all.values(), key=lambda operation: operation.id)

    def get(self, operation_id: str) -> Operation:
        """Raises NotFound."""
        try:
            return self._all[operation_id]
        except KeyError:
            raise NotFound(
                f"there is no operation {operation_id!r}", hint="see `novacron operation list`"
            ) from None

    def with_key(self, key: str, request: OperationRequest) -> Operation | None:
        """The operation that the same request with the same key began.

        Raises: Conflict if the key came with another request.
        """
        operation_id = self._keys.get(key)
        if not key or operation_id is None:
            return None
        operation = self._all[operation_id]
        if operation.request != request:
            raise Conflict(
                f"the idempotency key {key!r} was used for another request ({operation_id})",
                hint="use a fresh key for each request",
            )
        return operation

    async def begin(
        self, request: OperationRequest, work: Work, *, key: str = "", resumed: str = ""
    ) -> Operation:
        """Ask the policies, record, and do the work in a task of its own.

        Args:
            request: What to do and who asks.
            work: Does it; what it returns is the operation's result.
            key: Idempotency key; the same request with it gives the same operation again.
            resumed: The id of an operation that an earlier run of the node left: it goes on, and
                the policies were asked already.
        Returns: the operation, under way.
        Raises: Refused with each objection, Conflict for a key used otherwise, OSError if the
            record could not be written: nothing was begun.
        """
        if (same := self.with_key(key, request)) is not None:
            return same
        operation = Operation(id=resumed or new_id("op"), request=request, key=key, began=now())
        detail = {"kind": request.kind, "machine": request.machine, "subject": request.subject}
        if not resumed:
            objections = self.manager.check(
                "novacron_check_operation", request=request, node=self.facts
            )
            if objections:
                reasons = [objection.refusal.reason for objection in objections]
                await self.log.append(operation.id, "refused", {**detail, "reasons": reasons})
                raise refused(f"{request.kind} of {request.machine!r}", objections)
            await self.log.append(
                operation.id, "requested", {**detail, "parameters": dict(request.parameters)}
            )
        operation._observe = lambda event: self.manager.notify(
            "novacron_on_operation_event", event=event, node=self.facts
        )
        self._save(operation)
        self._all[operation.id] = operation
        if key:
            self._keys[key] = operation.id
        operation._task = asyncio.create_task(self._run(operation, work), name=operation.id)
        return operation

    async def _run(self, operation: Operation, work: Work) -> None:
        state = OperationState.SUCCEEDED
        error: NovacronError | None = None
        try:
            operation.result = await work(operation) or {}
        except Cancelled as cancelled:
            state, error = OperationState.CANCELLED, cancelled
        except NovacronError as failed:
            state, error = OperationState.FAILED, failed
        except asyncio.CancelledError:
            # The node is ending. The operation is found unfinished and taken up or marked then.
            raise
        # The boundary of the operation: a fault of ours must end it and be told, not vanish.
        except Exception as fault:
            log.exception("operation %s failed by a fault of ours", operation.id)
            state = OperationState.FAILED
            error = InternalError(
                f"{type(fault).__name__}: {fault}", hint="report this with the node's log"
            )
            if isinstance(fault, OSError):
                error = NovacronError(str(fault), hint="repair what the message names and retry")
        await self._finish(operation, state, error)

    async def _finish(
        self, operation: Operation, state: OperationState, error: NovacronError | None
    ) -> None:
        operation.error = error.to_json() if error else {}
        operation.ended = now()
        operation.on_cancel(None)
        operation.state = state
        try:
            detail = {"kind": operation.request.kind, "machine": operation.request.machine}
            detail |= {"error": error.message} if error else {}
            await self.log.append(operation.id, state.value, detail)
            self._save(operation)
        except (OSError, NovacronError) as unwritten:
            log.error("the end of %s could not be recorded: %s", operation.id, unwritten)
        operation.tell("state", {"state": state.value, "error": operation.error or None})
        self._prune()

    async def cancel(self, operation_id: str) -> Operation:
        """Ask an operation to stop; returns once it has been asked.

        Raises: NotFound; Conflict if it has ended or cannot be cancelled any more.
        """
        operation = self.get(operation_id)
        if operation.finished:
            raise Conflict(f"{operation_id} has ended: {operation.state}", hint="nothing to cancel")
        if operation._canceller is None:
            raise Conflict(
                f"{operation_id} cannot be cancelled in its phase {operation.phase!r}",
                hint=f"see `novacron operation watch {operation_id}` for how it ends",
            )
        await operation._canceller()
        return operation

    async def stop(self) -> None:
        """End the tasks (the node stops). Their operations go on when the node is back."""
        tasks = [op._task for op in self._all.values() if op._task and not op._task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _save(self, operation: Operation) -> None:
        durable.write_json(self.folder / f"{operation.id}.json", operation.to_json())

    def _prune(self) -> None:
        finished = [operation for operation in self.list() if operation.finished]
        for operation in finished[:-FINISHED_KEPT]:
            del self._all[operation.id]
            self._keys.pop(operation.key, None)
            (self.folder / f"{operation.id}.json").unlink(missing_ok=True)


def _from_json(values: Mapping[str, Any]) -> Operation:
    request = OperationRequest(
        kind=values["kind"],
        machine=values["machine"],
        subject=values["subject"],
        parameters=values["parameters"],
    )
    return Operation(
        id=values["id"],
        request=request,
        state=OperationState(values["state"]),
        phase=values["phase"],
        progress=values["progress"],
        result=values["result"],
        error=values["error"] or {},
        began=values["began"],
        ended=values["ended"] or "",
        key=values["key"],
    )


def refused(what: str, objections: list[Objection]) -> Refused:
    """One error for all the objections."""
    reasons = "; ".join(
        f"{objection.refusal.reason} ({objection.plugin})" for objection in objections
    )
    hints = "; ".join(dict.fromkeys(o.refusal.hint for o in objections if o.refusal.hint))
    return Refused(f"{what} was refused: {reasons}", hint=hints, truth="nothing was changed")
