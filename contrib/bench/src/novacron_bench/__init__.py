"""``novacron bench``: what NovaCron's parts cost on this host, and how it fares over a WAN."""

from __future__ import annotations

from collections.abc import Sequence

import click
from novacron import hookimpl

from novacron_bench import hookspecs
from novacron_bench._beats import Beat, Beats, Check, Pulse
from novacron_bench._commands import bench
from novacron_bench._competitor import Competitor, Contest, Moved
from novacron_bench._guest import Guest, Workload
from novacron_bench._network import LinkFigures, Network
from novacron_bench._relay import RelayResult, RelaySetup, WayResult, run_relay

NOVACRON_API = 1
NOVACRON_HOOKSPECS = (hookspecs,)

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


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    return [bench]
