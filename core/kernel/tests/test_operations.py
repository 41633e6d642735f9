"""Operations are asked about, recorded, watched, cancelled, and found again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from novacron import (
    API_VERSION,
    Cancelled,
    Conflict,
    MachineError,
    NodeFacts,
    NotFound,
    Operation,
    OperationRequest,
    Operations,
    OperationState,
    PluginManager,
    PluginSource,
    Refusal,
    Refused,
    hookimpl,
)

REQUEST = OperationRequest(kind="start", machine="vm", subject="local:me")


class ListLog:
    """An operation log in memory; the durable one has tests of its own."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.full = False

    async def append(self, operation: str, event: str, detail: Mapping[str, Any]) -> None:
        if self.full:
            raise OSError("no space left on the device")
        self.events.append(event)


def operations(folder: Path, log: ListLog, **hooks: Any) -> Operations:
    plugin = SimpleNamespace(NOVACRON_API=API_VERSION, **hooks)
    found = PluginSource(name="test", distribution="test", version="1", plugin=plugin)
    made = Operations(
        folder=folder,
        facts=NodeFacts(name="alpha", state_dir=folder),
        manager=PluginManager.load(sources=[found], strict=True),
        log=log,  # type: ignore[arg-type]
    )
    made.load()
    return made


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


async def nothing(operation: Operation) -> dict[str, Any]:
    operation.enter("only phase")
    operation.report(done_bytes=1)
    return {"answer": 42}


def test_an_operation_succeeds_with_its_result_and_is_recorded_before_and_after(
    tmp_path: Path,
) -> None:
    log = ListLog()

    async def test() -> None:
        operation = await operations(tmp_path, log).begin(REQUEST, nothing)
        kinds = [event.kind async for event in operation.events()]
        assert kinds == ["phase", "progress", "state"]
        assert operation.state is OperationState.SUCCEEDED
        assert operation.result == {"answer": 42}
        assert log.events == ["requested", "succeeded"]

    run(test)


def test_events_go_on_after_the_last_one_seen(tmp_path: Path) -> None:
    async def test() -> None:
        operation = await operations(tmp_path, ListLog()).begin(REQUEST, nothing)
        await operation.wait()
        assert [event.sequence async for event in operation.events(after=1)] == [2, 3]

    run(test)


def test_a_refusal_by_policy_is_recorded_and_nothing_is_begun(tmp_path: Path) -> None:
    log = ListLog()

    @hookimpl
    def novacron_check_operation() -> Refusal:
        return Refusal(reason="not on a Friday", hint="wait for Monday")

    async def test() -> None:
        all_of_them = operations(tmp_path, log, novacron_check_operation=novacron_check_operation)
        with pytest.raises(Refused, match="not on a Friday") as refusal:
            await all_of_them.begin(REQUEST, nothing)
        assert refusal.value.hint == "wait for Monday"
        assert all_of_them.list() == []
        assert log.events == ["refused"]

    run(test)


def test_an_operation_that_cannot_be_recorded_is_not_begun(tmp_path: Path) -> None:
    log = ListLog()
    log.full = True

    async def test() -> None:
        all_of_them = operations(tmp_path, log)
        with pytest.raises(OSError, match="no space"):
            await all_of_them.begin(REQUEST, nothing)
        assert all_of_them.list() == []

    run(test)


def test_a_failure_keeps_its_code_hint_and_truth(tmp_path: Path) -> None:
    async def fails(operation: Operation) -> None:
        raise MachineError("it broke", hint="mend it", truth="vm is stopped")

    async def test() -> None:
        operation = await operations(tmp_path, ListLog()).begin(REQUEST, fails)
        await operation.wait()
        assert operation.state is OperationState.FAILED
        assert operation.error["code"] == "machine"
        assert operation.error["truth"] == "vm is stopped"

    run(test)


def test_a_fault_of_ours_ends_the_operation_and_says_so(tmp_path: Path) -> None:
    async def faulty(operation: Operation) -> None:
        raise ZeroDivisionError("ours")

    async def test() -> None:
        operation = await operations(tmp_path, ListLog()).begin(REQUEST, faulty)
        await operation.wait()
        assert operation.error["code"] == "internal"
        assert "ours" in operation.error["message"]

    run(test)


def test_the_same_key_with_the_same_request_gives_the_same_operation(tmp_path: Path) -> None:
    async def test() -> None:
        all_of_them = operations(tmp_path, ListLog())
        first = await all_of_them.begin(REQUEST, nothing, key="k")
        assert await all_of_them.begin(REQUEST, nothing, key="k") is first
        other = OperationRequest(kind="stop", machine="vm", subject="local:me")
        with pytest.raises(Conflict, match="another request"):
            await all_of_them.begin(other, nothing, key="k")
        await first.wait()

    run(test)


def test_cancelling_asks_the_work_to_stop_and_ends_as_cancelled(tmp_path: Path) -> None:
    async def test() -> None:
        stop = asyncio.Event()

        async def cancel() -> None:
            stop.set()

        async def works(operation: Operation) -> None:
            operation.on_cancel(cancel)
            operation.enter("working")
            await stop.wait()
            raise Cancelled("cancelled", truth="vm runs")

        all_of_them = operations(tmp_path, ListLog())
        operation = await all_of_them.begin(REQUEST, works)
        async for event in operation.events():
            if event.kind == "phase":
                await all_of_them.cancel(operation.id)
        assert operation.state is OperationState.CANCELLED
        with pytest.raises(Conflict, match="has ended"):
            await all_of_them.cancel(operation.id)
        with pytest.raises(NotFound):
            await all_of_them.cancel("op-none")

    run(test)


def test_an_operation_that_cannot_be_cancelled_says_in_which_phase_it_is(tmp_path: Path) -> None:
    async def test() -> None:
        go = asyncio.Event()

        async def works(operation: Operation) -> None:
            operation.enter("commit")
            await go.wait()

        all_of_them = operations(tmp_path, ListLog())
        operation = await all_of_them.begin(REQUEST, works)
        async for event in operation.events():
            if event.kind == "phase":
                with pytest.raises(Conflict, match="'commit'"):
                    await all_of_them.cancel(operation.id)
                go.set()

    run(test)


def test_finished_operations_and_interrupted_ones_are_found_after_a_restart(
    tmp_path: Path,
) -> None:
    async def hangs(operation: Operation) -> None:
        await asyncio.Event().wait()

    async def test() -> None:
        before = operations(tmp_path, ListLog())
        ended = await before.begin(REQUEST, nothing, key="k")
        await ended.wait()
        hanging = await before.begin(REQUEST, hangs)
        await before.stop()
        after = operations(tmp_path, ListLog())
        assert after.get(ended.id).result == {"answer": 42}
        assert after.get(hanging.id).state is OperationState.INTERRUPTED
        assert (await after.begin(REQUEST, nothing, key="k")).id == ended.id

    run(test)
