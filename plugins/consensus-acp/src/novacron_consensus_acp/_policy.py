"""Which protocol fits: a pure function of what was declared and what was measured.

Trust decides first, distance second. A choice holds until conditions leave a band around the bound
that it was made by, so that measurements near a bound do not make the log switch to and fro.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal

from attrs import frozen

Trust = Literal["own", "mixed"]

# How far members are from each other, and the round trip that timeouts are made from there.
ROUND_TRIP_MS: Final = {"site": 20, "region": 60, "continent": 150, "globe": 300}
# Up to which measured round trip each is the right one; beyond the last bound it is `globe`.
_BOUNDS_MS: Final = (("site", 10.0), ("region", 40.0), ("continent", 100.0))
# A bound is left upward only when it is exceeded by this share, and downward likewise.
BAND: Final = 0.25
# With more than this lost, a switch would make things worse.
LOSS_MAX: Final = 0.2


@frozen(kw_only=True)
class Declared:
    """What people say.

    Attributes:
        trust: ``own``: the members are of one owner, and may fail but not lie; ``mixed``: they are
            of several, and some may lie.
        engine: An engine to be used whatever is measured; "" to choose.
    """

    trust: Trust = "own"
    engine: str = ""


@frozen(kw_only=True)
class Measured:
    """What one member has measured.

    Attributes:
        members: How many there are.
        round_trip_ms: To the farthest member of the nearest quorum; None while too few answered.
        loss: The share of questions that were not answered, 0 to 1.
        equivocations: How many members were proved to have lied.
    """

    members: int
    round_trip_ms: float | None = None
    loss: float = 0.0
    equivocations: int = 0


@frozen(kw_only=True)
class Choice:
    """What fits, and why.

    Attributes:
        engine: The log's protocol.
        place: How far members are from each other: a key of `ROUND_TRIP_MS`.
        soft_state: What membership and health should go over; they need no agreement.
        reasons: Sentences, the most important first.
    """

    engine: str
    place: str
    soft_state: str = "gossip"
    reasons: tuple[str, ...] = ()

    def same_as(self, other: Choice) -> bool:
        return (self.engine, self.place) == (other.engine, other.place)


def choose(
    declared: Declared, measured: Measured, present: Choice, offered: Collection[str]
) -> Choice:
    """The choice that fits now; ``present`` in the doubt.

    Args:
        offered: The engines that are installed.
    """
    engine, why = _engine(declared, measured, present, offered)
    place, how_far = _place(measured, present.place)
    reasons = [why, how_far]
    if engine == "raft" and place in ("region", "continent", "globe"):
        reasons.append("its leader should stand where most members are near")
    if measured.loss > LOSS_MAX:
        reasons.append(
            f"{measured.loss:.0%} of the questions are lost, so nothing is switched (at most "
            f"{LOSS_MAX:.0%})"
        )
    return Choice(engine=engine, place=place, reasons=tuple(reasons))


def _engine(
    declared: Declared, measured: Measured, present: Choice, offered: Collection[str]
) -> tuple[str, str]:
    if declared.engine:
        wanted, why = declared.engine, f"{declared.engine} was declared"
    elif measured.equivocations:
        wanted, why = "bft", f"{measured.equivocations} members were proved to have lied"
    elif declared.trust == "mixed":
        wanted, why = "bft", "the members are of several owners, who may lie"
    else:
        wanted, why = "raft", "the members are of one owner: they may fail, and do not lie"
    if wanted == "bft" and measured.members < 4:
        wanted, why = (
            "raft",
            f"{why}; but {measured.members} members cannot outvote a liar: add some",
        )
    if wanted not in offered:
        return present.engine, f"{why}; but no installed plugin offers {wanted}"
    return wanted, why


def _place(measured: Measured, present: str) -> tuple[str, str]:
    took = measured.round_trip_ms
    if took is None:
        return present, "too few members answer to measure how far they are"
    names = [name for name, _ in _BOUNDS_MS] + ["globe"]
    at = names.index(present)
    # Up to the bound of the present place and down to that of the one below, each with its band.
    while at < len(_BOUNDS_MS) and took > _BOUNDS_MS[at][1] * (1 + BAND):
        at += 1
    while at > 0 and took < _BOUNDS_MS[at - 1][1] * (1 - BAND):
        at -= 1
    return names[at], f"a quorum answers within {took:.0f} ms: {names[at]}"


class Hysteresis:
    """Says when a change is wanted: only what was right for long enough, and not too often."""

    def __init__(self, hold_ms: int, dwell_ms: int) -> None:
        self._hold_ms = hold_ms
        self._dwell_ms = dwell_ms
        self._wanted: Choice | None = None
        self._since_ms = 0
        self._switched_ms: int | None = None

    def switched(self, now_ms: int) -> None:
        self._switched_ms = now_ms
        self._wanted = None

    def wants(self, now_ms: int, right: Choice, present: Choice, loss: float) -> bool:
        """Whether to wish for it now."""
        if right.same_as(present) or loss > LOSS_MAX:
            self._wanted = None
            return False
        if self._wanted is None or not right.same_as(self._wanted):
            self._wanted, self._since_ms = right, now_ms
        if self._switched_ms is not None and now_ms - self._switched_ms < self._dwell_ms:
            return False
        return now_ms - self._since_ms >= self._hold_ms
