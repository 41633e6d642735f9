"""The forecaster of one link."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from novacron_transport_pba import HORIZONS, LinkForecaster, merit

RATES = st.floats(0, 1e5, allow_nan=False)


def fed(rates: list[float]) -> LinkForecaster:
    forecaster = LinkForecaster()
    for rate in rates:
        forecaster.update(rate)
    return forecaster


def radio(count: int, seed: int = 1) -> list[float]:
    """A link whose rate wanders."""
    chance = random.Random(seed)
    level, rates = 1.0, []
    for _ in range(count):
        level += -0.05 * (level - 1.0) + chance.gauss(0, 0.2)
        rates.append(math.exp(level + chance.gauss(0, 0.1)))
    return rates


def test_a_link_that_never_changes_is_foreseen_as_it_is() -> None:
    forecaster = fed([40.0] * 60)
    for steps in HORIZONS:
        found = forecaster.forecast(steps)
        assert found.point == pytest.approx(40.0, rel=0.05)
        assert found.low <= 40.0 <= found.high
        assert found.high - found.low < 40.0


def test_a_plateau_with_dips_is_foreseen_at_its_plateau() -> None:
    rates = [20.0 if place % 7 else 4.0 for place in range(150)]
    assert fed(rates).forecast(5).point == pytest.approx(20.0, rel=0.01)


def test_a_new_plateau_is_believed_within_a_few_samples() -> None:
    forecaster = fed([20.0] * 100 + [5.0] * 12)
    assert forecaster.forecast(5).point == pytest.approx(5.0, rel=0.3)


@pytest.mark.parametrize("steps", [5, 10])
def test_bounds_hold_nine_truths_of_ten_on_a_link_that_wanders(steps: int) -> None:
    rates = radio(1500)
    forecaster, held, asked = LinkForecaster(), 0, 0
    for place, rate in enumerate(rates[:-steps]):
        forecaster.update(rate)
        if place >= 10:
            found = forecaster.forecast(steps)
            held += found.low <= rates[place + steps] <= found.high
            asked += 1
    assert 0.87 <= held / asked <= 0.94


def test_bounds_recover_when_a_link_becomes_wilder() -> None:
    calm = [10.0 + 0.1 * (place % 3) for place in range(300)]
    chance = random.Random(3)
    wild = [10 * math.exp(chance.gauss(0, 0.7)) for _ in range(600)]
    forecaster, held = fed(calm), []
    for place, rate in enumerate(wild[:-5]):
        forecaster.update(rate)
        found = forecaster.forecast(5)
        held.append(found.low <= wild[place + 5] <= found.high)
    assert 0.85 <= sum(held[200:]) / len(held[200:]) <= 0.95


def test_an_outage_is_foreseen_without_negative_rates() -> None:
    found = fed([8.0] * 30 + [0.0] * 30).forecast(1)
    assert 0 <= found.low <= found.point < 0.5
    assert math.isfinite(found.high)


def test_a_snapshot_goes_on_exactly_as_far_as_floats_of_four_bytes_can() -> None:
    rates = radio(200)
    first = fed(rates[:150])
    second = LinkForecaster.restored(first.snapshot())
    for rate in rates[150:]:
        first.update(rate)
        second.update(rate)
    for steps in HORIZONS:
        one, other = first.forecast(steps), second.forecast(steps)
        assert other.point == pytest.approx(one.point, rel=1e-3)
        assert other.high == pytest.approx(one.high, rel=1e-2)


def test_state_is_a_few_hundred_bytes_and_stops_growing() -> None:
    forecaster = fed(radio(100))
    size = forecaster.state_bytes
    assert size < 700
    for rate in radio(300, seed=2):
        forecaster.update(rate)
    assert forecaster.state_bytes == size


def test_horizons_between_those_that_were_fitted_are_interpolated() -> None:
    forecaster = fed(radio(80))
    five, ten = forecaster.forecast(5).point, forecaster.forecast(10).point
    assert min(five, ten) <= forecaster.forecast(7).point <= max(five, ten)
    assert forecaster.forecast(600) == forecaster.forecast(10)


@given(st.lists(RATES, min_size=1, max_size=80))
def test_whatever_a_link_does_bounds_are_finite_and_in_order(rates: list[float]) -> None:
    forecaster = fed(rates)
    for steps in HORIZONS:
        found = forecaster.forecast(steps)
        assert 0 <= found.low <= found.high
        assert math.isfinite(found.point)
        assert math.isfinite(found.high)
        assert found.low <= found.point * (1 + 1e-9) + 1e-9
        assert found.point <= found.high * (1 + 1e-9) + 1e-9


@given(st.binary(max_size=1200))
def test_a_damaged_snapshot_is_refused_or_gives_forecasts(damaged: bytes) -> None:
    try:
        forecaster = LinkForecaster.restored(damaged)
    except ValueError:
        return
    forecaster.update(3.0)
    assert math.isfinite(forecaster.forecast(5).point)


@given(st.integers(0, 160), st.floats(allow_nan=True, width=32))
def test_a_snapshot_with_one_wrong_number_never_breaks_a_forecast(
    place: int, number: float
) -> None:
    import struct

    snapshot = bytearray(fed(radio(60)).snapshot())
    struct.pack_into("<f", snapshot, place * 4, number)
    try:
        forecaster = LinkForecaster.restored(bytes(snapshot))
    except ValueError:
        return
    for rate in (0.0, 3.0, 2.0):
        forecaster.update(rate)
    assert math.isfinite(forecaster.forecast(10).high)


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf, 1e12])
def test_what_is_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="no rate"):
        LinkForecaster().update(rate)


def test_nothing_is_foreseen_before_the_first_sample() -> None:
    with pytest.raises(ValueError, match="no sample"):
        LinkForecaster().forecast(1)


def test_merit_is_the_accuracy_of_the_measured_data() -> None:
    assert merit(10, 10) == 1
    assert merit(5, 10) == 0.5
    assert merit(30, 10) == 0
    assert merit(0.05, 0) == pytest.approx(0.5)
