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
        intercept=-0.0275,
        weights=(
            0.7536,
            0.3323,
            -0.1042,
            0.0958,
            0.0043,
            -0.0117,
            0.0150,
            -0.0134,
            -0.0819,
            -0.0070,
        ),
        scale=0.1958,
        low=-2.537,
        high=2.539,
    ),
    5: HorizonFit(
        intercept=-0.0656,
        weights=(
            0.1259,
            0.4927,
            0.0088,
            0.5021,
            -0.0280,
            -0.1205,
            0.1423,
            -0.0812,
            -0.1145,
            -0.0139,
        ),
        scale=0.3028,
        low=-2.831,
        high=2.279,
    ),
    10: HorizonFit(
        intercept=-0.1179,
        weights=(
            0.0771,
            0.2912,
            -0.2818,
            0.6593,
            -0.0678,
            -0.2044,
            0.2285,
            -0.1164,
            -0.0192,
            -0.0259,
        ),
        scale=0.3395,
        low=-2.943,
        high=2.109,
    ),
}
