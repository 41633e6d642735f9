"""The target that fits and is reached soonest (provider ``fit``)."""

from __future__ import annotations

from collections.abc import Sequence

from novacron import Placement, hookimpl

from novacron_placement_fit._fit import FitPlacement, FitSettings

NOVACRON_API = 1

__all__ = ["NOVACRON_API", "FitPlacement", "FitSettings"]


@hookimpl
def novacron_register_placement() -> Sequence[type[Placement]]:
    return [FitPlacement]
