"""What other packages may add to the testkit.

A plugin implements these with ``@hookimpl(optionalhook=True)``: it then loads also where the
testkit, which is for developers, is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping

from novacron import hookspec


@hookspec
def novacron_register_simulations() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Offer simulations of protocols to ``novacron simulate``.

    When: once, when the command lists or picks a simulation.
    Plugins asked: all; two that offer the same name are a clash that names both.
    Return: by name, where the simulation is: ``module:attribute`` of a
        `novacron_testkit.simulation.Simulation`. The module is imported only when its simulation
        is run, so a plugin needs the testkit only there.
    On error: nothing is simulated, and the plugin is named.
    Runs on: the main thread of the command; must not block.
    """
