"""Runs all entries in turn on each link, and judges how the guest fared."""

from __future__ import annotations

import datetime
import os
import platform
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen
from novacron import ConfigError, NovacronError

from novacron_bench._beats import Beats, pace, pause_s, worst_gap_s
from novacron_bench._competitor import BUFFERS, CONGESTION, Competitor, Contest, Moved
from novacron_bench._guest import Guest, Workload, build_guest
from novacron_bench._network import LinkFigures, Network, Wire
from novacron_bench._rows import Key, Row
from novacron_bench._worker import host_cpu_s

LOOK_AFTER_S: Final = 1.5
CHECK_S: Final = 120.0


@frozen(kw_only=True)
class Entry:
    """A competitor with the TCP settings that it finds at both places."""

    competitor: Competitor
    congestion: str = field(default="bbr")
    buffers: str = field(default="system")

    @classmethod
    def parse(cls, text: str, competitors: Sequence[Competitor]) -> Entry:
        """``NAME[:CONGESTION[:BUFFERS]]``. Raises ConfigError, naming the choices."""
        known = {one.name: one for one in competitors}
        name, congestion, buffers, *rest = (*text.split(":"), "", "")[: max(3, text.count(":") + 1)]
        for what, value, choices in (
            ("competitor", name, tuple(known)),
            ("congestion control", congestion or "bbr", CONGESTION),
            ("size of TCP's buffers", buffers or "system", tuple(BUFFERS)),
        ):
            if value not in choices:
                raise ConfigError(
                    f"{text!r:.60}: {value!r} is no {what}",
                    hint=f"take one of {', '.join(choices)}",
                )
        if rest:
            raise ConfigError(
                f"{text!r:.60} says too much", hint="write NAME:CONGESTION:BUFFERS, or less"
            )
        return cls(
            competitor=known[name], congestion=congestion or "bbr", buffers=buffers or "system"
        )

    @property
    def name(self) -> str:
        """``default/cubic``, with the buffers where they are not the system's."""
        large = "" if self.buffers == "system" else f"/{self.buffers}"
        return f"{self.competitor.name}/{self.congestion}{large}"


