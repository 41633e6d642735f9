"""Makes a failure small: the same law broken by fewer nodes, in less time, by fewer faults.

What is left are the faults that matter, so that the trace can be read. Each step tries a run with
something taken away, and keeps it if it still fails by the same kind of error.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from attrs import define, field, frozen

from novacron_testkit.experiment import Experiment, under_way
from novacron_testkit.explorer import Scenario, Story, described, tell

# With fewer nodes a seed is another run: so many seeds are tried for each number of nodes.
SEEDS_PER_NODES = 20


@frozen(kw_only=True)
class Settings:
    """How to run a scenario so that it fails with little; None takes nothing away.

    Attributes:
        seed: The scenario's seed.
        only: The faults that happen, as `Experiment.only` names them.
        faults_ms: For how long faults happen.
        nodes: How many nodes there are at most.
    """

    seed: int
    only: tuple[str, ...] | None = None
    faults_ms: int | None = None
    nodes: int | None = None

    def experiment(self) -> Experiment:
        only = None if self.only is None else frozenset(self.only)
        return Experiment(only=only, faults_ms=self.faults_ms, nodes=self.nodes)

    def flags(self) -> list[str]:
        """The flags of ``novacron simulate`` that replay this."""
        flags = ["--seed", str(self.seed)]
        if self.nodes is not None:
            flags += ["--nodes", str(self.nodes)]
        if self.faults_ms is not None:
            flags += ["--faults-ms", str(self.faults_ms)]
        if self.only is not None:
            flags += ["--only", ",".join(self.only) or "none"]
        return flags


@frozen(kw_only=True)
class Shrunk:
    """A failure made small.

    Attributes:
        settings: How to run it.
        faults: How many faults happen in it.
        of_faults: How many happened in the failure that was found.
        runs: How many runs were tried for it.
        story: What happens in it.
    """

    settings: Settings
    faults: int
    of_faults: int
    runs: int
    story: Story


def replay(scenario: Scenario, settings: Settings, error: str) -> Story:
    """The story of a failure under settings. ``error`` is what is expected, as `described`."""

    def run(seed: int, trace: list[str] | None) -> object:
        with under_way(settings.experiment()):
            return scenario(seed, trace)

    return tell(run, settings.seed, error)


def shrink(
    scenario: Scenario,
    settings: Settings,
    *,
    seconds: float = 20.0,
    now_s: Callable[[], float] = time.monotonic,
) -> Shrunk | None:
    """Make a failure as small as a number of seconds allows.

    Returns: None if the run with these settings does not fail.
    """
    search = _Search(scenario, seconds, now_s)
    if not search.begin(settings):
        return None
    found = search.happened
    search.fewer_nodes()
    search.shorter_faults()
    search.fewer_faults()
    story = replay(scenario, search.best, search.error)
    return Shrunk(
        settings=search.best,
        faults=len(search.happened),
        of_faults=len(found),
        runs=search.runs,
        story=story,
    )


@define
class _Search:
    scenario: Scenario
    seconds: float
    now_s: Callable[[], float]
    runs: int = 0
    best: Settings = field(factory=lambda: Settings(seed=0))
    error: str = ""
    happened: tuple[str, ...] = ()
    _kind: type[Exception] = Exception
    _asked_nodes: int = 0
    _asked_ms: int = 0
    _until: float = 0.0

    def begin(self, settings: Settings) -> bool:
        self._until = self.now_s() + self.seconds
        return self._try(settings)

    def _try(self, settings: Settings) -> bool:
        """Whether the run fails as before; if so, it is the best so far."""
        if self.runs and self.now_s() > self._until:
            return False
        self.runs += 1
        try:
            with under_way(settings.experiment()) as experiment:
                self.scenario(settings.seed, None)
        except Exception as error:
            if self.error and type(error) is not self._kind:
                return False
            self.best, self.error, self._kind = settings, described(error), type(error)
            self.happened = tuple(experiment.happened)
            self._asked_nodes, self._asked_ms = experiment.asked_nodes, experiment.asked_faults_ms
            return True
        return False

    def _with(self, **changes: object) -> Settings:
        values = {name: getattr(self.best, name) for name in ("seed", "only", "faults_ms", "nodes")}
        return Settings(**(values | changes))

    def fewer_nodes(self) -> None:
        for nodes in range(2, self._asked_nodes):
            for seed in range(self.best.seed, self.best.seed + SEEDS_PER_NODES):
                if self._try(self._with(nodes=nodes, seed=seed, only=None)):
                    return

    def shorter_faults(self) -> None:
        length = self._asked_ms if self.best.faults_ms is None else self.best.faults_ms
        step = length // 2
        while step > max(10, self._asked_ms // 50):
            if length > step and self._try(self._with(faults_ms=length - step)):
                length -= step
            else:
                step //= 2

    def fewer_faults(self) -> None:
        self._first_faults()
        for kind in sorted({_kind(fault) for fault in self.happened}):
            kept = tuple(fault for fault in self.happened if _kind(fault) != kind)
            if len(kept) < len(self.happened):
                self._try(self._with(only=kept))
        # Zeller's delta debugging ("Simplifying and Isolating Failure-Inducing Input", 2002).
        size = max(1, len(self.happened) // 2)
        while True:
            at = 0
            while at < len(self.happened):
                faults = self.happened
                if not self._try(self._with(only=faults[:at] + faults[at + size :])):
                    at += size
            if size == 1:
                break
            size //= 2
        # Some that were allowed may not have happened at all.
        self._try(self._with(only=self.happened))

    def _first_faults(self) -> None:
        """The first faults that are enough: up to the last of them the run is as it was."""
        all_faults = self.happened
        least, most = 0, len(all_faults)
        while least < most:
            middle = (least + most) // 2
            if self._try(self._with(only=all_faults[:middle])):
                most = middle
            else:
                least = middle + 1


def _kind(fault: str) -> str:
    return fault.partition(":")[0]
