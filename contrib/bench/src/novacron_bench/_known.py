"""All workloads and competitors that are installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from attrs import evolve
from novacron import ConfigError, PluginLoadError, PluginManager

from novacron_bench._competitor import Competitor
from novacron_bench._guest import Workload, built_in_workloads
from novacron_bench._nova import nova_competitors
from novacron_bench._stock import stock_competitors

T = TypeVar("T", Workload, Competitor)


def workloads(manager: PluginManager) -> list[Workload]:
    """The benchmark's own and those of plugins. Raises PluginLoadError."""
    return _collect(manager, "novacron_bench_workloads", Workload, built_in_workloads())


def competitors(manager: PluginManager) -> list[Competitor]:
    """The benchmark's own and those of plugins. Raises PluginLoadError."""
    own = (*stock_competitors(), *nova_competitors())
    return _collect(manager, "novacron_bench_competitors", Competitor, own)


def _collect(manager: PluginManager, hook: str, kind: type[T], own: Sequence[T]) -> list[T]:
    found: dict[str, T] = {one.name: one for one in own}
    for plugin, offered, error in manager.call(hook):
        fault = error
        for one in offered or ():
            if not isinstance(one, kind):
                fault = TypeError(f"{one!r:.60} is no {kind.__name__}")
            elif one.name in found:
                fault = ValueError(f"the name {one.name!r} is taken")
            else:
                found[one.name] = one
        if fault is not None:
            raise PluginLoadError(
                f"the plugin {plugin!r} failed in {hook}: {fault}",
                hint="repair or uninstall it",
                truth="nothing was measured",
            )
    return list(found.values())


def pick_workload(text: str, known: Sequence[Workload]) -> Workload:
    """``NAME`` or ``NAME:RATE``, the rate in MB/s. Raises ConfigError, naming the choices."""
    name, colon, rate = text.partition(":")
    for workload in known:
        if workload.name == name:
            if not colon:
                return workload
            try:
                return evolve(workload, name=f"{name}-{float(rate):g}", rate=float(rate))
            except ValueError as error:
                raise ConfigError(
                    f"{text!r:.60}: {rate!r} is no rate in MB/s", hint=f"write {name}:2"
                ) from error
    raise ConfigError(
        f"there is no workload {name!r:.40}",
        hint=f"take one of {', '.join(workload.name for workload in known)}",
    )
