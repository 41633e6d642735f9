"""Runs many seeds of a simulation, on several cores, and counts what was simulated."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import cache

from attrs import define, frozen

from novacron_testkit import simulation
from novacron_testkit.experiment import Experiment, under_way
from novacron_testkit.explorer import described
from novacron_testkit.mutants import find_one
from novacron_testkit.simulation import Simulation

# A worker reports about that often.
CHUNK_S = 0.4
MS_PER_HOUR = 3_600_000


@frozen(kw_only=True)
class Chunk:
    """What came of some seeds.

    Attributes:
        runs: How many were run, the failing one included.
        hours: How much time passed in them.
        events: How many events happened in them.
        seconds: How long that took.
        failed: The seed that failed, if one did, and how.
    """

    runs: int
    hours: float
    events: int
    seconds: float
    failed: tuple[int, str] | None = None


@define
class Tally:
    """What came of all seeds so far. Hours are simulated ones, seconds real ones."""

    runs: int = 0
    hours: float = 0.0
    events: int = 0
    seconds: float = 0.0
    failed: tuple[int, str] | None = None

    def add(self, chunk: Chunk) -> None:
        self.runs += chunk.runs
        self.hours += chunk.hours
        self.events += chunk.events
        if chunk.failed and (self.failed is None or chunk.failed < self.failed):
            self.failed = chunk.failed

    @property
    def hours_per_s(self) -> float:
        return self.hours / self.seconds if self.seconds else 0.0

    @property
    def runs_per_s(self) -> float:
        return self.runs / self.seconds if self.seconds else 0.0


@frozen(kw_only=True)
class Found:
    """What became of a mutant: its name, the seed that found it (None: none did) and why."""

    name: str
    seed: int | None
    why: str


@cache
def _loaded(target: str) -> Simulation:
    return simulation.load(target)


def run_chunk(target: str, first: int, count: int) -> Chunk:
    """Run seeds one after the other, up to the first that fails."""
    chosen = _loaded(target)
    begun = time.perf_counter()
    simulated_ms = events = 0
    for seed in range(first, first + count):
        failure = None
        with under_way(Experiment()) as experiment:
            try:
                chosen.run(seed)
            except Exception as error:  # whatever it is, it is reported with its seed
                failure = described(error)
        simulated_ms += experiment.simulated_ms
        events += experiment.events
        if failure is not None:
            break
    runs = seed - first + 1
    return Chunk(
        runs=runs,
        hours=simulated_ms / MS_PER_HOUR or chosen.hours * runs,
        events=events,
        seconds=time.perf_counter() - begun,
        failed=None if failure is None else (seed, failure),
    )


def run_mutant(target: str, number: int, seeds: int) -> Found:
    """Run one mutant until a seed finds it."""
    chosen = _loaded(target)
    found = find_one(chosen.mutants[number], chosen.scenario, range(seeds))
    return Found(name=found.mutant.name, seed=found.seed, why=found.why.partition("\n")[0])


@contextmanager
def _workers(jobs: int) -> Iterator[Executor]:
    # Not forked: the parent may have threads.
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_seeds(
    target: str,
    *,
    first: int,
    seeds: int,
    jobs: int,
    seconds: float | None = None,
    report: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Run seeds until one fails, all are run or the time is over.

    Args:
        target: Where the simulation is, as ``module:attribute``.
        jobs: How many processes run them; 1 runs them in this one.
        seconds: Begin none after that time.
        report: Called whenever there is something new.
    Returns: what came of them. Of several that failed it has the lowest: all below it were run.
    """
    tally = Tally()
    begun = time.perf_counter()

    def over() -> bool:
        tally.seconds = time.perf_counter() - begun
        return tally.failed is not None or (seconds is not None and tally.seconds >= seconds)

    def took(chunk: Chunk) -> int:
        tally.add(chunk)
        tally.seconds = time.perf_counter() - begun
        report(tally)
        return max(1, int(CHUNK_S * chunk.runs / max(chunk.seconds, 1e-6)))

    at, end, size = first, first + seeds, 1
    if jobs == 1:
        while at < end and not over():
            count = min(size, end - at)
            size = min(took(run_chunk(target, at, count)), 4 * size)
            at += count
        over()
        return tally
    with _workers(jobs) as pool:
        pending: set[Future[Chunk]] = set()
        while True:
            while at < end and len(pending) < 2 * jobs and not over():
                count = min(size, end - at)
                pending.add(pool.submit(run_chunk, target, at, count))
                at += count
            if not pending:
                break
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                size = min(took(future.result()), 4 * size)
    over()
    return tally


def run_mutants(
    target: str,
    *,
    seeds: int,
    jobs: int,
    report: Callable[[Found], None] = lambda found: None,
) -> list[Found]:
    """Look for all mutants of a simulation, in their order."""
    numbers = range(len(_loaded(target).mutants))
    if jobs == 1:
        results = []
        for number in numbers:
            results.append(run_mutant(target, number, seeds))
            report(results[-1])
        return results
    with _workers(jobs) as pool:
        futures = [pool.submit(run_mutant, target, number, seeds) for number in numbers]
        left = set(futures)
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            for future in done:
                report(future.result())
        return [future.result() for future in futures]
