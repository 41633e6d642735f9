"""What ``novacron simulate`` runs: a protocol's scenario and the bugs planted in its core.

A plugin keeps its `Simulation` in a module that nothing else imports, and names it by the hook
`novacron_register_simulations`:

    # novacron_consensus_raft/_simulation.py
    RAFT = Simulation("raft", scenario, MUTANTS)

    # novacron_consensus_raft/__init__.py
    @hookimpl(optionalhook=True)
    def novacron_register_simulations():
        return {"raft": "novacron_consensus_raft._simulation:RAFT"}
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from attrs import frozen
from novacron import ConfigError, NotFound, PluginLoadError, PluginManager

from novacron_testkit.mutants import Mutant

HOOK = "novacron_register_simulations"


@frozen
class Simulation:
    """One protocol's simulation.

    Attributes:
        name: As `novacron simulate` knows it.
        scenario: ``scenario(seed, trace)`` runs one seed with the real core and raises if a law is
            broken; ``scenario(seed, trace, core)`` does so with a mutant. If ``trace`` is a list,
            it gets what happened, line by line.
        mutants: Bugs planted on purpose; all must be found.
        hours: Simulated hours of one seed, for a scenario that does not run on
            `novacron_testkit.simulator.Simulator`; that one is measured.
        mutant_seeds: Within how many seeds each mutant has to be found.
    """

    name: str
    scenario: Callable[..., Any]
    mutants: Sequence[Mutant] = ()
    hours: float = 0.0
    mutant_seeds: int = 300

    def run(self, seed: int, trace: list[str] | None = None, core: ModuleType | None = None) -> Any:
        """Run one seed. Raises whatever the scenario does when a law is broken."""
        if core is None:
            return self.scenario(seed, trace)
        return self.scenario(seed, trace, core)


def simulations(manager: PluginManager) -> dict[str, str]:
    """Where each simulation is (``module:attribute``), by name. Raises PluginLoadError."""
    found: dict[str, str] = {}
    whose: dict[str, str] = {}
    for plugin, offered, error in manager.call(HOOK):
        fault: Exception | str | None = error
        for name, target in dict(offered or {}).items():
            if name in found:
                fault = f"the name {name!r} is taken by {whose[name]!r}"
            elif not isinstance(target, str) or ":" not in target:
                fault = f"{target!r} is not module:attribute"
            else:
                found[name], whose[name] = target, plugin
        if fault is not None:
            raise PluginLoadError(
                f"the plugin {plugin!r} failed in {HOOK}: {fault}",
                hint="repair or uninstall it",
                truth="nothing was simulated",
            )
    return dict(sorted(found.items()))


def pick(manager: PluginManager, name: str) -> str:
    """Where the simulation of that name is. Raises NotFound or PluginLoadError.

    A name with a colon is taken as ``module:attribute`` itself, for simulations that no installed
    plugin offers.
    """
    if ":" in name:
        return name
    known = simulations(manager)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise NotFound(
            f"there is no simulation {name!r:.60}",
            hint=f"did you mean {near[0]!r}?"
            if near
            else f"take one of {', '.join(known) or 'none: no plugin offers one'}",
        )
    return known[name]


def load(target: str) -> Simulation:
    """The simulation at ``module:attribute``. Raises ConfigError."""
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the simulation {target!r} cannot be loaded: {error}",
            hint="install the packages that the message names; a simulation needs the tests' own",
        ) from error
    if not isinstance(found, Simulation):
        raise ConfigError(f"{target!r} is no Simulation", hint="name one, as module:attribute")
    return found
