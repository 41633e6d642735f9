"""Many machines over shared links: the provider ``itp`` of the domain ``placement``, and the
operation ``evacuate``, which empties a node or a site by a plan.

The simulated site that plans are measured on can be imported from here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from novacron import (
    MoveNeed,
    Node,
    NodeFacts,
    NovacronError,
    OperationKind,
    OperationRequest,
    Placement,
    Refusal,
    hookimpl,
)

from novacron_placement_itp._placement import ItpPlacement
from novacron_placement_itp._ranks import by_rank
from novacron_placement_itp._settings import EVACUATE, EvacuateSettings, ItpSettings

if TYPE_CHECKING:
    from novacron_placement_itp._model import Bound, Link, Need, Plan, Problem, Target
    from novacron_placement_itp._planner import make_plan
    from novacron_placement_itp._world import (
        WAYS,
        Faults,
        Instance,
        Outcome,
        Setting,
        bound_of_truth,
        draw,
    )

log = logging.getLogger("novacron.evacuate")

NOVACRON_API = 1
# The solver is loaded when it is first needed: most runs of the command line have no use for it.
_HOMES: Final = {
    "_model": ("Bound", "Link", "Need", "Plan", "Problem", "Target"),
    "_planner": ("make_plan",),
    "_world": ("WAYS", "Faults", "Instance", "Outcome", "Setting", "bound_of_truth", "draw"),
}

__all__ = [
    "NOVACRON_API",
    "WAYS",
    "Bound",
    "EvacuateSettings",
    "Faults",
    "Instance",
    "ItpPlacement",
    "ItpSettings",
    "Link",
    "Need",
    "Outcome",
    "Plan",
    "Problem",
    "Setting",
    "Target",
    "bound_of_truth",
    "draw",
    "make_plan",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"novacron_placement_itp.{module}"), name)
    raise AttributeError(f"novacron_placement_itp has no {name}")


@hookimpl
def novacron_register_placement() -> Sequence[type[Placement]]:
    return [ItpPlacement]


@hookimpl
def novacron_register_operation() -> Sequence[type[OperationKind]]:
    from novacron_placement_itp._operation import Evacuate

    return [Evacuate]


@hookimpl
def novacron_choose_rates(moves: Sequence[MoveNeed]) -> Mapping[str, int | None] | None:
    return by_rank(moves)


@hookimpl
def novacron_check_operation(request: OperationRequest, node: NodeFacts) -> Refusal | None:
    """Nodes of this node's site, and those that are allowed, may ask it to evacuate itself."""
    asker = request.subject.removeprefix("node:")
    if request.kind != EVACUATE or asker == request.subject:
        return None
    settings: EvacuateSettings = node.settings[f"operation.{EVACUATE}"]
    if asker in settings.allow or asker in settings.site_of(node.name):
        return None
    return Refusal(
        reason=f"{asker} may not ask {node.name} to evacuate itself",
        hint=f"name it in [operation.{EVACUATE}] allow on {node.name}, or as of the same site",
    )


@hookimpl
def novacron_on_node_start(node: Node) -> None:
    from novacron_placement_itp import _operation, _remote

    _remote.serve(node)

    async def take_up() -> None:
        try:
            await _operation.take_up(node)
        except (NovacronError, OSError) as error:
            log.error("evacuations are not taken up: %s", error)

    # The loop holds tasks weakly; this one ends soon.
    task = asyncio.get_running_loop().create_task(take_up())
    _STARTING.add(task)
    task.add_done_callback(_STARTING.discard)


_STARTING: Final[set[asyncio.Task[None]]] = set()
