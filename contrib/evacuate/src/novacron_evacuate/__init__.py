"""``novacron evacuate``: empty a node or a site by a plan that is shown first."""

from __future__ import annotations

from collections.abc import Sequence

import click
from novacron import hookimpl

NOVACRON_API = 1

__all__ = ["NOVACRON_API"]


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    from novacron_evacuate._command import evacuate

    return [evacuate]
