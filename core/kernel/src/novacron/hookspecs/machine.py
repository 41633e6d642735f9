"""Machines: what is moved. A driver makes them, and lets them leave and arrive live.

A machine runs in a process of its own, which outlives the node: a node that restarts finds it
again by what lies in the machine's home folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from attrs import field, frozen
from novacron_dwcp import Batch

from novacron.hookspecs.node import NodeFacts
from novacron.markers import hookspec


class MachineState(StrEnum):
    """What a machine's process does now."""

    STOPPED = "stopped"  # no process, and nothing of its memory is kept
    RUNNING = "running"
    PAUSED = "paused"  # its memory is whole, and not one instruction of the guest is executed
    RECEIVING = "receiving"  # its memory is arriving; it cannot run yet
    LOST = "lost"  # there was a process and it is gone without having been asked to


@frozen(kw_only=True)
class MachineSpec:
    """What a machine is, apart from the state it is in. Travels with it.

    Attributes:
        name: Unique among all nodes that may exchange machines; ``[a-z0-9][a-z0-9-]{0,62}``.
        driver: The machine provider's name.
        memory_bytes: What the guest may use; placement counts with it.
        settings: The driver's own part; the driver checks it in `MachineDriver.check`.
        tenant: Whose it is. What machines of different tenants hold is not compared.
    """

    name: str
    driver: str
    memory_bytes: int
    settings: Mapping[str, Any] = field(factory=dict)
    tenant: str = ""


@frozen(kw_only=True)
class MoveLimits:
    """What a move may cost.

    Attributes:
        max_downtime_ms: The longest pause to aim at.
        rate_bytes_per_s: The fastest the machine's state may be read, None for no limit.
        slow_guest: Whether a guest that writes too fast may be slowed down.
        storage: What becomes of its disks, see `MoveWish`.
    """

    max_downtime_ms: int = 300
    rate_bytes_per_s: int | None = None
    slow_guest: bool = False
    storage: str = ""


@frozen(kw_only=True)
class MoveWish:
    """What the driver must know to judge a move before it begins.

    Attributes:
        storage: ``copy``: the disks go along. ``shared``: both sides reach the same ones, and the
            drivers prove it. Empty: as the machine's own settings say. Where it is not empty, it
            is also the item ``storage`` of the ``origin`` that the target's driver is shown.
        max_downtime_ms: The longest pause to aim at; 0 for the project's promise.
    """

    storage: str = ""
    max_downtime_ms: int = 0


@frozen(kw_only=True)
class Obstacle:
    """Something in the way of a move, found before it begins.

    Attributes:
        code: Stable, for programs: ``cpu.feature-missing``.
        what: What was found, and where.
        cure: What to do about it.
        blocks: Whether the move is refused; else it is only worth knowing.
        side: Who found it: ``source``, ``target`` or ``link``.
        facts: The same for programs, JSON-like; above all the cure's values.
    """

    code: str
    what: str
    cure: str
    blocks: bool = True
    side: str = "source"
    facts: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class CopyProgress:
    """How far a copy is, in bytes of machine state (before any encoding).

    Attributes:
        round: Passes over memory begun so far, from 1.
        done_bytes: Read so far, over all passes.
        remaining_bytes: What is known to be left now; it grows again as the guest writes.
        total_bytes: The machine's memory.
        dirty_bytes_per_s: How fast the guest writes, 0 while unknown.
    """

    round: int
    done_bytes: int
    remaining_bytes: int
    total_bytes: int
    dirty_bytes_per_s: int = 0


class Outgoing(Protocol):
    """The source's half of one move: a machine's state as batches, while it runs.

    `read` is called from one worker thread; everything else on the event loop.

    It may have ``aim(last_set_ms, state_bytes_per_s)``: told several times a second how fast state
    really leaves and how long the last set of pages may take, so that no buffer between the machine
    and the link is taken for the link. Without it, ``max_downtime_ms`` is all it knows.
    """

    def read(self) -> Batch | None:
        """The next batch; blocks until there is one.

        Returns: None at the end: everything has been read, the machine is paused, and nothing but
        `Machine.resume` makes it run again.
        Raises: MachineError if the machine cannot give its state; after `cancel`, MachineError.
        """
        ...

    async def converged(self) -> None:
        """Return once what is left can leave within ``max_downtime_ms``.

        The machine may already be paused when this returns. Raises MachineError if it never will
        be (the guest writes faster than it is read); the machine is as it was.
        """
        ...

    async def switch_over(self) -> None:
        """Pause the machine and let what is left out; `read` then comes to its end.

        Call it once, after `converged`, or before to force the pause whatever is left.
        """
        ...

    async def cancel(self) -> None:
        """Give up, at any time, twice is once. A `read` under way ends soon with MachineError.

        Afterwards the machine is RUNNING or PAUSED with its memory whole; the caller resumes it
        if it should run.
        """
        ...

    def progress(self) -> CopyProgress:
        """How far it is; cheap, from any thread."""
        ...


