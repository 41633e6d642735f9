"""Agreement over the regions of a lab: a commit of raft should cost little more than a round trip,
one among members that may lie little more than three."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from attrs import asdict, frozen

from novacron_bench._bft import bft
from novacron_bench._consensus import raft, run_load

# Round trips between five regions, milliseconds: those within a continent, and those across oceans.
ROUND_TRIPS_MS: Final[Mapping[tuple[str, str], int]] = {
    ("a", "b"): 80, ("a", "c"): 120, ("a", "d"): 160, ("a", "e"): 200, ("b", "c"): 90,
    ("b", "d"): 140, ("b", "e"): 180, ("c", "d"): 100, ("c", "e"): 150, ("d", "e"): 110,
}  # fmt: skip
REGIONS: Final = "abcde"
# As many as survive one that lies.
BFT_REGIONS: Final = "abcd"
# Ten of the longest round trips.
ELECTION_MS: Final = 2000
PORT: Final = 7400


@frozen(kw_only=True)
class WanFigures:
    """What was measured over regions, the client beside the leader.

    Attributes:
        quorum_ms: The round trip to the farthest member that the nearest majority needs.
        one: Puts of one client: puts, puts_per_s, p50_ms, p99_ms, errors.
    """

    leader: str
    quorum_ms: int
    one: Mapping[str, Any]

    @property
    def ratio(self) -> float:
        return float(self.one["p50_ms"]) / self.quorum_ms

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio}


def round_trip_ms(here: str, there: str) -> int:
    return ROUND_TRIPS_MS[min(here, there), max(here, there)]


def quorum_ms(leader: str, regions: str = REGIONS) -> int:
    """A leader needs the answers of the two nearest: with five members for a majority, and with
    four for more than two thirds."""
    return sorted(round_trip_ms(leader, other) for other in regions if other != leader)[1]


@contextmanager
def lab_of(regions: str) -> Iterator[tuple[dict[str, str], dict[str, list[str]]]]:
    """Regions with their round trips: addresses to listen at, and how to run something there.

    Raises: NovacronError where no lab can be made.
    """
    from novacron_lab import Lab, LinkSpec

    links = {
        pair: LinkSpec(delay_s=round_trip_ms(*pair) / 2e3) for pair in combinations(regions, 2)
    }
    with Lab.up(f"consensus-{os.getpid()}", tuple(regions), links) as lab:
        yield (
            {name: f"{lab.site(name).address}:{PORT}" for name in regions},
            {name: list(lab.command(name, [])) for name in regions},
        )


def run(folder: Path, *, seconds: float) -> WanFigures:
    """Measure raft over five regions. Raises: NovacronError where no lab can be made."""
    with lab_of(REGIONS) as (addresses, prefix):
        options: Any = {"addresses": addresses, "prefix": prefix, "election_ms": ELECTION_MS}
        with raft(folder / "raft-wan", len(REGIONS), **options) as store:
            leader = store.names[store.leader()]
            one = run_load(store.load(clients=1, seconds=seconds), prefix=prefix[leader])
    return WanFigures(leader=leader, quorum_ms=quorum_ms(leader), one=one)


def run_bft(folder: Path, *, seconds: float) -> WanFigures:
    """The same for members that may lie, over four regions."""
    longest = max(round_trip_ms(*pair) for pair in combinations(BFT_REGIONS, 2))
    with (
        lab_of(BFT_REGIONS) as (addresses, prefix),
        bft(folder / "bft-wan", addresses=addresses, prefix=prefix, round_trip_ms=longest) as made,
    ):
        leader = made.leader()
        one = made.put(leader, seconds)
    return WanFigures(leader=leader, quorum_ms=quorum_ms(leader, BFT_REGIONS), one=one)
