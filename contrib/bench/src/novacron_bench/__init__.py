"""``novacron bench``: what NovaCron's parts cost on this host, and how it fares over a WAN.

What a plugin needs to add workloads and competitors can be imported from here; it is loaded when it
is first asked for, so that the command line does not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click
from novacron import hookimpl

from novacron_bench import hookspecs
from novacron_bench._commands import bench

if TYPE_CHECKING:
    from novacron_bench._beats import Beat, Beats, Check, Pulse
    from novacron_bench._competitor import Competitor, Contest, Moved
    from novacron_bench._guest import Guest, Workload
    from novacron_bench._network import LinkFigures, Network
    from novacron_bench._relay import RelayResult, RelaySetup, WayResult, run_relay

NOVACRON_API = 1
NOVACRON_HOOKSPECS = (hookspecs,)
_HOMES: Final = {
    "_beats": ("Beat", "Beats", "Check", "Pulse"),
    "_competitor": ("Competitor", "Contest", "Moved"),
    "_guest": ("Guest", "Workload"),
    "_network": ("LinkFigures", "Network"),
    "_relay": ("RelayResult", "RelaySetup", "WayResult", "run_relay"),
}

__all__ = [
    "NOVACRON_API",
    "NOVACRON_HOOKSPECS",
    "Beat",
    "Beats",
    "Check",
    "Competitor",
    "Contest",
    "Guest",
    "LinkFigures",
    "Moved",
    "Network",
    "Pulse",
    "RelayResult",
    "RelaySetup",
    "WayResult",
    "Workload",
    "run_relay",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"novacron_bench.{module}"), name)
    raise AttributeError(f"novacron_bench has no {name}")


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    return [bench]
