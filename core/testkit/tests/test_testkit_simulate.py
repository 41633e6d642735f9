"""``novacron simulate`` with a protocol of its own: a token goes from node to node in a ring."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import novacron_testkit
import pytest
from click.testing import CliRunner, Result
from novacron import (
    ConfigError,
    NotFound,
    PluginLoadError,
    PluginManager,
    PluginSource,
    ShellState,
    hookimpl,
)
from novacron_testkit import simulation
from novacron_testkit.seeds import run_mutants, run_seeds
from novacron_testkit.simulate_command import simulate

CORE = '''
class Holder:
    """Takes a token once, whose number must be higher than the last one's."""

    def __init__(self, last):
        self.last = last
        self.taken = []

    def receive(self, number):
        if number > self.last:
            self.last = number
            self.taken.append(number)
            return number
        return None
'''
SIMULATION = """
import ring_core
from novacron_testkit.experiment import nodes_at_most
from novacron_testkit.mutants import Mutant
from novacron_testkit.simulation import Simulation
from novacron_testkit.simulator import Faults, Simulator, World

FAULTS = Faults(loss=0.3, duplicate=0.2, reorder=0.2, crash=0.003)


class Ring(World):
    def __init__(self, nodes, core):
        self.nodes, self.core = nodes, core
        self.disk = dict.fromkeys(nodes, 0)
        self.cores = {}
        self.passed = []

    def boot(self, node):
        self.cores[node] = self.core.Holder(self.disk[node])
        if node == self.nodes[0]:
            self.offer(node)
        self.sim.at(50, self.repeat, node, node=node)

    def repeat(self, node):
        self.offer(node)
        self.sim.at(50, self.repeat, node, node=node)

    def offer(self, node):
        after = self.nodes[(self.nodes.index(node) + 1) % len(self.nodes)]
        number = self.disk[node] + (node == self.nodes[0])
        self.sim.send(node, after, number)

    def deliver(self, src, dst, number):
        taken = self.cores[dst].receive(number)
        if taken is not None:
            self.disk[dst] = taken
            self.passed.append((dst, taken))

    def check(self):
        assert len(set(self.passed)) == len(self.passed), f"{self.passed[-1]} twice"

    def done(self):
        return self.disk[self.nodes[0]] > 3


def scenario(seed, trace=None, core=ring_core):
    nodes = tuple("abcde"[: nodes_at_most(4)])
    world = Ring(nodes, core)
    return Simulator(seed, FAULTS, world, nodes, trace=trace).run(
        faults_ms=500, done=world.done
    )


RING = Simulation("ring", scenario, [
    Mutant("takes it twice", "ring_core", "number > self.last", "number >= max(self.last, 1)"),
    Mutant("forgets in a crash", "ring_core", "self.last = last", "self.last = 0"),
    Mutant("is harmless", "ring_core", "return None", "return"),
], mutant_seeds=60)
BROKEN = Simulation("broken", lambda seed, trace: scenario(seed, trace, RING.mutants[1].load()))
CRAZY = Simulation("crazy", lambda seed, trace: 1 / (0 if trace is None else 1), hours=2.0)
COUNTED = Simulation("counted", lambda seed, trace: None, hours=2.0)
"""


class Plugin:
    NOVACRON_API = 1

    def __init__(self, offered: Mapping[str, str]) -> None:
        self.offered = offered

    @hookimpl(optionalhook=True)
    def novacron_register_simulations(self) -> Mapping[str, str]:
        return self.offered


def manager(*plugins: object) -> PluginManager:
    sources = [
        PluginSource(name=f"plugin-{number}", distribution="test", version="1", plugin=plugin)
        for number, plugin in enumerate((novacron_testkit, *plugins))
    ]
    return PluginManager.load(sources=sources, strict=True)


NAMES = ("ring", "broken", "crazy", "counted")


@pytest.fixture(autouse=True)
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "ring_core.py").write_text(CORE)
    (tmp_path / "ring_simulation.py").write_text(SIMULATION)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    from novacron_testkit.seeds import _loaded

    _loaded.cache_clear()
    for name in [name for name in sys.modules if name.startswith("ring_")]:
        del sys.modules[name]


def run(*words: str, as_json: bool = False) -> Result:
    state = ShellState(json=as_json)
    offered = {name: f"ring_simulation:{name.upper()}" for name in NAMES}
    state.__dict__["manager"] = manager(Plugin(offered))
    return CliRunner().invoke(simulate, list(words), obj=state)


def test_register_simulations_offers_protocols_by_name() -> None:
    ran = run()
    assert ran.exit_code == 0
    assert "ring_simulation:RING" in ran.stdout


def test_a_sound_protocol_shows_its_throughput() -> None:
    ran = run("ring", "--seeds", "40", "--jobs", "1")
    assert ran.exit_code == 0, ran.output
    assert "ring: 40 seeds, nothing found" in ran.stdout
    assert "simulated hours/s" in ran.stdout


def test_a_broken_one_is_shrunk_and_its_replay_shows_the_same_failure() -> None:
    ran = run("broken", "--seeds", "100", "--jobs", "1", as_json=True)
    assert ran.exit_code == 1, ran.output
    said = json.loads(ran.stdout)
    failure = said["failure"]
    assert failure["faults"] <= 2 < failure["of_faults"]
    assert "twice" in failure["error"]
    assert failure["doubt"] == ""
    assert "--nodes 2" in failure["replay"]
    words = failure["replay"].split()[2:]
    again = run(*words)
    assert again.exit_code == 1
    assert f"seed={failure['seed']} commit={failure['commit']} {failure['error']}" in again.stdout
    assert failure["trace"][-1] in again.stdout


def test_the_whole_trace_is_written_where_one_wants_it(tmp_path: Path) -> None:
    ran = run("broken", "--no-shrink", "--jobs", "1", "--trace", str(tmp_path / "trace.txt"))
    assert ran.exit_code == 1
    assert len((tmp_path / "trace.txt").read_text().splitlines()) > 3


def test_a_seed_that_breaks_no_law_says_so_when_it_is_replayed() -> None:
    ran = run("ring", "--seed", "3")
    assert (ran.exit_code, ran.stdout) == (0, "ring: seed 3 breaks no law\n")


def test_mutants_are_looked_for_and_those_not_found_are_named() -> None:
    ran = run("ring", "--mutants", "--jobs", "1", as_json=True)
    assert ran.exit_code == 1
    said = json.loads(ran.stdout)
    assert said["missed"] == ["is harmless"]
    assert [one["seed"] is None for one in said["mutants"]] == [False, False, True]
    shown = run("ring", "--mutants", "--jobs", "1")
    assert "2 of 3 found within 60 seeds" in shown.stdout


def test_one_mutant_is_run_by_the_beginning_of_its_name() -> None:
    ran = run("ring", "--mutant", "takes")
    assert ran.exit_code == 1
    assert "twice" in ran.stdout
    assert "--mutant 'takes it twice' --seed" in ran.stdout
    assert run("ring", "--mutant", "is harmless", "--seeds", "5").exit_code == 0
    assert "names 0 mutants of ring" in str(run("ring", "--mutant", "nothing").exception)


@pytest.mark.slow
def test_several_processes_run_the_same_seeds_as_one() -> None:
    one = run_seeds("ring_simulation:RING", first=5, seeds=30, jobs=1)
    two = run_seeds("ring_simulation:RING", first=5, seeds=30, jobs=2)
    assert (one.runs, one.events) == (30, two.events)
    assert one.hours == pytest.approx(two.hours)
    broken = run_seeds("ring_simulation:BROKEN", first=0, seeds=200, jobs=2)
    assert broken.failed == run_seeds("ring_simulation:BROKEN", first=0, seeds=200, jobs=1).failed
    found = run_mutants("ring_simulation:RING", seeds=20, jobs=2)
    assert found == run_mutants("ring_simulation:RING", seeds=20, jobs=1)


def test_time_limits_how_many_seeds_are_begun() -> None:
    tally = run_seeds("ring_simulation:RING", first=0, seeds=1_000_000, jobs=1, seconds=0.2)
    assert 0 < tally.runs < 1_000_000


def test_a_scenario_without_the_simulator_says_how_long_it_simulates() -> None:
    assert run_seeds("ring_simulation:COUNTED", first=0, seeds=10, jobs=1).hours == 20.0


def test_a_failure_that_does_not_repeat_is_called_so() -> None:
    ran = run("crazy", "--jobs", "1")
    assert ran.exit_code == 1
    assert "the replay did NOT fail" in ran.stdout


def test_an_unknown_protocol_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(NotFound) as one:
        simulation.pick(manager(Plugin({"ring": "ring_simulation:RING"})), "rnig")
    assert "did you mean 'ring'" in one.value.hint


def test_a_simulation_may_be_named_by_where_it_is() -> None:
    assert run("ring_simulation:RING", "--seeds", "3", "--jobs", "1").exit_code == 0


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nowhere:RING", "cannot be loaded"),
        ("ring_simulation:NOTHING", "cannot be loaded"),
        ("ring_simulation:FAULTS", "is no Simulation"),
    ],
)
def test_what_is_no_simulation_is_refused(target: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        simulation.load(target)


@pytest.mark.parametrize(
    ("plugins", "says"),
    [
        ((Plugin({"a": "m:A"}), Plugin({"a": "n:B"})), "taken by 'plugin-1'"),
        ((Plugin({"a": "no colon"}),), "not module:attribute"),
    ],
)
def test_a_plugin_that_offers_a_simulation_wrongly_is_named(
    plugins: tuple[object, ...], says: str
) -> None:
    with pytest.raises(PluginLoadError, match=says):
        simulation.simulations(manager(*plugins))


def test_faults_to_replay_need_a_seed() -> None:
    ran = run("ring", "--only", "crash:1,loss:2")
    assert isinstance(ran.exception, ConfigError)


def test_a_mutant_is_a_module(ring: None) -> None:
    chosen = simulation.load("ring_simulation:RING")
    assert isinstance(chosen.mutants[0].load(), ModuleType)
