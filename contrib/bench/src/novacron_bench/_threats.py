"""How well threats are found: records with labels, judged with whole kinds of attack held out, and
the watch over simulated days."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, Final

import numpy as np
from attrs import asdict, frozen
from novacron import ConfigError
from novacron_security_threats import Table, train
from novacron_security_threats.simulation import ATTACKS, simulate
from numpy.typing import NDArray

FALSE_ALARMS: Final = (0.005, 0.01, 0.02, 0.03, 0.05)
KIND_FOLDS: Final = 4
RECORD_FOLDS: Final = 5
# Not those with which the watch's defaults were chosen.
FIRST_SEED: Final = 1000
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]


@frozen(kw_only=True)
class Judged:
    """One way to judge, over records that it was not trained on.

    Attributes:
        way: Which.
        f1: Of threat or not, over all records.
        false_alarms: The share of ordinary records that it took for threats.
        known: The share of threats found whose kind it was shown.
        unseen: The same for kinds that it was never shown; None where there were none.
    """

    way: str
    f1: float
    false_alarms: float
    known: float
    unseen: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@frozen(kw_only=True)
class Records:
    """Labelled records, and which of them are equal (those stay together)."""

    table: Table
    labels: NDArray[np.str_]
    groups: NDArray[np.intp]
    normal: str

    @classmethod
    def of(cls, table: Table, label: str, normal: str, drop: Sequence[str]) -> Records:
        labels = np.array(table.column(label))
        inputs = table.without(label, *drop)
        _, groups = np.unique([",".join(row) for row in inputs.rows], return_inverse=True)
        kinds = set(labels) - {normal}
        if len(kinds) < KIND_FOLDS:
            raise ConfigError(
                f"the records have {len(kinds)} kinds of threat",
                hint=f"give at least {KIND_FOLDS}; --normal names the label of ordinary records",
            )
        return cls(table=inputs, labels=labels, groups=groups.reshape(-1), normal=normal)

    def part(self, which: Bools) -> Table:
        rows = [self.table.rows[place] for place in np.flatnonzero(which)]
        return Table(self.table.columns, rows)


def unseen_kinds(records: Records, *, repeats: int, seed: int) -> Iterator[list[Judged]]:
    """Train without a quarter of the kinds of threat and a fifth of the records, judge those; each
    kind is held out once per repeat. Yields what each way came to, fold by fold."""
    rng = np.random.default_rng(seed)
    kinds = np.array(sorted(set(records.labels) - {records.normal}))
    for _ in range(repeats):
        fold_of = rng.integers(0, RECORD_FOLDS, int(records.groups.max()) + 1)[records.groups]
        for number, held in enumerate(np.array_split(rng.permutation(kinds), KIND_FOLDS)):
            unseen = np.isin(records.labels, held)
            apart = fold_of == number
            yield _judge(records, ~unseen & ~apart, unseen | apart, unseen)


def all_kinds(records: Records, *, seed: int) -> Iterator[list[Judged]]:
    """Five folds of records, every kind shown: how records are usually judged."""
    rng = np.random.default_rng(seed)
    fold_of = rng.integers(0, RECORD_FOLDS, int(records.groups.max()) + 1)[records.groups]
    nothing = np.zeros(len(records.labels), bool)
    for number in range(RECORD_FOLDS):
        apart = fold_of == number
        yield _judge(records, ~apart, apart, nothing)


def _judge(records: Records, shown: Bools, judged: Bools, unseen: Bools) -> list[Judged]:
    detector = train(records.part(shown), list(records.labels[shown]), records.normal)
    encoded = detector.schema.encode(records.part(judged))
    trees, apart = detector.forest.score(encoded), detector.novelty.score(encoded)
    both = detector.scores(records.part(judged))
    threats = records.labels[judged] != records.normal
    hidden = unseen[judged]
    ways = [
        ("trees alone, majority", trees > 0.5),
        ("distance alone, beyond 98 in 100", apart > 1),
    ]
    ways += [
        (f"both, {share:.1%} wished", both > detector.threshold(share)) for share in FALSE_ALARMS
    ]
    return [_figures(way, found, threats, hidden) for way, found in ways]


def _figures(way: str, found: Bools, threats: Bools, hidden: Bools) -> Judged:
    right, wrong = int((found & threats).sum()), int((found & ~threats).sum())
    missed = int((~found & threats).sum())
    known = threats & ~hidden
    return Judged(
        way=way,
        f1=2 * right / max(1, 2 * right + wrong + missed),
        false_alarms=float(found[~threats].mean()),
        known=float(found[known].mean()),
        unseen=float(found[hidden].mean()) if hidden.any() else None,
    )


def mean(folds: Sequence[Sequence[Judged]]) -> list[Judged]:
    """Each way's mean over the folds."""
    merged = []
    for ways in zip(*folds, strict=True):
        unseen = [one.unseen for one in ways if one.unseen is not None]
        merged.append(
            Judged(
                way=ways[0].way,
                f1=float(np.mean([one.f1 for one in ways])),
                false_alarms=float(np.mean([one.false_alarms for one in ways])),
                known=float(np.mean([one.known for one in ways])),
                unseen=float(np.mean(unseen)) if unseen else None,
            )
        )
    return merged


@frozen(kw_only=True)
class Cost:
    """What a training and a judgement cost, in CPU time of this process."""

    train_s: float
    records_per_s: float
    explain_ms: float


def cost(records: Records) -> Cost:
    began = time.process_time()
    detector = train(records.table, list(records.labels), records.normal)
    trained = time.process_time()
    detector.scores(records.table)
    scored = time.process_time()
    for place in range(50):
        detector.explain(records.table, place)
    explained = time.process_time()
    return Cost(
        train_s=trained - began,
        records_per_s=len(records.labels) / max(scored - trained, 1e-6),
        explain_ms=(explained - scored) / 50 * 1e3,
    )


@frozen(kw_only=True)
class Watched:
    """How the watch did against one kind of attack.

    Attributes:
        median_s, worst_s: From the attack's first event to the alert, of those that were found.
        median_events: How many of the attack's events that took.
    """

    attack: str
    played: int
    found: int
    median_s: float | None
    worst_s: float | None
    median_events: float | None


@frozen(kw_only=True)
class Days:
    """What the simulated days came to, together."""

    attacks: list[Watched]
    false_alerts: dict[str, int]
    honest_days: float
    events: int
    events_per_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def watch_days(seeds: int, *, peers: int = 20, days: float = 4.0) -> Days:
    """Play the simulation with so many seeds."""
    began = time.process_time()
    outcomes = [simulate(FIRST_SEED + n, peers=peers, days=days) for n in range(seeds)]
    took = time.process_time() - began
    watched = []
    for attack in ATTACKS:
        played = [one for outcome in outcomes for one in outcome.found if one.attack == attack]
        delays = [one.delay_s for one in played if one.delay_s is not None]
        events = [one.events for one in played if one.delay_s is not None]
        watched.append(
            Watched(
                attack=attack,
                played=len(played),
                found=len(delays),
                median_s=median(delays) if delays else None,
                worst_s=max(delays) if delays else None,
                median_events=median(events) if events else None,
            )
        )
    false_alerts: dict[str, int] = {}
    for outcome in outcomes:
        for detector, count in outcome.false_alerts.items():
            false_alerts[detector] = false_alerts.get(detector, 0) + count
    count = sum(outcome.events for outcome in outcomes)
    return Days(
        attacks=watched,
        false_alerts=false_alerts,
        honest_days=sum(outcome.honest_days for outcome in outcomes),
        events=count,
        events_per_s=count / max(took, 1e-6),
    )
