"""How likely each fault of the simulator is."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class Faults:
    """How likely each fault is, as a probability for each time it could happen.

    Attributes:
        loss: A message is lost.
        duplicate: A message arrives twice.
        reorder: A message is overtaken by later ones; without it a link keeps its order.
        cut: A message finds its link cut, in both directions.
        cut_one_way: The same, in its own direction only.
        partition: A message finds all nodes split into two groups that do not reach each other.
        partition_one_way: The same, but one group still reaches the other.
        crash: A process crashes, at each event it takes and at each `Simulator.point` it passes.
        stall: A process stands still at an event it takes, and then goes on as if nothing had been:
            a paused virtual machine, a process that waits for memory.
        jump: A process's `Simulator.clock` is set, at an event it takes.
        disk: `Simulator.disk_fails` says yes.
        slow: `Simulator.disk_ms` says that a write takes long.
        corrupt: A sector of a `SimulatedDisk` is not what was written, each time it is opened.
        delay_ms: The least and the most that a message is under way.
        reorder_ms: The most that an overtaken message is late.
        cut_ms: The most that a cut lasts.
        partition_ms: The most that a partition lasts.
        restart_ms: The most that a crashed process is away.
        stall_ms: The most that a process stands still.
        slow_ms: The most that a slow write takes.
        skew_ms: The most that a process's clock is ahead or behind.
        jump_ms: The most by which a clock is set forward or back.
        drift: The most by which a process's clocks run fast or slow, as a share: 0.01 is 1 %.
            Unlike the faults it stays when they are over.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    cut: float = 0.0
    cut_one_way: float = 0.0
    partition: float = 0.0
    partition_one_way: float = 0.0
    crash: float = 0.0
    stall: float = 0.0
    jump: float = 0.0
    disk: float = 0.0
    slow: float = 0.0
    corrupt: float = 0.0
    delay_ms: tuple[int, int] = (1, 20)
    reorder_ms: int = 200
    cut_ms: int = 300
    partition_ms: int = 1000
    restart_ms: int = 300
    stall_ms: int = 500
    slow_ms: int = 100
    skew_ms: int = 0
    jump_ms: int = 10_000
    drift: float = 0.0


NO_FAULTS = Faults()
