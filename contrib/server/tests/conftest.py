"""A node small enough to hold in the hand: real operations, a real socket, machines of paper."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from novacron import (
    Cancelled,
    ConfigError,
    Conflict,
    LogEntry,
    MachineSpec,
    MigrationPlan,
    MoveEstimate,
    NodeFacts,
    NotFound,
    Obstacle,
    Operation,
    OperationRequest,
    Operations,
    PluginManager,
    PluginSource,
    Refusal,
    TransportError,
    hookimpl,
)
from novacron_server import ApiService, ApiSettings
from novacron_server._client import Client

T = TypeVar("T")
DEADLINE_S = 20.0


# What stands in the way of every move to gamma; its node writes more than words.
OBSTACLES = (
    Obstacle(
        code="qemu.older",
        what="its QEMU is older",
        cure="install a newer one",
        blocks=False,
        side="target",
    ),
    Obstacle(
        code="cpu.feature-missing",
        what="its processor has what gamma has not:\n\x1b[2Javx2",
        cure="set its cpu to Westmere",
        side="target",
        facts={"setting": "cpu", "value": "Westmere", "missing": ["avx2"]},
    ),
)


class Policy:
    """A plugin that refuses what is done to a machine called ``sacred``."""

    NOVACRON_API = 1

    @hookimpl
    def novacron_check_operation(self, request: OperationRequest) -> Refusal | None:
        if request.machine == "sacred":
            return Refusal(reason="it is sacred", hint="choose another")
        return None


class ListLog:
    """An operation log in memory."""

    name = "list"
    Settings = object

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, Mapping[str, Any]]] = []

    async def append(self, operation: str, event: str, detail: Mapping[str, Any]) -> LogEntry:
        self.entries.append((operation, event, detail))
        return LogEntry(
            sequence=len(self.entries),
            time="",
            node="alpha",
            operation=operation,
            event=event,
            detail=detail,
            previous="",
            digest="",
        )


class PaperNode:
    """Satisfies the API's `Host` with real `Operations`; its machines are dictionaries."""

    def __init__(self, state_dir: Path) -> None:
        self.facts = NodeFacts(name="alpha", state_dir=state_dir)
        self.manager = PluginManager.load(
            sources=[
                PluginSource(
                    name="policy", distribution="novacron-policy", version="1", plugin=Policy()
                )
            ]
        )
        self.log = ListLog()
        self.operations = Operations(
            folder=state_dir / "operations",
            facts=self.facts,
            manager=self.manager,
            log=self.log,  # type: ignore[arg-type]
        )
        self.operations.load()
        self.state_dir = state_dir
        self.known: dict[str, dict[str, Any]] = {}
        self.stopping = threading.Event()
        # A move waits here for the test: rounds that it may go on with.
        self.rounds = asyncio.Semaphore(0)
        self.fault: Exception | None = None

    async def machines(self) -> list[dict[str, Any]]:
        return list(self.known.values())

    async def machine(self, name: str) -> dict[str, Any]:
        if self.fault is not None:
            raise self.fault
        if name not in self.known:
            raise NotFound(f"there is no machine {name!r}", hint="see `novacron machine list`")
        return self.known[name]

    async def submit(self, request: OperationRequest, *, key: str = "") -> Operation:
        if request.kind == "create":
            if request.parameters["driver"] != "paper":
                raise ConfigError("no driver of that name", hint="use 'paper'")
            if request.machine in self.known and not self.operations.with_key(key, request):
                raise Conflict(f"there is a machine {request.machine!r} already")
        else:
            await self.machine(request.machine)
        work = getattr(self, f"_{request.kind}")
        return await self.operations.begin(request, work, key=key)

    async def _create(self, operation: Operation) -> dict[str, Any]:
        asked = operation.request
        self.known[asked.machine] = {
            "name": asked.machine,
            "driver": asked.parameters["driver"],
            "memory_bytes": asked.parameters["memory_bytes"],
            "settings": asked.parameters["settings"],
            "state": "running" if asked.parameters["start"] else "stopped",
            "owner": "alpha",
            "epoch": 1,
            "note": "",
            "facts": {},
        }
        return {"state": self.known[asked.machine]["state"]}

    def _become(self, state: str) -> Callable[[Operation], Coroutine[Any, Any, None]]:
        async def work(operation: Operation) -> None:
            self.known[operation.request.machine]["state"] = state

        return work

    @property
    def _start(self) -> Any:
        return self._become("running")

    _resume = _start

    @property
    def _stop(self) -> Any:
        return self._become("stopped")

    @property
    def _pause(self) -> Any:
        return self._become("paused")

    async def _delete(self, operation: Operation) -> None:
        stopped = self.known[operation.request.machine]["state"] == "stopped"
        if not stopped and not operation.request.parameters.get("force"):
            raise Conflict("it runs", hint="stop it first")
        del self.known[operation.request.machine]

    async def _migrate(self, operation: Operation) -> dict[str, Any]:
        if operation.request.parameters["target"] == "nowhere":
            raise TransportError("nowhere does not answer", truth="the machine runs on alpha")
        cancelled = asyncio.Event()

        async def cancel() -> None:
            cancelled.set()

        operation.on_cancel(cancel)
        operation.enter("copy")
        for number in range(1, 4):
            waiting = asyncio.create_task(self.rounds.acquire())
            stop = asyncio.create_task(cancelled.wait())
            await asyncio.wait([waiting, stop], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            stop.cancel()
            if cancelled.is_set():
                raise Cancelled("cancelled", truth="the machine runs on alpha")
            operation.report(
                round=number,
                done_bytes=number * 1000,
                remaining_bytes=3000 - number * 1000,
                total_bytes=3000,
                wire_bytes=number * 100,
                rate_bytes_per_s=1e6,
                eta_s=3 - number,
            )
        operation.report(downtime_ms=12)
        return {"node": operation.request.parameters["target"], "downtime_ms": 12}

    async def plan(self, machine: str, parameters: dict[str, Any]) -> MigrationPlan:
        known = await self.machine(machine)
        spec = MachineSpec(
            name=machine, driver=known["driver"], memory_bytes=known["memory_bytes"], settings={}
        )
        return MigrationPlan(
            machine=spec,
            source="alpha",
            target=parameters["target"],
            mode=parameters.get("mode", "internet"),
            providers={"transport": "tcp"},
            max_downtime_ms=parameters.get("max_downtime_ms", 300),
            rate_bytes_per_s=parameters.get("rate_bytes_per_s"),
            estimate=MoveEstimate(bytes=(1000, 2000, 3000), seconds=(1.0, 2.0, 3.0)),
            round_trip_ms=80.0,
            obstacles=OBSTACLES if parameters["target"] == "gamma" else (),
        )

    async def adjust(self, operation_id: str, wish: dict[str, Any]) -> Operation:
        operation = self.operations.get(operation_id)
        if operation.finished:
            raise Conflict(f"{operation_id} is no migration under way")
        operation.report(**wish)
        return operation

    def console(self, name: str) -> Path:
        return self.state_dir / f"{name}.console"

    def console_log(self, name: str) -> Path:
        return self.state_dir / f"{name}.log"

    async def peers(self) -> list[dict[str, Any]]:
        return [
            {"name": "beta", "address": "b:1", "reachable": True, "round_trip_ms": 80.5},
            {"name": "gamma", "address": "c:1", "reachable": False, "error": "refused"},
        ]

    def status(self) -> dict[str, Any]:
        return {
            "node": "alpha",
            "mode": "internet",
            "profile": "standard",
            "providers": {"transport": "tcp"},
            "listen": "127.0.0.1:7400",
            "state_dir": str(self.state_dir),
            "started": "2026-01-01T00:00:00.000+00:00",
            "machines": len(self.known),
            "sessions": 0,
            "plugins": sorted(self.manager.plugins),
            "failures": [],
        }

    def request_stop(self) -> None:
        self.stopping.set()


class Running:
    """An API that serves in a thread of its own."""

    def __init__(self, state_dir: Path, settings: ApiSettings) -> None:
        self.settings = settings
        self.state_dir = state_dir
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.node: PaperNode = self.call(self._make())
        self.service = ApiService(settings, self.node)
        self.call(self.service.start())

    async def _make(self) -> PaperNode:
        return PaperNode(self.state_dir)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE_S)

    def let(self, rounds: int) -> None:
        """Let a move go on for some rounds."""
        for _ in range(rounds):
            self.loop.call_soon_threadsafe(self.node.rounds.release)

    def until(self, condition: Callable[[], bool]) -> None:
        """Return when a condition of the node's loop holds."""

        async def look() -> None:
            async with asyncio.timeout(DEADLINE_S):
                # What a connection's end changes has no event to wait for.
                while not condition():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)

        self.call(look())

    def client(self) -> Client:
        return Client(self.service.path, timeout_s=DEADLINE_S)

    def close(self) -> None:
        self.call(self.service.stop())
        self.call(self.node.operations.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(DEADLINE_S)
        self.loop.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    server = Running(tmp_path, ApiSettings(heartbeat_s=0.2, stall_s=0.5))
    yield server
    server.close()


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with running.client() as client:
        yield client


@pytest.fixture
def start_api(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start an API with settings of the test's own."""
    started: list[Running] = []

    def start(state_dir: Path = tmp_path, **settings: Any) -> Running:
        started.append(Running(state_dir, ApiSettings(**settings)))
        return started[-1]

    yield start
    for server in started:
        server.close()
