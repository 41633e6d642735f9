"""The detector of records: trees that know threats, and a distance that knows what is ordinary.

The score adds both: the trees' share (0 to 1) and half of the distance in units that 98 in 100
ordinary records keep (at most 1.5 of them). Trees alone let pass most of what they were never
shown; the distance alone confuses rare with bad. The threshold is set by records that the trees
which judge them have not seen, so that a wished share of false alarms holds on records to come.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from attrs import frozen
from novacron import ConfigError, NotFound
from numpy.typing import NDArray

from novacron_security_threats import _forest, _novelty
from novacron_security_threats._files import replace
from novacron_security_threats._forest import Forest
from novacron_security_threats._novelty import Novelty
from novacron_security_threats._records import Column, Floats, Schema, Table, learn_schema

FORMAT: Final = "novacron threats model 1"
MODEL_BYTES_MAX: Final = 64 << 20
NOVELTY_WEIGHT: Final = 0.5
NOVELTY_MAX: Final = 1.5
FALSE_ALARMS: Final = 0.03
REASONS_MAX: Final = 3


@frozen(kw_only=True)
class Score:
    """What is thought of one record.

    Attributes:
        score: From 0 to 1.75.
        threat: Whether it is beyond the threshold.
        known: The trees' share: how much it is like threats that were shown.
        novel: The distance: how far it is from ordinary records; above 1 is rare.
        reasons: Which features are unusual and how, the weightiest first.
    """

    score: float
    threat: bool
    known: float
    novel: float
    reasons: tuple[str, ...]


@frozen(eq=False, kw_only=True)
class Detector:
    """A trained model. Its memory is bounded: at most 8192 ordinary records and 60 trees."""

    schema: Schema
    forest: Forest
    novelty: Novelty
    ladder: Floats
    origin: str

    def threshold(self, false_alarms: float = FALSE_ALARMS) -> float:
        """The score beyond which a record is a threat.

        Args:
            false_alarms: The share of ordinary records that may be taken for threats, above 0.
        """
        return float(np.quantile(self.ladder, 1 - false_alarms))

    def scores(self, table: Table) -> Floats:
        """Of all records of a table. Raises ConfigError if it does not fit the schema."""
        return self._combined(self.schema.encode(table))

    def _combined(self, records: Floats) -> Floats:
        found: Floats = _sum(self.forest.score(records), self.novelty.score(records))
        return found

    def explain(self, table: Table, place: int = 0, *, false_alarms: float = FALSE_ALARMS) -> Score:
        """One record's score with reasons. Raises ConfigError if it does not fit the schema."""
        one = Table(table.columns, [table.rows[place]])
        record = self.schema.encode(one)[0]
        known, added = self.forest.explain(record)
        novel, apart = self.novelty.explain(record)
        score = float(_sum(np.float32(known), np.float32(novel)))
        weights = np.maximum(added, 0)
        if novel > 0.5:
            share = NOVELTY_WEIGHT * min(novel, NOVELTY_MAX)
            weights = weights + share * apart / max(float(apart.sum()), 1e-9)
        return Score(
            score=score,
            threat=score > self.threshold(false_alarms),
            known=known,
            novel=novel,
            reasons=self._reasons(one, weights),
        )

    def _reasons(self, one: Table, weights: NDArray[np.float64]) -> tuple[str, ...]:
        by_column = np.bincount(self.schema.owners(), weights, len(self.schema.columns))
        order = np.argsort(-by_column)[:REASONS_MAX]
        return tuple(
            _sentence(self.schema.columns[place], one.column(self.schema.columns[place].name)[0])
            for place in order
            if by_column[place] > 0.01
        )

    def save(self, path: Path) -> None:
        """Raises OSError; an older file is then as it was."""
        model = _Model(
            format=FORMAT,
            origin=self.origin,
            schema=self.schema,
            usual=self.novelty.usual,
            arrays={name: _Array.of(array) for name, array in self._arrays().items()},
        )
        replace(path, msgspec.msgpack.encode(model))

    def _arrays(self) -> dict[str, NDArray[Any]]:
        forest, novelty = self.forest, self.novelty
        return {
            **{name: getattr(forest, name) for name in _FOREST},
            **{name: getattr(novelty, name) for name in _NOVELTY},
            "ladder": self.ladder,
        }

    @classmethod
    def load(cls, path: Path) -> Detector:
        """Raises NotFound; ConfigError if it is no sound model."""
        try:
            with path.open("rb") as file:
                data = file.read(MODEL_BYTES_MAX + 1)
        except FileNotFoundError:
            raise NotFound(
                f"there is no model {path}", hint="make one with `novacron threats train`"
            ) from None
        try:
            return cls.decode(data)
        except ValueError as error:
            raise ConfigError(
                f"{path} is no sound model: {error}", hint="train it again"
            ) from error

    @classmethod
    def decode(cls, data: bytes) -> Detector:
        """Read a model of unknown origin. Raises ValueError."""
        try:
            return cls._decoded(data)
        except (msgspec.MsgspecError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    @classmethod
    def _decoded(cls, data: bytes) -> Detector:
        if len(data) > MODEL_BYTES_MAX:
            raise ValueError(f"it has more than {MODEL_BYTES_MAX >> 20} MiB")
        model = msgspec.msgpack.decode(data, type=_Model)
        if model.format != FORMAT:
            raise ValueError(f"its format is {model.format[:40]!r}, not {FORMAT!r}")
        width = model.schema.width
        arrays = {name: array.array() for name, array in model.arrays.items()}
        forest = Forest(*(arrays[name] for name in _FOREST))
        mean, spread, sample = (arrays[name] for name in _NOVELTY)
        novelty = Novelty(mean, spread, sample, model.usual)
        sound = (
            forest.feature.dtype == np.int32
            and novelty.mean.shape == novelty.spread.shape == (width,)
            and novelty.sample.ndim == 2
            and novelty.sample.shape[1] == width
            and 0 < len(novelty.sample) <= _novelty.SAMPLE_MAX
            and int(forest.feature.max()) < width
            and all(len(column.shares) == len(column.values) for column in model.schema.columns)
            and bool(np.all((novelty.spread > 1e-9) & (novelty.spread < 1e30)))
            and bool(np.all(np.abs(novelty.mean) < 1e30))
            and bool(np.all(np.abs(novelty.sample) <= _novelty.DEVIATIONS_MAX))
            and bool(np.all(np.abs(arrays["ladder"]) < 10))
            and 1e-6 < model.usual < 1e6
            and arrays["ladder"].ndim == 1
            and len(arrays["ladder"]) > 0
            and all(bool(np.all(np.isfinite(array))) for array in arrays.values())
        )
        if not sound:
            raise ValueError("its parts do not fit together")
        return cls(
            schema=model.schema,
            forest=forest,
            novelty=novelty,
            ladder=arrays["ladder"],
            origin=model.origin,
        )


_FOREST: Final = ("roots", "feature", "threshold", "left", "right", "value")
_NOVELTY: Final = ("mean", "spread", "sample")
_KINDS: Final = {"i": np.dtype("<i4"), "f": np.dtype("<f4")}


class _Array(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    shape: list[int]
    data: bytes

    @classmethod
    def of(cls, array: NDArray[Any]) -> _Array:
        kind = "i" if array.dtype.kind == "i" else "f"
        return cls(kind, list(array.shape), array.astype(_KINDS[kind]).tobytes())

    def array(self) -> NDArray[Any]:
        if not 1 <= len(self.shape) <= 2 or any(n < 0 for n in self.shape):
            raise ValueError("an array of a strange shape")
        return np.frombuffer(self.data, _KINDS[self.kind]).reshape(self.shape)


class _Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    origin: str
    schema: Schema
    usual: float
    arrays: dict[str, _Array]


def _sum(known: Any, novel: Any) -> Any:
    return known + np.float32(NOVELTY_WEIGHT) * np.minimum(novel, np.float32(NOVELTY_MAX))


def _sentence(column: Column, text: str) -> str:
    if column.values:
        shares = dict(zip(column.values, column.shares, strict=True))
        if text not in shares:
            return f"{column.name} is {text[:40]!r}, which was never seen"
        return f"{column.name} is {text[:40]!r}, as in {shares[text]:.1%} of ordinary records"
    return f"{column.name} is {text[:24]}; nine in ten ordinary records have " + (
        f"{column.low:g}" if column.low == column.high else f"{column.low:g} to {column.high:g}"
    )


def train(
    table: Table, labels: Sequence[str], normal: str, *, seed: int = 0, origin: str = ""
) -> Detector:
    """Learn from labelled records.

    Args:
        table: The records, without label.
        labels: Of each record.
        normal: The label of ordinary records; every other one is a threat.
        origin: What it was trained on, for whoever reads the model later.
    Raises: ConfigError if there are too few of either kind.
    """
    threats = np.array([label != normal for label in labels])
    ordinary = ~threats
    if ordinary.sum() < 50 or threats.sum() < 10:
        raise ConfigError(
            f"{int(ordinary.sum())} ordinary records ({normal!r}) and {int(threats.sum())} threats",
            hint="give at least 50 and 10; --normal names the label of ordinary records",
        )
    schema = learn_schema(table, ordinary)
    records = schema.encode(table)
    _, groups = np.unique(records, axis=0, return_inverse=True)
    forest, unseen = _forest.grow(records, threats, groups.reshape(-1), seed)
    novelty, apart = _novelty.learn(records[ordinary], seed)
    judged = ordinary & ~np.isnan(unseen)
    ladder = _sum(unseen[judged], apart[judged[ordinary]])
    steps = np.quantile(ladder, np.linspace(0, 1, 4097)).astype(np.float32)
    return Detector(schema=schema, forest=forest, novelty=novelty, ladder=steps, origin=origin)
