"""Constants of the linear rule, rounded, as `novacron bench predict --refit` prints them.

Fitted on the visible part of the public traces that docs/guide/prediction.md names. Figures of
accuracy are never taken with these, but with constants that were fitted on the other folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from novacron_transport_pba._forecast import HorizonFit

FITS: Final[Mapping[int, HorizonFit]] = {
    1: HorizonFit(
        intercept=-0.0337,
        weights=(
            0.7613,
            0.2960,
            -0.0621,
            0.0972,
            0.0174,
            -0.0166,
            0.0123,
            -0.0150,
            -0.0703,
            -0.0085,
        ),
        scale=0.1890,
        low=-2.501,
        high=2.534,
    ),
    5: HorizonFit(
        intercept=-0.0749,
        weights=(
            0.1485,
            0.4633,
            0.0381,
            0.5465,
            -0.0194,
            -0.1294,
            0.1442,
            -0.0844,
            -0.1037,
            -0.0154,
        ),
        scale=0.2945,
        low=-2.756,
        high=2.299,
    ),
    10: HorizonFit(
        intercept=-0.1308,
        weights=(
            0.1236,
            0.2600,
            -0.3002,
            0.7139,
            -0.0627,
            -0.2056,
            0.2291,
            -0.1234,
            -0.0046,
            -0.0268,
        ),
        scale=0.3306,
        low=-2.852,
        high=2.115,
    ),
}
