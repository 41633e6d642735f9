"""The goals of the benchmark hold, at a size that a test can afford; a soak over regions."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from novacron_consensus_state import ReplicaSettings, _figures
from novacron_consensus_state._figures import Figure
from novacron_consensus_state._wan import Wan

DELAYS_MS = (80, 200)


def missed(figures: list[Figure]) -> list[Figure]:
    return [figure for figure in figures if figure.met is False]


@pytest.mark.slow
def test_propagation_is_near_the_largest_one_way_delay() -> None:
    figures = _figures.propagation(1, DELAYS_MS, 0.005, 1, 300)
    assert not missed(figures)
    assert [figure.goal for figure in figures].count("<= 450 ms") == 1


@pytest.mark.slow
@pytest.mark.parametrize("small_history", [False, True])
def test_a_healed_partition_converges_in_seconds(small_history: bool) -> None:
    figures = _figures.partition(2, DELAYS_MS, 0.005, 1, small_history=small_history)
    assert not missed(figures)
    assert ("trees" in figures[0].what) == small_history


def test_an_update_is_a_small_part_of_the_whole() -> None:
    assert not missed(_figures.delta_share(1_000))


def test_every_level_is_measured(tmp_path: Path) -> None:
    figures = _figures.levels(1, DELAYS_MS, 5, None)
    assert [figure.what.split(",")[0] for figure in figures] == [
        f"{what} at {level}"
        for level in ("eventual", "local", "quorum")
        for what in ("write", "read")
    ]
    assert len(_figures.costs(tmp_path, 10)) == 3
    assert len(_figures.memory(50)) == 1


@pytest.mark.slow
def test_five_regions_keep_up_through_minutes_of_loss_and_cut_offs() -> None:
    """Writes go on meanwhile; in the end all hold the same, and nothing is kept for later."""
    rng = random.Random(5)
    regions = {f"{region}{n}": region for region in _figures.REGIONS for n in range(2)}
    net = Wan(
        regions=regions,
        delays_ms=DELAYS_MS,
        loss=0.005,
        seed=5,
        settings=ReplicaSettings(probe_ms=2_000, silent_ms=7_000, history_bytes=20_000),
    )
    net.start()
    names = list(regions)
    for minute in range(7):
        away = rng.choice(_figures.REGIONS) if minute % 3 == 0 else ""
        if away:
            net.isolate(away)
        for n in range(20):
            key = f"key-{rng.randrange(200)}"
            net.write(rng.choice(names), key, "or-set", "add", [n % 5])
            net.write(rng.choice(names), key, "or-set", "remove", [rng.randrange(5)])
            net.run(3_000)
        if away:
            net.isolate(away, heal=True)
    assert net.run(30_000, net.converged)
    assert net.run(30_000, lambda: not any(len(r.store.history) for r in net.replicas.values()))
    assert max(len(replica.store.vector) for replica in net.replicas.values()) == len(names)
