"""``novacron lab``: sites joined by wide-area links, as network namespaces of one machine."""

from __future__ import annotations

from collections.abc import Sequence

import click
from novacron import hookimpl

from novacron_lab._lab import DirectionStats, Lab
from novacron_lab._spec import Bursts, LinkSpec, Outage, Site

NOVACRON_API = 1

__all__ = ["NOVACRON_API", "Bursts", "DirectionStats", "Lab", "LinkSpec", "Outage", "Site"]


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    from novacron_lab._commands import lab

    return [lab]
