"""Extremely randomized trees (Geurts, Ernst, Wehenkel, Machine Learning 63, 2006), in numpy.

Each tree sees a bag of the records; those that it did not see judge it, so that a threshold can be
set without records kept back. What a tree says of a record is told apart by feature: each split on
the way moves the share of threats, and that move is the feature's.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

TREES: Final = 60
DEPTH_MAX: Final = 28
_LEAF: Final = -1


@frozen(eq=False)
class Forest:
    """Trees in one row of arrays; a leaf has the feature -1.

    Attributes:
        roots: Where each tree begins.
        feature, threshold: A record goes left where its feature is at most the threshold.
        left, right: Places below; always behind their parent's.
        value: The share of threats among the records that came by.
    """

    roots: Ints
    feature: Ints
    threshold: Floats
    left: Ints
    right: Ints
    value: Floats

    def __attrs_post_init__(self) -> None:
        count = len(self.feature)
        places = np.arange(count)
        inner = self.feature != _LEAF
        sound = (
            count > 0
            and 0 < len(self.roots) <= 1024
            and all(
                len(part) == count for part in (self.threshold, self.left, self.right, self.value)
            )
            and bool(np.all((self.roots >= 0) & (self.roots < count)))
            and bool(np.all(self.left[inner] > places[inner]))
            and bool(np.all(self.right[inner] > places[inner]))
            and bool(np.all(self.left[inner] < count))
            and bool(np.all(self.right[inner] < count))
            and bool(np.all(self.feature >= _LEAF))
            and bool(np.all((self.value >= 0) & (self.value <= 1)))
        )
        if not sound:
            raise ValueError("the trees of the model are not sound")

    def score(self, records: Floats) -> Floats:
        """The trees' mean share of threats, from 0 to 1, per record."""
        total = np.zeros(len(records), np.float32)
        for root in self.roots:
            total += self.value[self._leaves(records, int(root))]
        return total / np.float32(len(self.roots))

    def _leaves(self, records: Floats, root: int) -> Ints:
        places = np.full(len(records), root, np.int32)
        rows = np.arange(len(records))
        while len(rows):
            at = places[rows]
            feature = self.feature[at]
            inner = feature != _LEAF
            rows, at, feature = rows[inner], at[inner], feature[inner]
            goes_left = records[rows, feature] <= self.threshold[at]
            places[rows] = np.where(goes_left, self.left[at], self.right[at])
        return places

    def explain(self, record: Floats) -> tuple[float, NDArray[np.float64]]:
        """The score of one record, and what each feature added to it; together with the trees'
        mean at their roots these add up to the score."""
        added = np.zeros(len(record))
        places = self.roots.copy()
        while True:
            feature = self.feature[places]
            inner = feature != _LEAF
            if not inner.any():
                break
            at, used = places[inner], feature[inner]
            below = np.where(record[used] <= self.threshold[at], self.left[at], self.right[at])
            np.add.at(added, used, (self.value[below] - self.value[at]).astype(np.float64))
            places[inner] = below
        return float(self.value[places].mean()), added / len(self.roots)


def grow(
    records: Floats,
    threats: NDArray[np.bool_],
    groups: NDArray[np.intp],
    seed: int,
    trees: int = TREES,
) -> tuple[Forest, Floats]:
    """Train.

    Args:
        records: One row each.
        threats: Which of them are.
        groups: Equal records have equal numbers, from 0; they are in a bag together or not at all.
    Returns: the forest, and each record's score by the trees that did not see it (NaN if all did).
    """
    rng = np.random.default_rng(seed)
    label = threats.astype(np.float32)
    parts: list[_Tree] = []
    seen_score = np.zeros(len(records), np.float32)
    seen_by = np.zeros(len(records), np.int32)
    group_count = int(groups.max()) + 1
    offset, roots = 0, []
    for _ in range(trees):
        times = np.bincount(rng.integers(0, group_count, group_count), minlength=group_count)
        weight = times[groups]
        bag = np.repeat(np.arange(len(records)), weight)
        tree = _grow_tree(records, label, bag, rng)
        roots.append(offset)
        out = np.flatnonzero(weight == 0)
        alone = tree.forest()
        seen_score[out] += alone.value[alone._leaves(records[out], 0)]
        seen_by[out] += 1
        parts.append(tree.moved(offset))
        offset += len(tree.feature)
    forest = _joined(parts, roots)
    with np.errstate(invalid="ignore", divide="ignore"):
        unseen = seen_score / seen_by
    return forest, unseen.astype(np.float32)


@frozen(eq=False)
class _Tree:
    feature: list[int]
    threshold: list[float]
    left: list[int]
    right: list[int]
    value: list[float]

    def forest(self) -> Forest:
        return _joined([self], [0])

    def moved(self, offset: int) -> _Tree:
        return _Tree(
            self.feature,
            self.threshold,
            [place + offset for place in self.left],
            [place + offset for place in self.right],
            self.value,
        )


def _joined(trees: list[_Tree], roots: list[int]) -> Forest:
    return Forest(
        roots=np.array(roots, np.int32),
        feature=np.array([one for tree in trees for one in tree.feature], np.int32),
        threshold=np.array([one for tree in trees for one in tree.threshold], np.float32),
        left=np.array([one for tree in trees for one in tree.left], np.int32),
        right=np.array([one for tree in trees for one in tree.right], np.int32),
        value=np.array([one for tree in trees for one in tree.value], np.float32),
    )


def _grow_tree(
    records: Floats, label: Floats, bag: NDArray[np.intp], rng: np.random.Generator
) -> _Tree:
    tree = _Tree([], [], [], [], [])
    tries = max(1, round(records.shape[1] ** 0.5))
    # (records, depth, the place of the parent, whether it is the left one)
    waiting: list[tuple[NDArray[np.intp], int, int, bool]] = [(bag, 0, -1, False)]
    while waiting:
        rows, depth, parent, is_left = waiting.pop()
        place = len(tree.feature)
        if parent >= 0:
            (tree.left if is_left else tree.right)[parent] = place
        share = float(label[rows].mean())
        split = None
        if depth < DEPTH_MAX and 0.0 < share < 1.0:
            split = _split(records[rows], label[rows], tries, rng)
        tree.value.append(share)
        tree.left.append(_LEAF)
        tree.right.append(_LEAF)
        if split is None:
            tree.feature.append(_LEAF)
            tree.threshold.append(0.0)
            continue
        feature, threshold, goes_left = split
        tree.feature.append(feature)
        tree.threshold.append(threshold)
        waiting.append((rows[~goes_left], depth + 1, place, False))
        waiting.append((rows[goes_left], depth + 1, place, True))
    return tree


def _split(
    values: Floats, label: Floats, tries: int, rng: np.random.Generator
) -> tuple[int, float, NDArray[np.bool_]] | None:
    """The best of a few splits at random places of random features."""
    low, high = values.min(axis=0), values.max(axis=0)
    usable = np.flatnonzero(high > low)
    if not len(usable):
        return None
    chosen = rng.permutation(usable)[:tries]
    low, high = low[chosen], high[chosen]
    thresholds = (low + rng.random(len(chosen), np.float32) * (high - low)).astype(np.float32)
    # A threshold that was rounded up to the highest value would leave nothing on the right.
    thresholds = np.where(thresholds < high, thresholds, low)
    left = values[:, chosen] <= thresholds
    count, total = left.sum(axis=0), len(values)
    threats = label @ left
    others = label.sum() - threats
    impurity = threats * (1 - threats / count) + others * (1 - others / (total - count))
    best = int(np.argmin(impurity))
    return int(chosen[best]), float(thresholds[best]), left[:, best]
