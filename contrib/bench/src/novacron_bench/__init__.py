"""``novacron bench``: what NovaCron's parts cost on this host."""

from __future__ import annotations

from collections.abc import Sequence

import click
from novacron import hookimpl

from novacron_bench._commands import bench
from novacron_bench._relay import RelayResult, RelaySetup, WayResult, run_relay

NOVACRON_API = 1

__all__ = ["NOVACRON_API", "RelayResult", "RelaySetup", "WayResult", "run_relay"]


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    return [bench]
