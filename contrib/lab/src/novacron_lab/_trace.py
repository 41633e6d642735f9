"""Delivery traces: when 1500 bytes may leave.

Two formats are read. mahimahi's has a millisecond per line, one for each 1500 bytes, in rising
order; the last one is the period after which it begins again. The other is CSV with the header
``t_s,mbps``: from each time on the link has that rate, the last one for as long as the one before.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from novacron import ConfigError

HEADER: Final = "t_s,mbps"
OPPORTUNITY_BYTES: Final = 1500
LINES_MAX: Final = 1 << 24
_MS_MAX: Final = 1_000_000_000


def times_ms(path: Path) -> list[int]:
    """The opportunities of one period. Raises ConfigError that names the file and the fault."""
    try:
        text = path.read_text(encoding="ascii")
        times = list(_of_rates(text)) if is_rates(text) else [int(word) for word in text.split()]
        if not times or times[-1] == 0:
            raise ValueError("nothing ever leaves by it")
        if times[0] < 0 or times[-1] > _MS_MAX or any(a > b for a, b in _pairs(times)):
            raise ValueError("its times must rise from 0 to 1000000000 ms")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the trace {path} cannot be read: {error}",
            hint=f"a line per 1500 bytes, in ms (mahimahi), or CSV that begins with {HEADER}",
        ) from error
    return times


def is_rates(text: str) -> bool:
    return text.startswith(HEADER)


def mean_bytes_per_s(path: Path) -> float:
    times = times_ms(path)
    return len(times) * OPPORTUNITY_BYTES / times[-1] * 1e3


def prepared(path: Path, folder: Path) -> Path:
    """The trace in mahimahi's format: itself, or written below ``folder``."""
    times = times_ms(path)
    if not is_rates(path.read_text(encoding="ascii")):
        return path.resolve()
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    made = folder / f"trace-{name}"
    made.write_text("".join(f"{time}\n" for time in times))
    return made


def _pairs(times: list[int]) -> Iterator[tuple[int, int]]:
    return itertools.pairwise(times)


def _of_rates(text: str) -> Iterator[int]:
    rows = [line.split(",") for line in text.splitlines()[1:] if line.strip()]
    samples = [(float(begin), float(mbps)) for begin, mbps in rows]
    if len(samples) < 2:
        raise ValueError("a trace of rates has two lines or more")
    begins = [begin - samples[0][0] for begin, _ in samples]
    ends = [*begins[1:], 2 * begins[-1] - begins[-2]]
    if any(not 0 <= b < e <= _MS_MAX / 1e3 for b, e in zip(begins, ends, strict=True)):
        raise ValueError("its times must rise")
    left, count = float(OPPORTUNITY_BYTES), 0
    for begin, end, (_, mbps) in zip(begins, ends, samples, strict=True):
        if not 0 <= mbps <= 1e5:
            raise ValueError(f"a rate of {mbps} Mbit/s")
        per_s = mbps * 125_000
        room = (end - begin) * per_s
        used = left
        while used <= room:
            count += 1
            if count > LINES_MAX:
                raise ValueError(f"it is longer than {LINES_MAX} times 1500 bytes")
            yield math.ceil((begin + used / per_s) * 1e3)
            used += OPPORTUNITY_BYTES
        left = used - room
    # What ends the period is an opportunity as well, so the rounds have the length of the trace.
    yield math.ceil(ends[-1] * 1e3)
