"""Predictive Bandwidth Allocation: what links will carry, what moves will take, who gets how much.

`LinkForecaster` foresees one link, `PairModel` a pair that was never measured, `allocate` shares a
link. The hooks foresee moves (`novacron_choose_estimate`), share links among them
(`novacron_choose_rates`), and learn from each.
"""

from __future__ import annotations

from novacron_transport_pba._forecast import (
    FEATURES,
    FLOOR,
    HORIZONS,
    Forecast,
    HorizonFit,
    LinkForecaster,
    merit,
)
from novacron_transport_pba._pairs import QUANTILE, End, Measured, PairModel, later

NOVACRON_API = 1

__all__ = [
    "FEATURES",
    "FLOOR",
    "HORIZONS",
    "NOVACRON_API",
    "QUANTILE",
    "End",
    "Forecast",
    "HorizonFit",
    "LinkForecaster",
    "Measured",
    "PairModel",
    "later",
    "merit",
]
