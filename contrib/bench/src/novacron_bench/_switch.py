"""Switches providers in the middle of a copy, again and again: what each switch costs."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import frozen
from novacron import ConfigError, InternalError
from novacron_security_tls import Authority

from novacron_bench._competitor import BUFFERS, end
from novacron_bench._disk import disk
from novacron_bench._network import LinkFigures, Network

_WORKER: Final = "from novacron_bench._switch_worker import main; main()"
_CONTENT_BYTES: Final = 64 << 20


@frozen(kw_only=True)
class Switched:
    """What the switches cost.

    Attributes:
        switches: How many there were.
        gap_ms: For each: the longest time without a batch at the destination in the half period
            after it.
        calm_ms: The same in the half period before it, which is what loss and the host cost anyway.
        call_ms: Of each: how long the call itself took at the source.
        batches: That were copied.
        whole: Whether every batch arrived, in order, as it was.
        resent_bytes: Of frames that were sent again because their stream was given up.
    """

    link: str
    modes: tuple[tuple[str, str], ...]
    switches: int
    gap_ms: tuple[float, ...]
    calm_ms: tuple[float, ...]
    call_ms: tuple[float, ...]
    batches: int
    whole: bool
    resent_bytes: int

    def pause_ms(self, share: float) -> float:
        """What switches cost beyond calm: the difference of the two at that percentile."""
        return max(0.0, percentile(self.gap_ms, share) - percentile(self.calm_ms, share))

    def to_json(self) -> dict[str, Any]:
        return attrs.asdict(self) | {
            "pause_median_ms": round(self.pause_ms(50), 2),
            "pause_p99_ms": round(self.pause_ms(99), 2),
            "gap_median_ms": round(statistics.median(self.gap_ms), 2),
            "calm_median_ms": round(statistics.median(self.calm_ms), 2),
            "call_median_ms": round(statistics.median(self.call_ms), 3),
            "call_p99_ms": round(percentile(self.call_ms, 99), 3),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that so many percent are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)]


def pauses_s(moments: Sequence[float], arrivals: Sequence[float], window_s: float) -> list[float]:
    """The longest time without an arrival in the window after each of these moments.

    Raises: InternalError if too little arrived to tell.
    """
    if len(arrivals) < 2 * len(moments):
        raise InternalError("too little arrived to tell what a switch costs")
    found = []
    for moment in moments:
        first = max(0, bisect_right(arrivals, moment) - 1)
        last = bisect_right(arrivals, moment + window_s)
        seen = arrivals[first : last + 1]
        found.append(max((later - sooner for sooner, later in pairwise(seen)), default=window_s))
    return found


def switch(
    figures: LinkFigures,
    modes: Sequence[tuple[str, str]],
    *,
    switches: int,
    every_s: float,
) -> Switched:
    """Copy pages over a link, and switch between modes meanwhile.

    Raises: ConfigError for modes that are none; InternalError if the copy does not go on.
    """
    if len(modes) < 2:
        raise ConfigError("there is nothing to switch between", hint="name two modes")
    with tempfile.TemporaryDirectory(prefix="nvb-", dir="/tmp") as name:
        folder = Path(name)
        authority = Authority.create(folder / "ca")
        for side in "ab":
            authority.issue(side, folder / side)
        setup = {
            "state": name,
            "content": str(disk(_CONTENT_BYTES).path),
            "modes": modes,
            "switches": switches,
            "every_s": every_s,
            "window_bytes": max(4 << 20, 2 * figures.product_bytes),
        }
        with Network(figures, name=f"nvb{os.getpid() % 1_000_000}") as network:
            network.set_tcp("bbr", *BUFFERS["system"])
            started: list[subprocess.Popen[bytes]] = []
            try:
                far = _start(network, "b", setup | {"side": "b", "address": network.address("b")})
                started.append(far)
                near = _start(
                    network, "a", setup | {"side": "a", "address": _line(far)["listening"]}
                )
                started.append(near)
                said, heard = _line(near), _line(far)
            finally:
                for process in started:
                    end(process)
                    if process.stdout is not None:
                        process.stdout.close()
    began, arrivals, half = said["began_s"], heard["at_s"], every_s / 2
    after = pauses_s(began, arrivals, half)
    before = pauses_s([moment - half for moment in began], arrivals, half)
    return Switched(
        link=str(figures),
        modes=tuple(modes),
        switches=len(began),
        gap_ms=tuple(1e3 * gap for gap in after),
        calm_ms=tuple(1e3 * gap for gap in before),
        call_ms=tuple(1e3 * took for took in said["asked_s"]),
        batches=said["batches"],
        whole=bool(said["whole"]) and bool(heard["whole"]),
        resent_bytes=said["resent_bytes"],
    )


def _start(network: Network, side: str, setup: dict[str, Any]) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", _WORKER, json.dumps(setup)]
    return subprocess.Popen(network.command(side, argv), stdout=subprocess.PIPE, process_group=0)


def _line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise InternalError("a process of the bench failed; its own output says why")
    said: dict[str, Any] = json.loads(line)
    return said
