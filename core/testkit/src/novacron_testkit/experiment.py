"""What is changed about a run from outside, and what is measured of it.

Every `novacron_testkit.simulator.Simulator` that is made while an experiment is under way obeys it,
so that any scenario can be measured and its failures be made smaller, and none has to know:

    with under_way(Experiment(only=frozenset({"crash:0"}))) as experiment:
        scenario(17, None)         # with its first crash, and without any other fault
    experiment.simulated_ms
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from attrs import define, field

if TYPE_CHECKING:
    from novacron_testkit.simulator import Simulator


@define(eq=False, kw_only=True)
class Experiment:
    """How a scenario is run, and what came of it.

    Attributes:
        only: The faults that may happen, None for all: ``kind:number``, where the kind is a field
            of `Faults` or a world's own word, and the number counts that kind from 0.
        faults_ms: The most that the faulty phase lasts; None for as long as the scenario says.
        nodes: The most nodes there are, for scenarios that ask `nodes_at_most`; None for any.
        happened: The faults that happened, in their order.
        asked_nodes: How many nodes the scenario wanted, if it asked.
        asked_faults_ms: How long it wanted faults.
    """

    only: frozenset[str] | None = None
    faults_ms: int | None = None
    nodes: int | None = None
    happened: list[str] = field(factory=list)
    asked_nodes: int = 0
    asked_faults_ms: int = 0
    _simulators: list[Simulator] = field(factory=list)

    def allows(self, kind: str, number: int) -> bool:
        """Whether the fault that chance calls for may happen."""
        name = f"{kind}:{number}"
        if self.only is not None and name not in self.only:
            return False
        self.happened.append(name)
        return True

    def watch(self, simulator: Simulator) -> None:
        self._simulators.append(simulator)

    def limit_faults(self, asked_ms: int) -> int:
        """How long the faulty phase lasts, of what was asked for."""
        self.asked_faults_ms = max(self.asked_faults_ms, asked_ms)
        return asked_ms if self.faults_ms is None else min(asked_ms, self.faults_ms)

    @property
    def simulated_ms(self) -> int:
        """The time that has passed in all simulators."""
        return sum(simulator.now for simulator in self._simulators)

    @property
    def events(self) -> int:
        """How many events have happened in all simulators."""
        return sum(simulator.events for simulator in self._simulators)


_current: Final[ContextVar[Experiment | None]] = ContextVar("experiment", default=None)


def current() -> Experiment | None:
    """The experiment that is under way."""
    return _current.get()


def nodes_at_most(wanted: int) -> int:
    """How many nodes a scenario should have: what it wants, or fewer while a failure is shrunk."""
    experiment = _current.get()
    if experiment is None:
        return wanted
    experiment.asked_nodes = max(experiment.asked_nodes, wanted)
    return wanted if experiment.nodes is None else min(wanted, experiment.nodes)


@contextmanager
def under_way(experiment: Experiment) -> Iterator[Experiment]:
    """Let the simulators that are made inside obey the experiment."""
    token = _current.set(experiment)
    try:
        yield experiment
    finally:
        _current.reset(token)