@frozen(kw_only=True)
class Race:
    """What to run.

    Attributes:
        links, workloads, entries: All combinations are run.
        scenarios: What the destination has before; a competitor runs in those that matter to it.
        away_s: In the scenario ``return``, for how long the guest works elsewhere.
        runs: How often each.
        memory_mib: Of the guest.
        cutoff_s: How long a move may take.
        check: Have the guest look at all of its memory after it arrived.
        keep: A folder for the logs of every run.
    """

    links: Sequence[LinkFigures]
    workloads: Sequence[Workload]
    entries: Sequence[Entry]
    all_workloads: Sequence[Workload]
    scenarios: Sequence[str] = ("cold",)
    away_s: float = 60.0
    runs: int = 5
    memory_mib: int = 1024
    cutoff_s: float = 300.0
    check: bool = True
    keep: Path | None = None

    def plan(self) -> list[Key]:
        """Every run in its order: entries take turns, so that a busy minute harms them alike."""
        return [
            (str(link), workload.name, entry.name, scenario, run)
            for link in self.links
            for workload in self.workloads
            for run in range(1, self.runs + 1)
            for entry in self.entries
            for scenario in self.scenarios
            if scenario in entry.competitor.scenarios
        ]

    def rows(self, done: set[Key], told: Callable[[Key], None]) -> Iterator[Row]:
        """Run what is not done yet.

        Args:
            told: Called before each run.
        Raises: NovacronError if nothing can be run here, never because one run failed.
        """
        with ExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="nvb-", dir="/tmp"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            for link in self.links:
                left = [key for key in self.plan() if key[0] == str(link) and key not in done]
                if not left:
                    continue
                entries = {entry.name: entry for entry in self.entries}
                guests = {
                    workload.name: [
                        build_guest(
                            folder,
                            workload,
                            self.all_workloads,
                            memory_bytes=self.memory_mib << 20,
                            seed=seed,
                        )
                        for seed in (1, 2)
                    ]
                    for workload in self.workloads
                }
                with Network(link, name=f"nvb{os.getpid() % 1_000_000}") as network:
                    for key in left:
                        told(key)
                        yield self._run(key, entries[key[2]], guests[key[1]], network, folder)

    def _run(
        self,
        key: Key,
        entry: Entry,
        guests: Sequence[Guest],
        network: Network,
        folder: Path,
    ) -> Row:
        guest, sibling = guests
        place = folder / f"{random.randrange(1 << 32):08x}"
        place.mkdir()
        common: dict[str, Any] = {
            "link": key[0],
            "workload": key[1],
            "entry": key[2],
            "scenario": key[3],
            "run": key[4],
            "memory_mib": self.memory_mib,
            "stock": entry.competitor.stock,
            "encrypted": entry.competitor.encrypted,
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            # Others on this host spoil figures: who reads them must see it.
            "host": {**host_facts(), "load_before": round(os.getloadavg()[0], 2)},
        }
        try:
            network.set_tcp(entry.congestion, *BUFFERS[entry.buffers])
            with Beats(place / "beat") as beats, ExitStack() as ending:
                meter = _Meter(network)
                contest = Contest(
                    folder=place,
                    network=network,
                    guest=guest,
                    beats=beats,
                    cutoff_s=self.cutoff_s,
                    scenario=key[3],
                    away_s=self.away_s,
                    sibling=sibling,
                    ending=ending,
                    begin_counting=meter.begin,
                )
                moved = entry.competitor.run(contest)
                meter.end()
                return Row(**common, **meter.figures, **self._judge(moved, guest))
        except (NovacronError, OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "message", "") or str(error) or type(error).__name__
            return Row(**common, outcome="failed", reason=said)
        finally:
            if self.keep is not None:
                kept = self.keep / "-".join(str(part).replace("/", "_") for part in key)
                shutil.copytree(
                    place, kept, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.qmp", "beat")
                )
            shutil.rmtree(place, ignore_errors=True)

    def _judge(self, moved: Moved, guest: Guest) -> dict[str, Any]:
        """What the guest felt, and whether it is whole."""
        seen: dict[str, Any] = {
            "outcome": moved.outcome,
            "reason": moved.reason,
            "seconds": moved.ended_s - moved.began_s,
            "figures": moved.figures,
        }
        if moved.outcome != "moved" or moved.destination is None:
            return seen
        here, there = moved.source.beats, moved.destination.beats
        if not here or not there:
            return seen | {"outcome": "failed", "reason": "the guest did not beat at both places"}
        arrived_s, left_s = there[0].at_s, here[-1].at_s
        until_s = max(arrived_s, moved.ended_s) + LOOK_AFTER_S
        moved.destination.wait(lambda: there[-1].at_s >= until_s, LOOK_AFTER_S + 60)
        usual = pace(here, moved.began_s - 2.0, moved.began_s)
        copying = pace(here, moved.began_s, left_s)
        seen |= {
            "pause_s": pause_s(here, there),
            "alive_s": arrived_s - moved.began_s,
            "stall_s": worst_gap_s(there, arrived_s),
            "pace": copying / usual if usual and copying is not None else None,
            "writes_lost": there[0].writes < here[-1].writes or there[0].count <= here[-1].count,
        }
        if self.check:
            check = moved.destination.check(CHECK_S)
            seen["intact"] = check.sum == guest.disk.sum and check.errors == 0
        else:
            seen["intact"] = there[-1].errors == 0
        return seen


class _Meter:
    """What the link and the host's processors did during the move itself."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._wire = Wire(0, 0)
        self._cpu_s = 0.0
        self._backwards = False
        self.figures: dict[str, Any] = {}

    def begin(self, backwards: bool) -> None:
        self._backwards = backwards
        self._wire, self._cpu_s = self._network.wire(), host_cpu_s()

    def end(self) -> None:
        wire = self._network.wire() - self._wire
        if self._backwards:
            wire = Wire(wire.back, wire.there)
        self.figures = {
            "there_bytes": wire.there,
            "back_bytes": wire.back,
            "host_cpu_s": round(host_cpu_s() - self._cpu_s, 2),
        }


@cache
def host_facts() -> dict[str, Any]:
    """What a reader must know of the host to judge a row."""
    try:
        said = subprocess.run(
            ["qemu-system-x86_64", "--version"], capture_output=True, text=True, timeout=20
        ).stdout
    except OSError as error:
        raise ConfigError(
            "there is no qemu-system-x86_64", hint="run scripts/debian-packages"
        ) from error
    return {
        "qemu": said.partition("version ")[2].split(" ")[0].strip(),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "accelerator": "tcg",
    }
