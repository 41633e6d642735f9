"""Feature flags: which provider a move gets by OpenFeature, and what is rolled back by itself.

The service ``flags`` (`FlagsSettings`, the section ``[service.flags]``) asks any OpenFeature
provider; `FileProvider` reads flags from a file in the format of flagd.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from novacron import (
    MoveContext,
    MoveFacts,
    NodeFacts,
    OperationEvent,
    Service,
    hookimpl,
)

if TYPE_CHECKING:
    import click

    from novacron_flags_openfeature._budget import Budget, BudgetLimits, Outcome, Verdict
    from novacron_flags_openfeature._file import FileProvider
    from novacron_flags_openfeature._service import FlagsService
    from novacron_flags_openfeature._settings import FlagsSettings

NOVACRON_API = 1
# Loaded when they are first asked for: most runs of the command line have no use for them.
_HOMES: Final = {
    "_budget": ("Budget", "BudgetLimits", "Outcome", "Verdict"),
    "_file": ("FileProvider",),
    "_service": ("FlagsService",),
    "_settings": ("FlagsSettings",),
}

__all__ = [
    "NOVACRON_API",
    "Budget",
    "BudgetLimits",
    "FileProvider",
    "FlagsService",
    "FlagsSettings",
    "Outcome",
    "Verdict",
    "novacron_choose_provider",
    "novacron_on_move_end",
    "novacron_on_operation_event",
    "novacron_register_commands",
    "novacron_register_service",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"novacron_flags_openfeature.{module}"), name)
    raise AttributeError(f"novacron_flags_openfeature has no {name}")


@hookimpl
def novacron_register_service() -> Sequence[type[Service]]:
    from novacron_flags_openfeature._service import FlagsService

    return [FlagsService]


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    from novacron_flags_openfeature._commands import flags_group

    return [flags_group]


@hookimpl
def novacron_choose_provider(
    domain: str, chosen: str, available: Sequence[str], move: MoveContext, node: NodeFacts
) -> str | None:
    from novacron_flags_openfeature._service import running

    flags = running(node)
    return flags.choose(domain, chosen, available, move) if flags is not None else None


@hookimpl
def novacron_on_move_end(move: MoveFacts, moved: bool, reason: str, node: NodeFacts) -> None:
    from novacron_flags_openfeature._service import running

    if (flags := running(node)) is not None:
        flags.move_ended(move, moved, reason)


@hookimpl
def novacron_on_operation_event(event: OperationEvent, node: NodeFacts) -> None:
    from novacron_flags_openfeature._service import running

    if (flags := running(node)) is not None:
        flags.operation_told(event)
