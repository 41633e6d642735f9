"""Predictive Bandwidth Allocation: what links will carry, what moves will take, who gets how much.

`LinkForecaster` foresees one link, `PairModel` a pair that was never measured, `allocate` shares a
link. The hooks foresee moves (`novacron_choose_estimate`), share links among them
(`novacron_choose_rates`), and learn from each (`novacron_on_move_sample`, `novacron_on_move_end`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from novacron import MoveEstimate, MoveFacts, MoveNeed, Node, NodeFacts, hookimpl

if TYPE_CHECKING:
    import click

    from novacron_transport_pba._forecast import (
        FEATURES,
        FLOOR,
        HORIZONS,
        Forecast,
        HorizonFit,
        LinkForecaster,
        merit,
    )
    from novacron_transport_pba._mind import Mind
    from novacron_transport_pba._pairs import QUANTILE, End, Measured, PairModel, later
    from novacron_transport_pba._shares import Need, allocate

NOVACRON_API = 1
# Loaded when they are first asked for: most runs of the command line foresee nothing.
_HOMES: Final = {
    "_forecast": (
        *("FEATURES", "FLOOR", "HORIZONS", "Forecast", "HorizonFit", "LinkForecaster", "merit"),
    ),
    "_mind": ("Mind",),
    "_pairs": ("QUANTILE", "End", "Measured", "PairModel", "later"),
    "_shares": ("Need", "allocate"),
}

__all__ = [
    "FEATURES",
    "FLOOR",
    "HORIZONS",
    "NOVACRON_API",
    "QUANTILE",
    "End",
    "Forecast",
    "HorizonFit",
    "LinkForecaster",
    "Measured",
    "Mind",
    "Need",
    "PairModel",
    "allocate",
    "later",
    "merit",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"novacron_transport_pba.{module}"), name)
    raise AttributeError(f"novacron_transport_pba has no {name}")


@hookimpl
def novacron_choose_estimate(move: MoveFacts, node: NodeFacts) -> MoveEstimate | None:
    from novacron_transport_pba._hooks import mind_of

    return mind_of(node).estimate(move)


@hookimpl
def novacron_choose_rates(
    moves: Sequence[MoveNeed], node: NodeFacts
) -> Mapping[str, int | None] | None:
    from novacron_transport_pba._hooks import mind_of

    return mind_of(node).rates(moves)


@hookimpl
def novacron_on_move_sample(move: MoveFacts, node: NodeFacts) -> None:
    from novacron_transport_pba._hooks import mind_of

    mind_of(node).sample(move, time.monotonic())


@hookimpl
def novacron_on_move_end(move: MoveFacts, moved: bool, downtime_ms: float, node: NodeFacts) -> None:
    from novacron_transport_pba._hooks import learn_end

    learn_end(move, moved, downtime_ms, node)


@hookimpl
def novacron_on_node_stop(node: Node) -> None:
    from novacron_transport_pba._hooks import forget

    forget(node.facts)


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    from novacron_transport_pba._commands import predict

    return [predict]
