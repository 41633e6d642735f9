"""Which mode a link calls for, and that it is not switched back and forth."""

from __future__ import annotations

import random

import pytest
from novacron_dwcp.modes import DEFAULT_BOUNDS, HOLD_S, MARGIN, ModeDetector
from novacron_dwcp.values import LinkMeasure


def link(rtt_ms: float, loss: float = 0.0, mbit: float = 1000.0) -> LinkMeasure:
    return LinkMeasure(
        rtt_s=rtt_ms / 1000, min_rtt_s=rtt_ms / 1000, loss=loss, rate_bytes_per_s=mbit * 125e3
    )


def after_a_while(detector: ModeDetector, measured: LinkMeasure) -> str:
    for second in range(int(HOLD_S) + 2):
        detector.see(float(second), measured)
    return detector.mode


@pytest.mark.parametrize(
    ("measured", "mode"),
    [
        (link(0.3), "datacenter"),
        (link(0.3, loss=0.01), "internet"),
        (link(0.3, mbit=100), "hybrid"),
        (link(8.0), "hybrid"),
        (link(8.0, mbit=20), "internet"),
        (link(80.0), "internet"),
        (link(150.0, loss=0.01, mbit=100), "internet"),
    ],
)
def test_a_link_is_found_to_be_what_it_is_wherever_one_begins(
    measured: LinkMeasure, mode: str
) -> None:
    for first in ("datacenter", "hybrid", "internet"):
        assert after_a_while(ModeDetector(first), measured) == mode


def test_nothing_is_decided_before_something_was_measured() -> None:
    assert after_a_while(ModeDetector("hybrid"), LinkMeasure()) == "hybrid"


def test_a_change_must_last_before_it_counts() -> None:
    detector = ModeDetector("datacenter")
    assert detector.see(0.0, link(80)) is None
    assert detector.see(HOLD_S / 2, link(80)) is None
    assert detector.see(HOLD_S * 0.75, link(0.3)) is None  # it was but a moment
    assert detector.see(HOLD_S, link(80)) is None
    assert detector.see(2 * HOLD_S, link(80)) == "internet"
    assert "80.0 ms" in detector.reason


def test_a_link_that_wavers_about_a_bound_is_not_switched_back_and_forth() -> None:
    bound_ms = DEFAULT_BOUNDS["datacenter"].rtt_s * 1000
    rng = random.Random(7)
    detector = ModeDetector("datacenter")
    switches = [
        mode
        for second in range(1000)
        if (mode := detector.see(float(second), link(bound_ms * rng.uniform(0.8, MARGIN))))
    ]
    assert switches == []
