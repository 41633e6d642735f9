"""The engines that the installed plugins offer, by name."""

from __future__ import annotations

from novacron import PluginLoadError, PluginManager
from novacron_agreement.engines import LogEngine

HOOK = "novacron_register_log_engines"


def engines(manager: PluginManager) -> dict[str, LogEngine]:
    """Raises: PluginLoadError that names the plugin that failed, or both that clash."""
    found: dict[str, LogEngine] = {}
    whose: dict[str, str] = {}
    for plugin, offered, error in manager.call(HOOK):
        fault: Exception | str | None = error
        for engine in offered or ():
            if not isinstance(engine, LogEngine):
                fault = f"{engine!r:.80} is no LogEngine"
            elif engine.name in found:
                fault = f"the name {engine.name!r} is taken by {whose[engine.name]!r}"
            else:
                found[engine.name], whose[engine.name] = engine, plugin
        if fault is not None:
            raise PluginLoadError(
                f"the plugin {plugin!r} failed in {HOOK}: {fault}",
                hint="repair or uninstall it",
                truth="no adaptive log was made",
            )
    return found
