"""Fleet state that every site may write: delta CRDTs at four levels of consistency.

The service ``state`` (`StateSettings`, the section ``[service.state]``) keeps it on a node;
`StateDriver` is the same without a node; `Replica` is the protocol without I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from novacron import Service, hookimpl

if TYPE_CHECKING:
    import click

    from novacron_consensus_state._driver import StateDriver, StateRefused
    from novacron_consensus_state._effects import Answer, Changed, Done, Refused
    from novacron_consensus_state._replica import Level, Replica, token_of
    from novacron_consensus_state._service import StateService, StateSettings
    from novacron_consensus_state._settings import ReplicaSettings

NOVACRON_API = 1
# Loaded when they are first asked for: the command line has no use for most of it.
_HOMES: Final = {
    "_driver": ("StateDriver", "StateRefused"),
    "_effects": ("Answer", "Changed", "Done", "Refused"),
    "_replica": ("Level", "Replica", "token_of"),
    "_service": ("StateService", "StateSettings"),
    "_settings": ("ReplicaSettings",),
}

__all__ = [
    "NOVACRON_API",
    "Answer",
    "Changed",
    "Done",
    "Level",
    "Refused",
    "Replica",
    "ReplicaSettings",
    "StateDriver",
    "StateRefused",
    "StateService",
    "StateSettings",
    "novacron_register_commands",
    "novacron_register_service",
    "novacron_register_simulations",
    "token_of",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"novacron_consensus_state.{module}"), name)
    raise AttributeError(f"novacron_consensus_state has no {name}")


@hookimpl
def novacron_register_service() -> Sequence[type[Service]]:
    from novacron_consensus_state._service import StateService

    return [StateService]


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    from novacron_consensus_state._commands import commands

    return commands()


@hookimpl(optionalhook=True)
def novacron_register_simulations() -> Mapping[str, str]:
    return {"state": "novacron_consensus_state._simulation:STATE"}
