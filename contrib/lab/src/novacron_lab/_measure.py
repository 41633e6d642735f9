"""What links really do on this machine, beside what was asked of them."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import evolve, frozen

from novacron_lab import _system, _traffic
from novacron_lab._lab import Lab
from novacron_lab._spec import Bursts, LinkSpec

_NAME: Final = "measure"
_BUFFER_BYTES: Final = 64 << 20
_PINGS: Final = 100
_PACKETS: Final = 86_000
_TRACE_MBIT: Final = (48, 12)


@frozen(kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        what: Was measured, with its unit.
        asked: Of the link.
        found: In the same unit.
    """

    what: str
    asked: str
    found: str


def measure(seconds: float, told: Callable[[Row], None] = lambda row: None) -> list[Row]:
    """Measure the emulator, row by row; each is told as soon as it is known.

    Args:
        seconds: For each rate.
        told: Gets each row.
    """
    rows = []
    for row in _rows(seconds):
        told(row)
        rows.append(row)
    return rows


def _rows(seconds: float) -> Iterator[Row]:
    for mbit in (10, 100, 200, 1000):
        rate = _full_queue(mbit, seconds)
        yield Row(what="rate with a full queue, Mbit/s", asked=f"{mbit}", found=f"{rate:.1f}")
    controls = [name for name in ("cubic", "bbr") if name in _system.congestion_controls()]
    for mbit, rtt, name in [(1000, 50.0, name) for name in controls] + [
        (5000, 0.35, "cubic"),
        (10_000, 0.35, "cubic"),
    ]:
        goodput, cores = _bulk(mbit, rtt, name, seconds)
        yield Row(
            what=f"TCP goodput, {name}, {rtt:g} ms, Mbit/s", asked=f"{mbit}", found=f"{goodput:.0f}"
        )
        yield Row(what="  its emulator's share of a core", asked="", found=f"{cores:.2f}")
    for rtt in (0.2, 20.0, 50.0, 80.0, 150.0):
        times = _pings(rtt)
        late = statistics.quantiles(times, n=20)[-1]
        yield Row(
            what="round trip, median and 95th percentile, ms",
            asked=f"{rtt:g}",
            found=f"{statistics.median(times):.2f}, {late:.2f}",
        )
    for percent in (0.1, 0.5, 1.0, 5.0):
        lost = _loss(LinkSpec(engine="emulator", loss=percent / 100))
        yield Row(what="random loss, %", asked=f"{percent:g}", found=f"{lost:.2f}")
    lost = _loss(LinkSpec(engine="emulator", bursts=Bursts(begin=0.001, end=0.1)))
    yield Row(what="loss in bursts (0.1 % begin, 10 % end), %", asked="0.99", found=f"{lost:.2f}")
    for mbit, rate in zip(_TRACE_MBIT, _trace(seconds), strict=True):
        yield Row(what="plateau of a trace, Mbit/s", asked=f"{mbit}", found=f"{rate:.1f}")


@contextmanager
def _lab(link: LinkSpec) -> Iterator[Lab]:
    with Lab.up(_NAME, links=link, tcp_buffer_bytes=_BUFFER_BYTES) as lab:
        yield lab


def _command(lab: Lab, site: str, *words: object) -> list[str]:
    return lab.command(site, [sys.executable, "-P", _traffic.__file__, *map(str, words)])


def _run(lab: Lab, *words: object) -> Any:
    said = _system.run(*_command(lab, "a", *words))
    return json.loads(said) if said else None


@contextmanager
def _beside(lab: Lab, *words: object) -> Iterator[subprocess.Popen[str]]:
    site = "b" if words[0] == "sink" else "a"
    with subprocess.Popen(_command(lab, site, *words), stdout=subprocess.PIPE, text=True) as work:
        yield work


def _carried(lab: Lab, seconds: float) -> float:
    """Mbit/s that arrive now; the link counts both the bytes and the time. The median of ten
    looks, as the sender may be kept from sending for a moment."""
    seen = [lab.stats()["a>b"]]
    for _ in range(10):
        threading.Event().wait(seconds / 10)
        seen.append(lab.stats()["a>b"])
    return statistics.median(
        (after.forwarded_bytes - before.forwarded_bytes) * 8e-6 / (after.at_s - before.at_s)
        for before, after in itertools.pairwise(seen)
    )


def _full_queue(mbit: float, seconds: float) -> float:
    link = LinkSpec.wan(rate_mbit=mbit, rtt_ms=20)
    with _lab(_emulated(link)) as lab, _beside(lab, "flood", lab.site("b").address, seconds + 1.5):
        threading.Event().wait(1)
        return _carried(lab, seconds)


def _bulk(mbit: float, rtt_ms: float, name: str, seconds: float) -> tuple[float, float]:
    """Goodput in Mbit/s, and seconds of processor per second."""
    link = LinkSpec.wan(rate_mbit=mbit, rtt_ms=rtt_ms)
    with _lab(_emulated(link)) as lab, _beside(lab, "sink", lab.site("b").address) as sink:
        assert sink.stdout is not None
        sink.stdout.readline()
        before = _used_s(lab)
        _run(lab, "bulk", lab.site("b").address, seconds, name)
        cores = (_used_s(lab) - before) / seconds
        return float(json.loads(sink.stdout.readline())["bit_per_s"]) / 1e6, cores


def _used_s(lab: Lab) -> float:
    """Processor time of the emulator; the scheduler's own account, not sampled by ticks."""
    process = lab.state.process
    assert process is not None
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _pings(rtt_ms: float) -> list[float]:
    with _lab(_emulated(LinkSpec.wan(rtt_ms=rtt_ms))) as lab:
        return [took * 1e3 for took in _run(lab, "ping", lab.site("b").address, _PINGS)]


def _loss(link: LinkSpec) -> float:
    with _lab(link) as lab:
        _run(lab, "count", lab.site("b").address, _PACKETS, 100)
        threading.Event().wait(0.2)
        did = lab.stats()["a>b"]
        return 100 * did.lost_packets / did.in_packets


def _trace(seconds: float) -> Iterator[float]:
    """A trace of two plateaus, which are looked at one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        for mbit in _TRACE_MBIT:
            path = Path(folder) / f"{mbit}.trace"
            # So many times 1500 bytes in each millisecond.
            path.write_text("".join(f"{n // (mbit // 12) + 1}\n" for n in range(mbit // 12 * 1000)))
            with (
                _lab(LinkSpec(engine="emulator", trace=path)) as lab,
                _beside(lab, "flood", lab.site("b").address, seconds + 1.5),
            ):
                threading.Event().wait(1)
                yield _carried(lab, seconds)


def _emulated(link: LinkSpec) -> LinkSpec:
    return evolve(link, engine="emulator")
