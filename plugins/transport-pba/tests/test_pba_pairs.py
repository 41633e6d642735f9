"""Pairs that were never measured."""

from __future__ import annotations

import pytest
from novacron_transport_pba import End, Measured, PairModel, later


def measured(source: str, target: str, ms: float, rate: float) -> Measured:
    return Measured(
        source=End(source, source[0]),
        target=End(target, target[0]),
        round_trip_ms=ms,
        rate=rate,
    )


def test_a_pair_is_foreseen_as_pairs_of_a_like_round_trip_are() -> None:
    model = PairModel(
        [measured(f"a{n}", f"b{n}", 20 + n, 9.0) for n in range(5)]
        + [measured(f"a{n}", f"b{n + 5}", 200 + n, 2.0) for n in range(5)]
    )
    assert model.predict(End("a9", "a"), End("b9", "b"), 22.0) == [9.0]
    assert model.predict(End("a9", "a"), End("b9", "b"), 205.0) == [2.0]


def test_the_same_end_counts_more_than_a_stranger() -> None:
    model = PairModel(
        [measured("a1", "b1", 50, 3.0), measured("a2", "b2", 50, 8.0), measured("a3", "b3", 50, 8)]
    )
    assert model.predict(End("a1", "a"), End("b9", "b"), 50.0) == [3.0]


def test_another_cloud_counts_only_where_there_is_nothing_else() -> None:
    model = PairModel([measured("a1", "b1", 50, 3.0), measured("c1", "d1", 50, 8.0)])
    assert model.predict(End("a9", "a"), End("b9", "b"), 50.0) == [3.0]
    assert model.predict(End("x", "x"), End("d9", "d"), 50.0) == [8.0]


def test_quantiles_come_in_order_and_an_unknown_round_trip_is_no_obstacle() -> None:
    model = PairModel(measured(f"a{n}", f"b{n}", 50, 1.0 + n) for n in range(20))
    low, middle, high = model.predict(End("a", "a"), End("b", "b"), None, (0.05, 0.5, 0.95)) or []
    assert low < middle < high


def test_where_nothing_was_measured_nothing_is_foreseen() -> None:
    assert PairModel().predict(End("a"), End("b"), 10.0) is None


def test_a_known_pair_follows_the_change_of_its_like() -> None:
    assert later(2.0, drift=4.0, level=8.0) == pytest.approx(8.0)
    assert 5.0 < later(5.0, drift=1.0, level=8.0) < 8.0
