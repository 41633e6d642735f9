"""How hard an encoder tries."""

from __future__ import annotations

import pytest
from novacron_dwcp.effort import UNIT_S, Effort
from novacron_dwcp.values import Pressure

COSTS = {-1: 0.05, 0: 0.5, 1: 1.0, 3: 1.75, 5: 3.2, 9: 6.6}
MIB = 1 << 20


def starving(effort: Effort, rate_bytes_per_s: float) -> int:
    """One look at a copy that waits for the machine alone; the step after it."""
    encode_s = 100 * MIB * UNIT_S * COSTS[effort.step]
    pressure = Pressure(
        encode_s=encode_s, link_wait_s=0.06, read_wait_s=9.0, rate_bytes_per_s=rate_bytes_per_s
    )
    effort.adapt(pressure, 100 * MIB, 40 * MIB)
    return effort.step


@pytest.mark.parametrize(("mbit", "least"), [(100, 5), (200, 3), (1000, 1), (10_000, -1)], ids=str)
def test_a_link_that_is_known_to_be_slow_gets_what_is_clearly_worth_it_at_once(
    mbit: int, least: int
) -> None:
    assert starving(Effort(COSTS, -1), mbit * 125e3) == least


def test_a_link_of_unknown_rate_changes_nothing_by_itself() -> None:
    assert starving(Effort(COSTS, 1), 0.0) == 1


def test_no_step_down_goes_below_what_is_clearly_worth_it() -> None:
    effort = Effort(COSTS, 9)
    for _ in range(50):
        effort.adapt(
            Pressure(encode_s=1.0, link_wait_s=0.0, read_wait_s=0.0, rate_bytes_per_s=12.5e6),
            int(1.0 / UNIT_S / COSTS[effort.step]),
            MIB,
        )
    assert effort.step == 5


def test_where_little_is_left_to_compress_the_encoder_is_not_made_faster_by_compressing_less() -> (
    None
):
    effort = Effort(COSTS, 1)
    for _ in range(20):
        effort.adapt(
            Pressure(encode_s=0.1, link_wait_s=0.0, read_wait_s=0.0, rate_bytes_per_s=0.0),
            20 * MIB,
            MIB // 8,
            tried_s=MIB / 4 * UNIT_S * COSTS[effort.step],
            tried_bytes=MIB // 4,
        )
    assert effort.step == 9