class Incoming(Protocol):
    """The destination's half of one move. `write` is called from one worker thread."""

    def write(self, batch: Batch) -> None:
        """Take one batch, in the order `Outgoing.read` gave them. Blocks while the machine cannot.

        Raises: PeerProtocolError if the batch cannot come from a sound driver, MachineError if the
        machine's process refuses it. The move is over then; call `abandon`.
        """
        ...

    async def finish(self) -> None:
        """Everything was written: load it. Afterwards the machine is PAUSED and whole.

        Raises: MachineError if it did not load or batches are missing; call `abandon` then.
        """
        ...

    async def abandon(self) -> None:
        """Give up, at any time before the machine was resumed. Twice is once.

        Afterwards no process and no file of the move is left.
        """
        ...


@runtime_checkable
class Machine(Protocol):
    """One machine on this node. All methods run on the event loop and raise MachineError if the
    machine's process fails, Conflict if the state does not allow the call (nothing is changed).

    It may have ``async examine(wish: MoveWish) -> Sequence[Obstacle]``: all that stands in the way
    of its leaving; it changes nothing.
    """

    @property
    def spec(self) -> MachineSpec: ...

    async def state(self) -> MachineState: ...

    async def start(self) -> None:
        """STOPPED or LOST to RUNNING, with empty memory."""
        ...

    async def stop(self) -> None:
        """End the process; memory is gone. From any state; STOPPED stays STOPPED."""
        ...

    async def pause(self) -> None:
        """RUNNING to PAUSED; when it returns no instruction of the guest is executed any more."""
        ...

    async def resume(self) -> None:
        """PAUSED to RUNNING. Conflict in any other state: a second resume is refused."""
        ...

    async def digest(self) -> str:
        """BLAKE3, in hex, of the guest's memory. PAUSED only, so that it means something."""
        ...

    async def send(self, limits: MoveLimits) -> Outgoing:
        """Begin to leave. RUNNING or PAUSED; the machine goes on as it was."""
        ...

    async def receive(self, origin: Mapping[str, Any]) -> Incoming:
        """Begin to arrive: STOPPED to RECEIVING. ``origin`` is what `describe` said at the source.

        Raises: Refused, with the cure, if what arrives could not run here.
        """
        ...

    def describe(self) -> Mapping[str, Any]:
        """JSON-like facts that the destination's driver needs to judge (versions, sizes).

        Some of them a plan counts with: ``resident_bytes`` is the memory that is in use (all of it,
        if that is left out), ``disk_bytes`` what the disks hold that can go along, and
        ``dirty_bytes_per_s`` how fast the guest wrote when the machine was last examined.
        """
        ...

    def console(self) -> Path:
        """A unix socket that carries the guest's console, both ways, while there is a process."""
        ...

    def console_log(self) -> Path:
        """The file with what the console has printed on this node; it may not exist yet."""
        ...


class MachineDriver(Protocol):
    """A machine provider.

    It may have ``async examine(spec: MachineSpec, origin: Mapping) -> Sequence[Obstacle]``: all
    that stands in the way of that machine's coming here; ``origin`` is what `Machine.receive`
    gets, a stranger's word, and nothing is changed.

    Attributes:
        name: What ``MachineSpec.driver`` says.
        Settings: attrs class of the section ``[machine.<name>]`` in the configuration.
    """

    name: ClassVar[str]
    Settings: ClassVar[type]

    def __init__(self, settings: Any, node: NodeFacts) -> None: ...

    def check(self, spec: MachineSpec) -> None:
        """Raise ConfigError, naming the setting, if the machine could not be made from this."""
        ...

    async def open(self, spec: MachineSpec, home: Path) -> Machine:
        """The machine whose files are in ``home`` (a folder of its own that exists, mode 0700).

        Finds a running process again and starts none. What the state is, `Machine.state` tells.
        """
        ...


@hookspec
def novacron_register_machine() -> Sequence[type[MachineDriver]]:  # type: ignore[empty-body]
    """Offer machine drivers: what a node can run and move.

    When: once, when the plugins are loaded; a driver is made when the node starts.
    Plugins asked: all; two that offer the same name are a clash that names both.
    Return: the driver classes, each with a ``name``.
    On error: the plugin is reported as failed and none of its hooks is used.
    Runs on: the loading thread; must not block.
    """
