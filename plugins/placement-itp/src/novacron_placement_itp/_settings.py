"""The sections ``[operation.evacuate]`` and ``[placement.itp]``, and what can be asked."""

from __future__ import annotations

from typing import Final

from attrs import field, frozen, validators

EVACUATE: Final = "evacuate"


@frozen(kw_only=True)
class EvacuateSettings:
    """The section ``[operation.evacuate]``.

    Attributes:
        sites: The nodes of each site, by the site's name.
        allow: Nodes that may ask this one to evacuate itself, beside those of its own site.
        links: What the way to each node carries, in bytes per second, where that is known; it is
            taken until a move has measured it.
        uplink_bytes_per_s: What all ways together carry; 0 where they share nothing.
        rate_bytes_per_s: Taken for a way of which nothing is known.
        wire_part: Bytes on the wire per byte of memory in use, until moves have measured it.
        move_rate_bytes_per_s: The fastest that a single move is (a processor's limit), on the wire;
            0 for no limit.
        reserve_bytes: Memory that stays free on each target.
        together, apart: Groups of machines that must end on one node, and of which no two may.
        priorities: Of machines, by name; higher goes first, 0 if not named.
        moves_max: So many moves at once; 0 for as many as are useful.
        attempts_max: For one machine.
        prepare_s, finish_s: What a move takes before and after its bytes flow.
        replan_s: At least so long between two plans.
        margin: The part of the time left that another plan must save.
        target_patience_s: So long a target may be silent before it is given up.
    """

    sites: dict[str, list[str]] = field(factory=dict)
    allow: list[str] = field(factory=list)
    links: dict[str, float] = field(factory=dict)
    uplink_bytes_per_s: float = field(default=0.0, validator=validators.ge(0.0))
    rate_bytes_per_s: float = field(default=50e6, validator=validators.gt(0.0))
    wire_part: float = field(default=0.4, validator=[validators.gt(0.0), validators.le(2.0)])
    move_rate_bytes_per_s: float = field(default=0.0, validator=validators.ge(0.0))
    reserve_bytes: int = field(default=256 << 20, validator=validators.ge(0))
    together: list[list[str]] = field(factory=list)
    apart: list[list[str]] = field(factory=list)
    priorities: dict[str, int] = field(factory=dict)
    moves_max: int = field(default=0, validator=[validators.ge(0), validators.le(256)])
    attempts_max: int = field(default=4, validator=[validators.ge(1), validators.le(20)])
    prepare_s: float = field(default=3.0, validator=validators.ge(0.0))
    finish_s: float = field(default=1.0, validator=validators.ge(0.0))
    replan_s: float = field(default=15.0, validator=validators.ge(1.0))
    margin: float = field(default=0.1, validator=[validators.ge(0.0), validators.lt(1.0)])
    target_patience_s: float = field(default=20.0, validator=validators.gt(0.0))

    def __attrs_post_init__(self) -> None:
        for target, rate in self.links.items():
            if not rate > 0:
                raise ValueError(f"links: the rate to {target} is {rate:g}, and must be above 0")

    def site_of(self, node: str) -> set[str]:
        """The nodes of the sites that a node belongs to, and itself."""
        return {node}.union(*(nodes for nodes in self.sites.values() if node in nodes))


@frozen(kw_only=True)
class EvacuateParameters:
    """What is asked.

    Attributes:
        place: The node or the site to evacuate; empty for the node that is asked.
        to: Only to these nodes (or the nodes of these sites); empty for all peers.
        exclude: Not to these.
        deadline_s: When it must be over, from now: refused if that cannot be.
        plan_only: Only say what would happen.
        slow_guest: Machines that write too fast may be slowed down.
        share: The part of each link and of each target's memory that may be used, where others
            are evacuated at the same time.
    """

    place: str = ""
    to: list[str] = field(factory=list)
    exclude: list[str] = field(factory=list)
    deadline_s: float | None = field(
        default=None, validator=validators.optional(validators.gt(0.0))
    )
    plan_only: bool = False
    slow_guest: bool = False
    share: float = field(default=1.0, validator=[validators.gt(0.0), validators.le(1.0)])


@frozen(kw_only=True)
class ItpSettings:
    """The section ``[placement.itp]``.

    Attributes:
        reserve_bytes: Memory that must stay free on the target beside the machine.
        rate_bytes_per_s: Taken for a link whose rate was never measured.
        move_s: What a move takes beside its bytes.
    """

    reserve_bytes: int = field(default=256 << 20, validator=validators.ge(0))
    rate_bytes_per_s: float = field(default=50e6, validator=validators.gt(0.0))
    move_s: float = field(default=4.0, validator=validators.ge(0.0))
