"""What a host has and what its node knows, in the simulated world of ownership."""

from __future__ import annotations

from typing import Any

from attrs import define, field
from novacron_agreement.leases import Lease, Watch
from novacron_agreement.ownership import Record
from novacron_dwcp import handover as ho

from novacron_testkit.disk import SimulatedDisk
from novacron_testkit.ownership.member import Member
from novacron_testkit.ownership.register import Registrar


@define(eq=False)
class Process:
    """A machine's process on a host. It outlives the node.

    Attributes:
        session: The session that it belongs to while it arrives.
        whole: Whether all of its state is here.
        wanted: Whether it is to run as soon as it may.
        running: Whether it runs: what this is all about.
        guard_ms: When its guard pauses it, on the host's steady clock.
    """

    session: str = ""
    whole: bool = True
    wanted: bool = False
    running: bool = False
    guard_ms: int = 0


@define(eq=False)
class Host:
    """What survives a crash of the node: its disk, and the processes of machines.

    Attributes:
        lives: How often the node has been started.
        journal: Of its sessions: role, terms, phase, digest.
    """

    log: SimulatedDisk
    lives: int = 0
    journal: dict[str, tuple[str, ho.Terms, ho.Phase, str]] = field(factory=dict)
    processes: dict[str, Process] = field(factory=dict)


@define(eq=False)
class Node:
    """A node's volatile state.

    Attributes:
        generation: How often its lease began anew; what is confirmed holds for one of these.
        confirmed: The generation in which a machine was last read to be this node's.
        known: The newest record that was read of each machine.
        reading: Machines whose record is being read to see whether all is as it should be.
        look_ms: When that is to be done the next time.
        breaking: Whether it is about to break a lease.
        late: Until when its newest request waits in a queue, by the request's number.
        stuck: A session whose next request is to wait for long.
    """

    member: Member
    registrar: Registrar
    lease: Lease
    watch: Watch
    generation: int = 0
    confirmed: dict[str, int] = field(factory=dict)
    known: dict[str, Record] = field(factory=dict)
    reading: set[str] = field(factory=set)
    look_ms: dict[str, int] = field(factory=dict)
    breaking: bool = False
    late: dict[int, int] = field(factory=dict)
    stuck: bytes | None = None
    tickets: dict[int, tuple[str, int, int]] = field(factory=dict)
    sessions: dict[str, Any] = field(factory=dict)  # hand-over cores
    heard: dict[str, int] = field(factory=dict)
    data: set[str] = field(factory=set)

    def session_of(self, machine: str) -> str | None:
        """The session under way here that moves a machine."""
        for name, core in self.sessions.items():
            if core.terms.machine == machine:
                return name
        return None
