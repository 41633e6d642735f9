"""Links as people write them, on the command line and in a lab's file.

``rate = "100mbit"`` holds for both ways, ``rate = "100/20"`` is there and back.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from attrs import Factory, frozen
from novacron import ConfigError, structure

from novacron_lab._spec import Bursts, Engine, LinkSpec, Outage

T = TypeVar("T")
Word = str | float | int

_NUMBER: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z%]*)", re.ASCII)
_RATES: Final = {"": 1e6, "bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_TIMES: Final = {"": 1e-3, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_SECONDS: Final = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0}
_SHARES: Final = {"": 1e-2, "%": 1e-2}
_SIZES: Final = {
    "": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9,
    "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30,
}  # fmt: skip


def _read(units: Mapping[str, float], example: str) -> Callable[[str, str], float]:
    def read(text: str, what: str) -> float:
        match = _NUMBER.fullmatch(text.strip().lower())
        if match is None or match[2] not in units:
            raise ConfigError(f"{what} is {text!r:.40}", hint=f"write it like {example}")
        return float(match[1]) * units[match[2]]

    return read


rate: Final = _read(_RATES, "100, 100mbit or 1gbit (plain numbers are Mbit/s)")
milliseconds: Final = _read(_TIMES, "150, 150ms or 350us (plain numbers are ms)")
seconds: Final = _read(_SECONDS, "30, 30s or 500ms (plain numbers are seconds)")
share: Final = _read(_SHARES, "1 or 0.5% (plain numbers are per cent)")
size: Final = _read(_SIZES, "1000000, 1MB or 64KiB (plain numbers are bytes)")


def bursts(text: str, what: str) -> Bursts | None:
    """``P,R`` or ``P,R,LOSS``, all in per cent; ``off`` for none."""
    if text.strip() == "off":
        return None
    parts = text.split(",")
    if not 2 <= len(parts) <= 3:
        raise ConfigError(
            f"{what} is {text!r:.40}",
            hint="0.1,10,100: chances per packet that one begins and ends, and its loss, all in %",
        )
    values = [share(part, what) for part in parts]
    return Bursts(begin=values[0], end=values[1], loss=values[2] if len(values) > 2 else 1.0)


def outage(text: str) -> Outage:
    """``10+30``: at 10 s for 30 s."""
    begin, plus, length = text.partition("+")
    if not plus:
        raise ConfigError(f"{text!r:.40} is no outage", hint="10+30 is one at 10 s for 30 s")
    return Outage(
        begin_s=seconds(begin, "an outage's begin"), length_s=seconds(length, "an outage's length")
    )


@frozen(kw_only=True)
class LinkText:
    """A link, both ways, as a table of a file or as options."""

    rate: Word | None = None
    rtt: Word | None = None
    delay: Word | None = None
    jitter: Word | None = None
    loss: Word | None = None
    bursts: str | None = None
    queue: Word | None = None
    reorder: Word | None = None
    reorder_by: Word | None = None
    trace: Path | None = None
    trace_back: Path | None = None
    outages: list[str] = Factory(list)
    engine: Engine | None = None

    def figures(self, folder: Path = Path()) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is said of the way there and of the way back, as arguments of `LinkSpec`.

        Args:
            folder: What the names of traces are relative to.
        """
        if self.rtt is not None and self.delay is not None:
            raise ConfigError("a link has an rtt or a delay, not both", hint="leave one out")
        there: dict[str, Any] = {}
        back: dict[str, Any] = {}

        def put(key: str, value: Word | None, what: str, read: Callable[[str, str], Any]) -> None:
            if value is not None:
                there[key], back[key] = _both_ways(str(value), what, read)

        put("rate_bit_per_s", self.rate, "rate", rate)
        put("delay_s", self.delay, "delay", milliseconds)
        put("jitter_s", self.jitter, "jitter", milliseconds)
        put("loss", self.loss, "loss", share)
        put("bursts", self.bursts, "bursts", bursts)
        put("queue_bytes", self.queue, "queue", lambda text, what: int(size(text, what)))
        put("reorder", self.reorder, "reorder", share)
        put("reorder_by_s", self.reorder_by, "reorder_by", milliseconds)
        if self.rtt is not None:
            there["delay_s"] = back["delay_s"] = milliseconds(str(self.rtt), "rtt") / 2
        for key, trace in ((there, self.trace), (back, self.trace_back or self.trace)):
            if trace is not None:
                key["trace"] = _existing(folder / trace)
        if self.outages:
            there["outages"] = back["outages"] = tuple(map(outage, self.outages))
        if self.engine is not None:
            there["engine"] = back["engine"] = self.engine
        return there, back

    def links(self, folder: Path = Path()) -> tuple[LinkSpec, LinkSpec]:
        there, back = self.figures(folder)
        return LinkSpec(**there), LinkSpec(**back)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"there is no trace {path}", hint="a file in mahimahi's format")
    return path.resolve()


def _both_ways(text: str, what: str, read: Callable[[str, str], T]) -> tuple[T, T]:
    there, slash, back = text.partition("/")
    first = read(there, what)
    return first, read(back, what) if slash else first


@frozen(kw_only=True)
class LabFile:
    """A lab as its file describes it; `read` makes the arguments of `Lab.up` of it."""

    sites: list[str]
    name: str | None = None
    mtu: int = 1500
    seed: int = 1
    congestion_control: str | None = None
    tcp_buffer: Word | None = None
    offload: bool = True
    link: dict[str, Any] = Factory(dict)
    links: dict[str, Any] = Factory(dict)


def read_file(path: Path) -> dict[str, Any]:
    """The arguments of `Lab.up` that a file stands for. Raises ConfigError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    lab = structure(LabFile, tables, str(path))
    links: dict[tuple[str, str], list[LinkSpec]] = {}
    named = {_pair(key, lab.sites, path): value for key, value in lab.links.items()}
    for i, a in enumerate(lab.sites):
        for b in lab.sites[i + 1 :]:
            for pair in ((a, b), (b, a)):
                if pair in named:
                    break
            else:
                pair = (a, b)
            tables = named.get(pair, {})
            said = tables if isinstance(tables, list) else [tables]
            where = f"[links.{pair[0]}-{pair[1]}] of {path}"
            # What is not said of a pair is what is said of all.
            made = [
                structure(LinkText, lab.link | structured(one, where), where).links(path.parent)
                for one in said
            ]
            links[pair] = [there for there, _ in made]
            links[pair[1], pair[0]] = [back for _, back in made]
    buffer = lab.tcp_buffer
    return {
        "sites": lab.sites,
        "links": links,
        "mtu": lab.mtu,
        "seed": lab.seed,
        "congestion_control": lab.congestion_control,
        "tcp_buffer_bytes": None if buffer is None else int(size(str(buffer), "tcp_buffer")),
        "offload": lab.offload,
    } | ({} if lab.name is None else {"name": lab.name})


def structured(table: object, where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is {table!r:.40} and not a table of figures")
    return table


def _pair(key: str, sites: list[str], path: Path) -> tuple[str, str]:
    a, _, b = key.partition("-")
    if a == b or a not in sites or b not in sites:
        raise ConfigError(
            f"[links.{key}] of {path} joins no two sites of the lab",
            hint=f"[links.A-B] with two of {', '.join(sites)}",
        )
    return a, b
