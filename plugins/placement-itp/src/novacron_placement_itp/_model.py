"""What an evacuation is, as values: machines that must go, targets, links, and the plan.

A machine's copy is modelled as a fluid. ``wire_bytes`` are to be sent, and while they are, the
guest writes: ``dirty_bytes_per_s`` are added to what is left, so at the rate r it takes
``wire_bytes / (r - dirty_bytes_per_s)``, and a slow share of a link costs bytes as well as time.
Before the first byte a move takes ``prepare_s`` (it is planned, the target makes room, streams
find their rate), after the last one ``finish_s`` (pause, proof, hand-over); neither uses the link.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import field, frozen, validators

_AMOUNT: Final[Any] = [validators.ge(0.0), validators.lt(math.inf)]


@frozen(kw_only=True)
class Need:
    """A machine that must go.

    Attributes:
        machine: Its name.
        driver: What a target must have to run it.
        memory_bytes: What it takes at the target.
        wire_bytes: Expected on the wire if the guest wrote nothing meanwhile.
        dirty_bytes_per_s: Of the wire, that the guest adds while it is copied.
        rate_max: The fastest that one move of it can be, in bytes per second on the wire (a
            processor's limit, or what was asked); infinite for none.
        priority: Higher goes first.
        refused: Why it cannot go to a target, by the target's name.
    """

    machine: str
    driver: str = ""
    memory_bytes: int = field(default=0, validator=_AMOUNT)
    wire_bytes: float = field(default=0.0, validator=_AMOUNT)
    dirty_bytes_per_s: float = field(default=0.0, validator=_AMOUNT)
    rate_max: float = field(default=math.inf, validator=validators.gt(0.0))
    priority: int = 0
    refused: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class Target:
    """A node that can take machines.

    Attributes:
        node: Its name.
        free_memory_bytes: For machines that have not begun to move; what must stay free is taken
            off already.
        drivers: That it has.
    """

    node: str
    free_memory_bytes: int = field(validator=_AMOUNT)
    drivers: Sequence[str] = ()


@frozen(kw_only=True)
class Link:
    """A bottleneck that the ways to some targets share: a site's uplink, a target's downlink.

    Attributes:
        name: For people.
        targets: The ways to these pass through it.
        rate: Expected, bytes per second on the wire; ``low`` and ``high`` bound it with 90 %.
    """

    name: str
    targets: frozenset[str]
    rate: float = field(validator=[validators.gt(0.0), validators.lt(math.inf)])
    low: float = field(default=0.0, validator=validators.ge(0.0))
    high: float = field(default=0.0, validator=validators.ge(0.0))

    def at(self, quantile: str) -> float:
        """The rate that is expected, or the ``low`` or ``high`` one (the expected if not known)."""
        value = {"low": self.low, "high": self.high}.get(quantile, self.rate)
        return value or self.rate


@frozen(kw_only=True)
class UnderWay:
    """A move that has begun.

    Attributes:
        remaining_bytes: On the wire.
        prepare_s: Before its next byte flows, if it is being prepared still.
    """

    machine: str
    target: str
    remaining_bytes: float
    prepare_s: float = 0.0


@frozen(kw_only=True)
class Problem:
    """All that a plan is made from.

    Attributes:
        needs: The machines, those under way among them.
        under_way: Moves that have begun; they keep their target.
        together: Groups of machines that must end on one target.
        apart: Groups of machines of which no two may end on one target.
        prepare_s, finish_s: What each move takes before and after its bytes flow.
        moves_max: So many moves at once, of this node; 0 for as many as are useful.
        bytes_uncertainty: 0.2: with 90 %, a machine's bytes are at most a fifth fewer or more.
        strict: Whether what began first has the link for itself, as far as it can use it; else
            all that are copied share it evenly.
    """

    needs: Sequence[Need]
    targets: Sequence[Target]
    links: Sequence[Link]
    under_way: Sequence[UnderWay] = ()
    together: Sequence[frozenset[str]] = ()
    apart: Sequence[frozenset[str]] = ()
    prepare_s: float = field(default=3.0, validator=_AMOUNT)
    finish_s: float = field(default=1.0, validator=_AMOUNT)
    moves_max: int = field(default=0, validator=validators.ge(0))
    strict: bool = True
    bytes_uncertainty: float = field(default=0.2, validator=[validators.ge(0.0), validators.lt(1)])

    def __attrs_post_init__(self) -> None:
        for what, names in (
            ("machines", [need.machine for need in self.needs]),
            ("targets", [target.node for target in self.targets]),
            ("links", [link.name for link in self.links]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"two of the {what} have the same name")

    def rate_to(self, target: str, quantile: str = "") -> float:
        """What the narrowest link on the way to a target carries; infinite if none is known."""
        return min(
            (link.at(quantile) for link in self.links if target in link.targets), default=math.inf
        )

    def copy_rate(self, need: Need, target: str) -> float:
        """The fastest that this machine can be copied there."""
        return min(need.rate_max, self.rate_to(target))

    def objection(self, need: Need, target: Target) -> str:
        """Why a machine cannot go to a target whatever else goes there; empty if it can."""
        if target.node in need.refused:
            return need.refused[target.node]
        if target.drivers and need.driver and need.driver not in target.drivers:
            return f"it has no machine driver {need.driver!r}"
        if need.memory_bytes > target.free_memory_bytes:
            return (
                f"{target.free_memory_bytes >> 20} MiB of memory are free for machines there, "
                f"and it needs {need.memory_bytes >> 20}"
            )
        rate = self.copy_rate(need, target.node)
        if need.dirty_bytes_per_s >= rate:
            return (
                f"it writes {need.dirty_bytes_per_s / 1e6:,.1f} MB/s and {rate / 1e6:,.1f} MB/s "
                "can leave: its copy would never end"
            )
        return ""

    def fewest_bytes(self, need: Need, target: str) -> float:
        """On the wire at the very least: copied alone, as fast as can be."""
        rate = self.copy_rate(need, target)
        if math.isinf(rate):
            return need.wire_bytes
        return need.wire_bytes * rate / (rate - need.dirty_bytes_per_s)

    def copy_s(self, need: Need, target: str) -> float:
        """Of the bytes alone, at the very least."""
        rate = self.copy_rate(need, target)
        return 0.0 if math.isinf(rate) else need.wire_bytes / (rate - need.dirty_bytes_per_s)


@frozen(kw_only=True)
class Stint:
    """One machine's part in a plan; seconds count from the plan's beginning.

    Attributes:
        begin_s: Its move is begun.
        copy_s: Its bytes begin to flow.
        end_s: It runs at its target.
        end_low_s, end_high_s: The same, if links and bytes are at their best and at their worst.
        wire_bytes: Expected on the wire, what is sent again included.
    """

    machine: str
    target: str
    begin_s: float
    copy_s: float
    end_s: float
    end_low_s: float
    end_high_s: float
    wire_bytes: float

    @property
    def rate(self) -> float:
        """Its mean share of the way to its target, bytes per second."""
        return self.wire_bytes / max(self.end_s - self.copy_s, 1e-9)


@frozen(kw_only=True)
class Bound:
    """Less time than this no plan takes; ``why`` names what decides it."""

    seconds: float
    why: str


@frozen(kw_only=True)
class Plan:
    """Who goes where, in which order, how many at once, and when that ends.

    Attributes:
        stints: In the order in which they begin.
        lanes: The moves at once to each target.
        stranded: Machines that cannot go, each with its reason.
        bound: The lower bound of the makespan.
    """

    stints: Sequence[Stint]
    lanes: Mapping[str, int]
    stranded: Mapping[str, str]
    bound: Bound

    @property
    def makespan_s(self) -> float:
        return max((stint.end_s for stint in self.stints), default=0.0)

    @property
    def makespan_low_s(self) -> float:
        return max((stint.end_low_s for stint in self.stints), default=0.0)

    @property
    def makespan_high_s(self) -> float:
        return max((stint.end_high_s for stint in self.stints), default=0.0)

    @property
    def targets(self) -> dict[str, str]:
        """The target of each machine."""
        return {stint.machine: stint.target for stint in self.stints}

    def chance(self, deadline_s: float) -> float:
        """How likely it ends by then, if the makespan is spread normally around what is expected
        and nine of ten lie between its low and its high."""
        middle = self.makespan_s
        late = deadline_s > middle
        width = self.makespan_high_s - middle if late else middle - self.makespan_low_s
        if width <= 0:
            return float(deadline_s >= middle)
        return 0.5 * (1 + math.erf((deadline_s - middle) / (width / 1.645) / math.sqrt(2)))
