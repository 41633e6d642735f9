"""``novacron store``."""

from __future__ import annotations

from collections.abc import Sequence

import click


def commands() -> Sequence[click.Command]:
    return []
