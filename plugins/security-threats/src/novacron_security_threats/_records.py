"""Records of flows or sessions as tables of text, and how they become numbers.

A schema is learned from the records of a training: which columns are numbers, which of those are
counted on a logarithm (sizes, durations), which values the other columns have. A value that was not
there in training is no value that is known, so its record is far from all that were.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from attrs import frozen
from novacron import ConfigError, NotFound
from numpy.typing import NDArray

Floats = NDArray[np.float32]
FILE_BYTES_MAX: Final = 512 << 20
RECORDS_MAX: Final = 1_000_000
COLUMNS_MAX: Final = 512
FIELD_CHARACTERS_MAX: Final = 4096
VALUES_MAX: Final = 96
LOG_ABOVE: Final = 400.0
OTHER: Final = "another one"


@frozen
class Table:
    """Records as they stand in a file: the columns' names, and rows of as many texts."""

    columns: tuple[str, ...]
    rows: list[list[str]]

    def without(self, *names: str) -> Table:
        keep = [place for place, column in enumerate(self.columns) if column not in names]
        return Table(
            tuple(self.columns[place] for place in keep),
            [[row[place] for place in keep] for row in self.rows],
        )

    def column(self, name: str) -> list[str]:
        """Raises ConfigError if there is none of that name."""
        if name not in self.columns:
            raise ConfigError(
                f"there is no column {name!r}", hint=f"there are: {', '.join(self.columns)}"
            )
        place = self.columns.index(name)
        return [row[place] for row in self.rows]


def read_table(path: Path) -> Table:
    """A CSV file with a header, also a gzipped one. Raises NotFound; ConfigError, with the line."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}", hint="name a CSV file with a header") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise ConfigError(f"{path} is no sound gzip file: {error}") from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} holds more than {FILE_BYTES_MAX >> 20} MiB", hint="split it")
    return parse_table(data, str(path))


def parse_table(data: bytes, where: str) -> Table:
    """`read_table` of what was read."""
    text = io.StringIO(data.decode("utf-8", "replace"), newline="")
    reader = csv.reader(text)
    columns: tuple[str, ...] = ()
    rows: list[list[str]] = []
    try:
        columns = tuple(next(reader, ()))
        if not 2 <= len(columns) <= COLUMNS_MAX or len(set(columns)) != len(columns):
            raise ConfigError(
                f"{where} has {len(columns)} columns or two of one name",
                hint=f"the first line names 2 to {COLUMNS_MAX} columns, each once",
            )
        for row in reader:
            if len(row) != len(columns):
                raise ConfigError(
                    f"line {reader.line_num} of {where} has {len(row)} values, and there are "
                    f"{len(columns)} columns",
                    hint="correct that line",
                )
            if any(len(value) > FIELD_CHARACTERS_MAX for value in row):
                raise ConfigError(f"line {reader.line_num} of {where} has a value that is too long")
            rows.append(row)
            if len(rows) > RECORDS_MAX:
                raise ConfigError(f"{where} has more than {RECORDS_MAX} records", hint="split it")
    except csv.Error as error:
        raise ConfigError(f"line {reader.line_num} of {where}: {error}") from error
    if not rows:
        raise ConfigError(f"{where} has no records", hint="give a header and records")
    return Table(columns, rows)


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one column becomes features.

    Attributes:
        values: Of a column of words: those that become a feature each; empty for numbers.
        logarithm: Whether numbers are counted on a logarithm.
        low, high: Where nine in ten ordinary records lie.
        shares: Of words: how many of the ordinary records have each value, from 0 to 1.
    """

    name: str
    values: list[str] = []
    logarithm: bool = False
    low: float = 0.0
    high: float = 0.0
    shares: list[float] = []

    @property
    def width(self) -> int:
        return len(self.values) + 1 if self.values else 1


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How records become rows of numbers."""

    columns: list[Column]

    @property
    def width(self) -> int:
        return sum(column.width for column in self.columns)

    def owners(self) -> list[int]:
        """The column that each feature comes from."""
        return [place for place, column in enumerate(self.columns) for _ in range(column.width)]

    def encode(self, table: Table) -> Floats:
        """Raises ConfigError if a column is missing, or a number is none."""
        out = np.zeros((len(table.rows), self.width), np.float32)
        at = 0
        for column in self.columns:
            texts = table.column(column.name)
            if column.values:
                places = {value: place for place, value in enumerate(column.values)}
                found = [places.get(text, len(places)) for text in texts]
                out[np.arange(len(texts)), at + np.array(found)] = 1.0
            else:
                numbers = _numbers(column.name, texts)
                out[:, at] = np.log1p(np.maximum(numbers, 0)) if column.logarithm else numbers
            at += column.width
        return out


def _numbers(name: str, texts: Sequence[str]) -> NDArray[np.float64]:
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError as error:
        raise ConfigError(
            f"the column {name!r} should hold numbers: {error}",
            hint="correct the value, or train anew",
        ) from None
    if not np.all(np.isfinite(numbers)) or np.any(np.abs(numbers) > 1e30):
        raise ConfigError(f"the column {name!r} has a number beyond all bounds")
    return numbers


def learn_schema(table: Table, ordinary: NDArray[np.bool_]) -> Schema:
    """What the columns are like, by the records of a training.

    Args:
        ordinary: Which of them are no threats: these say what is usual.
    """
    columns = []
    for name in table.columns:
        texts = table.column(name)
        try:
            numbers = _numbers(name, texts)
        except ConfigError:
            usual = Counter(text for text, one in zip(texts, ordinary, strict=True) if one)
            common = [value for value, _ in Counter(texts).most_common(VALUES_MAX)]
            total = max(1, sum(usual.values()))
            shares = [usual[value] / total for value in common]
            columns.append(Column(name, values=common, shares=shares))
            continue
        low, high = np.quantile(numbers[ordinary], (0.05, 0.95))
        wide = bool(numbers.min() >= 0 and numbers.max() > LOG_ABOVE)
        columns.append(Column(name, logarithm=wide, low=float(low), high=float(high)))
    return Schema(columns)
