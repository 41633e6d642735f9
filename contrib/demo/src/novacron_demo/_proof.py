"""What the demo concludes from what it saw: pure functions of times and logs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from attrs import frozen

_TICK: Final = re.compile(rb"tick (\d+)\r?\n")
_RUN: Final = re.compile(r"(begin|end) (\d+) (\S+)")


def longest_gap_s(acks: Sequence[float], begin: float, end: float) -> float:
    """The longest time without an acknowledgement that touches the time from begin to end.

    A gap that reaches out of that time counts whole: the client felt all of it. What was before
    the first and after the last acknowledgement counts as far as it lies inside.

    Args:
        acks: When acknowledgements came, ascending.
    """
    if not acks:
        return end - begin
    gaps = [after - before for before, after in pairwise(acks) if before < end and after > begin]
    return max([*gaps, acks[0] - begin, end - acks[-1]])


def longest_gap_outside_s(acks: Sequence[float], moves: Iterable[tuple[float, float]]) -> float:
    """The longest gap that touches none of the moves: what this host does anyway."""
    times = list(moves)
    gaps = [
        after - before
        for before, after in pairwise(acks)
        if not any(before < end and after > begin for begin, end in times)
    ]
    return max(gaps, default=0.0)


@frozen(kw_only=True)
class Stretches:
    """When a machine executed, as its processes noted it in one file.

    Attributes:
        count: Stretches of execution.
        rests_s: How long it stood still between one and the next.
        faults: What contradicts "never two at once", in words; empty if nothing does.
    """

    count: int
    rests_s: tuple[float, ...]
    faults: tuple[str, ...]


def check_stretches(text: str, machine: str) -> Stretches:
    """Read ``begin|end NANOSECONDS MACHINE`` lines and look for two stretches that overlap.

    The processes write on their own, so lines need not be in the order of their times.
    """
    events: list[tuple[int, bool]] = []
    faults: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _RUN.fullmatch(line)
        if match is None:
            faults.append(f"line {number} of the log of executions cannot be read: {line!r:.60}")
        elif match[3] == machine:
            events.append((int(match[2]), match[1] == "begin"))
    running = count = 0
    stopped_at: int | None = None
    rests: list[float] = []
    for at, begins in sorted(events):  # at the same instant an end is before a begin
        running += 1 if begins else -1
        count += begins
        if not 0 <= running <= 1:
            faults.append(f"{running} sides executed at {at} ns")
        if not begins:
            stopped_at = at
        elif stopped_at is not None:
            rests.append((at - stopped_at) / 1e9)
    return Stretches(count=count, rests_s=tuple(rests), faults=tuple(faults))


@frozen(kw_only=True)
class Ticks:
    """What a counter on a console has counted.

    Attributes:
        count: Whole ticks.
        faults: Where it skipped or repeated, in words.
    """

    count: int
    faults: tuple[str, ...]


def check_ticks(console: bytes) -> Ticks:
    """Read ``tick N`` lines, which must count from 1 without gap or repetition.

    Args:
        console: What was printed on all nodes, joined in the order of the machine's stays: a
            line that was cut by a move is whole again then.
    """
    numbers = [int(match) for match in _TICK.findall(console)]
    faults = [
        f"tick {found} came where tick {expected} was due"
        for expected, found in zip([1, *(number + 1 for number in numbers)], numbers, strict=False)
        if found != expected
    ]
    return Ticks(count=len(numbers), faults=tuple(faults))
