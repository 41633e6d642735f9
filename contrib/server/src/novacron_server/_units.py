"""Sizes, durations and rates as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final

from novacron import ConfigError

_WRITTEN: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z/]*)", re.ASCII)
LIMIT: Final = (1 << 63) - 1

_DECIMAL: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY: Final = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}

_BYTES: Final[Mapping[str, Fraction]] = MappingProxyType(
    {"": Fraction(1), "b": Fraction(1)}
    | {f"{prefix}{end}": Fraction(n) for prefix, n in _DECIMAL.items() for end in ("b", "")}
    | {f"{prefix}{end}": Fraction(n) for prefix, n in _BINARY.items() for end in ("b", "")}
)
_MILLISECONDS: Final[Mapping[str, Fraction]] = MappingProxyType(
    {
        "": Fraction(1),
        "us": Fraction(1, 1000),
        "ms": Fraction(1),
        "s": Fraction(1000),
        "m": Fraction(60_000),
        "min": Fraction(60_000),
        "h": Fraction(3_600_000),
    }
)


def _parse(text: str, factors: Mapping[str, Fraction], what: str, examples: str) -> int:
    found = _WRITTEN.fullmatch(text.strip())
    factor = factors.get(found[2].lower()) if found else None
    if found is None or factor is None:
        raise ConfigError(f"{text!r:.60} is no {what}", hint=f"write it like {examples}")
    value = Fraction(found[1]) * factor
    if value <= 0 or value > LIMIT:
        raise ConfigError(f"the {what} {text!r:.60} is out of range", hint=f"examples: {examples}")
    if value < 1:
        raise ConfigError(f"the {what} {text!r:.60} is below its unit", hint=f"write {examples}")
    return int(value)


def parse_size(text: str) -> int:
    """Bytes: ``64MiB``, ``64Mi`` (1024) or ``64MB``, ``64M`` (1000), or a plain number.

    Raises: ConfigError.
    """
    return _parse(text, _BYTES, "size", "64MiB, 2GiB, 500MB or 1048576")


def parse_milliseconds(text: str) -> int:
    """Milliseconds: ``300``, ``300ms``, ``0.3s``. Raises ConfigError."""
    return _parse(text, _MILLISECONDS, "duration", "300ms, 1.5s or 300")


def parse_rate(text: str) -> int:
    """Bytes per second: ``100mbit`` (bits), ``10MB`` or ``10MB/s`` (bytes), or a plain number.

    ``mbps`` is refused: some mean bits by it and some bytes. Raises: ConfigError.
    """
    examples = "100mbit, 10MB/s or 10000000 (bytes per second)"
    plain = text.strip()
    if plain.lower().endswith("/s"):
        plain = plain[:-2]
    if plain.lower().endswith("bit"):
        bits = _parse(plain[:-3] or "x", _BYTES, "rate", examples)
        if plain[:-3].lower().endswith("b"):
            raise ConfigError(f"{text!r:.60} is no rate", hint=f"write it like {examples}")
        if bits < 8:
            raise ConfigError(f"the rate {text!r:.60} is below 1 byte/s", hint=examples)
        return bits // 8
    return _parse(plain, _BYTES, "rate", examples)


def show_size(count: float) -> str:
    """Bytes for people: ``63.9 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def show_rate(bytes_per_s: float) -> str:
    """A rate for people, in the bits that links are sold by: ``94.2 Mbit/s``."""
    bits = bytes_per_s * 8
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if abs(bits) < 1000:
            return f"{bits:.1f} {unit}"
        bits /= 1000
    return f"{bits:.2f} Gbit/s"


def show_seconds(seconds: float) -> str:
    """A duration for people: ``7 s``, ``2 min 5 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, whole = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {whole} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def one_line(text: str) -> str:
    """What somebody else wrote, as one line without anything that would move a cursor."""
    return " ".join(_visible(text).split())


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A table for pipes: a line per row, the columns in line, at least two spaces between them."""
    # What a cell says may come from a peer: its line ends and controls do not count.
    lines = [
        ["" if cell is None else one_line(str(cell)) for cell in row] for row in [columns, *rows]
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _visible(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
