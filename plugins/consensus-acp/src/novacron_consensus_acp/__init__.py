"""A replicated log that chooses its protocol, and switches it while it runs (``acp``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click
from novacron import hookimpl

from novacron_consensus_acp import hookspecs
from novacron_consensus_acp._commands import consensus
from novacron_consensus_acp._core import AcpCore, AcpError, AcpSettings, Explanation
from novacron_consensus_acp._engines import engines
from novacron_consensus_acp._policy import Choice, Declared, Measured, choose

NOVACRON_API = 1
NOVACRON_HOOKSPECS = (hookspecs,)

__all__ = [
    "NOVACRON_API",
    "NOVACRON_HOOKSPECS",
    "AcpCore",
    "AcpError",
    "AcpSettings",
    "Choice",
    "Declared",
    "Explanation",
    "Measured",
    "choose",
    "engines",
]


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    return [consensus]


@hookimpl(optionalhook=True)
def novacron_register_simulations() -> Mapping[str, str]:
    return {"acp": "novacron_consensus_acp._simulation:ACP"}
