"""How far a record is from all ordinary ones that are known: what nobody has seen is far.

The measure is the distance to the third nearest of a bounded sample, each feature counted in
standard deviations of the ordinary records and at most ten of them, so that no single feature
decides alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

Floats = NDArray[np.float32]
SAMPLE_MAX: Final = 8192
NEIGHBOURS: Final = 3
DEVIATIONS_MAX: Final = 10.0
_ROWS: Final = 1024  # at a time, so that the distances of a big file need no big memory


@frozen(eq=False)
class Novelty:
    """The ordinary records that are known.

    Attributes:
        mean, spread: Of each feature among them.
        sample: Some of them, scaled; all different.
        usual: The distance that 98 in 100 of them keep to the others.
    """

    mean: Floats
    spread: Floats
    sample: Floats
    usual: float

    def scaled(self, records: Floats) -> Floats:
        return _scale(records, self.mean, self.spread)

    def score(self, records: Floats) -> Floats:
        """The distance in units of ``usual``: beyond 1 lie 2 in 100 of the ordinary records."""
        apart = _distances(self.scaled(records), self.sample, NEIGHBOURS)
        scores: Floats = (apart / np.float32(self.usual)).astype(np.float32)
        return scores

    def explain(self, record: Floats) -> tuple[float, Floats]:
        """The score of one record, and each feature's part of the squared distance to the
        nearest."""
        own = self.scaled(record[None])
        squares = _squared(own, self.sample, (self.sample**2).sum(axis=1))[0]
        nth = min(NEIGHBOURS, len(squares))
        score = float(np.sqrt(max(np.partition(squares, nth - 1)[nth - 1], 0))) / self.usual
        return score, (own[0] - self.sample[np.argmin(squares)]) ** 2


def _scale(records: Floats, mean: Floats, spread: Floats) -> Floats:
    scaled: Floats = (records - mean) / spread
    return np.clip(scaled, -DEVIATIONS_MAX, DEVIATIONS_MAX).astype(np.float32)


def _squared(records: Floats, sample: Floats, squares: Floats) -> Floats:
    apart: Floats = (records**2).sum(axis=1)[:, None] + squares - 2 * (records @ sample.T)
    return apart


def _distances(records: Floats, sample: Floats, nth: int) -> Floats:
    """From each record to the nth nearest of the sample."""
    nth = min(nth, len(sample))
    squares = (sample**2).sum(axis=1)
    found = np.empty(len(records), np.float32)
    for begin in range(0, len(records), _ROWS):
        part = records[begin : begin + _ROWS]
        nearest = np.partition(_squared(part, sample, squares), nth - 1, axis=1)[:, nth - 1]
        found[begin : begin + _ROWS] = np.sqrt(np.maximum(nearest, 0))
    return found


def learn(ordinary: Floats, seed: int) -> tuple[Novelty, Floats]:
    """Know ordinary records.

    Returns: what is known, and the score that each would have if it were not known itself.
    """
    mean = ordinary.mean(axis=0)
    deviation = ordinary.std(axis=0)
    # What never varied counts fully when it does.
    spread = np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)
    scaled = _scale(ordinary, mean, spread)
    sample = np.unique(scaled, axis=0)
    if len(sample) > SAMPLE_MAX:
        keep = np.random.default_rng(seed).choice(len(sample), SAMPLE_MAX, replace=False)
        sample = sample[np.sort(keep)]
    # One more than asked for: the nearest of a record that is in the sample is itself.
    apart = _distances(scaled, sample, NEIGHBOURS + 1)
    usual = max(float(np.quantile(apart, 0.98)), 1e-3)
    return Novelty(mean, spread, sample, usual), apart / np.float32(usual)
