"""Finds plugins, loads them in a fixed order and says whose fault a failure is.

pluggy's own loader skips a second distribution that claims a taken name without a word, and one
plugin's ImportError ends the loading of all. Here each failure is kept with its cause and its
cure, and the rest still loads.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from types import ModuleType
from typing import Any, Final

import pluggy
from attrs import define, field, frozen

from novacron.errors import PluginLoadError, Refusal
from novacron.hookspecs import DOMAINS, SPEC_MODULES
from novacron.markers import API_VERSION, PROJECT

ENTRY_POINT_GROUP: Final = "novacron"
log = logging.getLogger("novacron.plugins")


@frozen(kw_only=True)
class PluginSource:
    """Where a plugin comes from: an installed entry point, or an object that a test passes."""

    name: str
    distribution: str
    version: str
    entry_point: metadata.EntryPoint | None = None
    plugin: object | None = None

    def load(self) -> object:
        if self.plugin is not None:
            return self.plugin
        assert self.entry_point is not None
        return self.entry_point.load()


@frozen(kw_only=True)
class LoadedPlugin:
    """A plugin that works: its name, its distribution and the hooks it answers."""

    name: str
    distribution: str
    version: str
    plugin: object
    hooks: tuple[str, ...]


@frozen(kw_only=True)
class PluginFailure:
    """A plugin that does not: the cause and the cure."""

    name: str
    distribution: str
    cause: str
    cure: str

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.distribution}): {self.cause}; {self.cure}"


@define
class HookTiming:
    """What one plugin's answers to one hook have cost."""

    calls: int = 0
    total_s: float = 0.0
    max_s: float = 0.0


@frozen(kw_only=True)
class Objection:
    """A refusal and the plugin that raised it."""

    plugin: str
    refusal: Refusal


def installed_sources() -> list[PluginSource]:
    """All entry points of the group, sorted by name and distribution."""
    sources = []
    for point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        dist = point.dist
        sources.append(
            PluginSource(
                name=point.name,
                distribution=dist.name if dist else "an unknown distribution",
                version=dist.version if dist else "?",
                entry_point=point,
            )
        )
    return sorted(sources, key=lambda source: (source.name, source.distribution))


@define(eq=False)
class PluginManager:
    """The plugins of one process: a value that is passed, never a global.

    Attributes:
        plugins: The plugins that loaded, by name.
        failures: Those that did not, with cause and cure.
        timings: What each (hook, plugin) has cost; filled only while ``trace`` is on.
    """

    trace: bool = False
    plugins: dict[str, LoadedPlugin] = field(factory=dict)
    failures: list[PluginFailure] = field(factory=list)
    timings: dict[tuple[str, str], HookTiming] = field(factory=dict)
    _pluggy: pluggy.PluginManager = field(factory=lambda: pluggy.PluginManager(PROJECT))
    _providers: dict[str, dict[str, type]] = field(factory=dict)
    _offered_by: dict[tuple[str, str], str] = field(factory=dict)
    _settings: dict[str, type] = field(factory=dict)

    @classmethod
    def load(
        cls,
        *,
        sources: Iterable[PluginSource] | None = None,
        only: Iterable[str] | None = None,
        strict: bool = False,
        trace: bool = False,
    ) -> PluginManager:
        """Load the installed plugins, or the given ones.

        Args:
            sources: What to load; None for all installed.
            only: Names to which loading is restricted (a profile's plugin set); None for all.
            strict: Refuse if any plugin fails.
            trace: Log and time each hook call.
        Raises: PluginLoadError when strict and something failed; it names every failure.
        """
        manager = cls(trace=trace)
        for module in SPEC_MODULES:
            manager._pluggy.add_hookspecs(module)
        found = sorted(
            installed_sources() if sources is None else sources,
            key=lambda s: (s.name, s.distribution),
        )
        if only is not None:
            found = manager._restrict(found, set(only))
        imported = [
            pair for source in manager._without_clashes(found) if (pair := manager._import(source))
        ]
        for source, plugin in imported:
            manager._add_hookspecs(source, plugin)
        for source, plugin in imported:
            if not any(failure.name == source.name for failure in manager.failures):
                manager._register(source, plugin)
        if strict and manager.failures:
            raise PluginLoadError(
                "; ".join(str(failure) for failure in manager.failures),
                hint="repair or uninstall what is named, or load without --strict",
                truth="nothing was started",
            )
        return manager

    # Loading, one concern each. A failure is recorded and the plugin left out.

    def _fail(self, source: PluginSource, cause: str, cure: str) -> None:
        failure = PluginFailure(
            name=source.name, distribution=source.distribution, cause=cause, cure=cure
        )
        self.failures.append(failure)
        log.warning("%s", failure)

    def _restrict(self, found: list[PluginSource], only: set[str]) -> list[PluginSource]:
        known = {source.name for source in found}
        for name in sorted(only - known):
            missing = PluginSource(name=name, distribution="not installed", version="")
            self._fail(
                missing,
                "the profile names it, but it is not installed",
                f"pip install novacron-{name}",
            )
        return [source for source in found if source.name in only]

    def _without_clashes(self, found: Sequence[PluginSource]) -> Iterator[PluginSource]:
        by_name: dict[str, list[PluginSource]] = {}
        for source in found:
            by_name.setdefault(source.name, []).append(source)
        for name, claims in by_name.items():
            if len(claims) == 1:
                yield claims[0]
                continue
            owners = " and ".join(claim.distribution for claim in claims)
            self._fail(
                claims[0], f"the name {name!r} is claimed by {owners}", "uninstall one of them"
            )

    def _import(self, source: PluginSource) -> tuple[PluginSource, object] | None:
        try:
            plugin = source.load()
        except ModuleNotFoundError as error:
            cause = f"it needs the module {error.name!r}, which is not installed"
            self._fail(source, cause, f"pip install --force-reinstall {source.distribution}")
            return None
        # A plugin is a stranger's code: whatever its import raises is its failure, not ours.
        except Exception as error:
            cause = f"its import failed with {type(error).__name__}: {error}"
            self._fail(
                source, cause, f"report it to the authors of {source.distribution}, or uninstall it"
            )
            return None
        built_for = getattr(plugin, "NOVACRON_API", None)
        if built_for != API_VERSION:
            was = "does not say for which API version it was built (NOVACRON_API)"
            if built_for is not None:
                was = f"was built for API version {built_for}"
            cure = f"install a release of {source.distribution} for this one"
            self._fail(source, f"it {was}, and this kernel has {API_VERSION}", cure)
            return None
        return source, plugin

    def _add_hookspecs(self, source: PluginSource, plugin: object) -> None:
        modules = getattr(plugin, "NOVACRON_HOOKSPECS", ())
        for module in modules:
            try:
                self._pluggy.add_hookspecs(module)
            except ValueError as error:
                name = module.__name__ if isinstance(module, ModuleType) else repr(module)
                cause = f"its hookspecs in {name} cannot be added: {error}"
                self._fail(
                    source, cause, "declare at least one new hook there with novacron.hookspec"
                )

    def _register(self, source: PluginSource, plugin: object) -> None:
        if error := self._misspelt(plugin):
            self._fail(source, error, "correct the name, or declare the hook in NOVACRON_HOOKSPECS")
            return
        try:
            self._pluggy.register(plugin, source.name)
        except pluggy.PluginValidationError as invalid:
            cause = " ".join(str(invalid).split())
            self._fail(source, cause, "name only arguments that the hook has")
            return
        except ValueError as taken:
            self._fail(source, f"it is registered already: {taken}", "list it once")
            return
        callers = self._pluggy.get_hookcallers(plugin) or []
        try:
            self._collect(source)
        except PluginLoadError as clash:
            self._pluggy.unregister(plugin)
            self._fail(source, clash.message, clash.hint)
            return
        self.plugins[source.name] = LoadedPlugin(
            name=source.name,
            distribution=source.distribution,
            version=source.version,
            plugin=plugin,
            hooks=tuple(sorted(caller.name for caller in callers)),
        )

    def _misspelt(self, plugin: object) -> str:
        known = {name for name in vars(self._pluggy.hook) if not name.startswith("_")}
        for name, member in inspect.getmembers(plugin):
            options = getattr(member, f"{PROJECT}_impl", None)
            if not isinstance(options, dict) or not callable(member):
                continue
            wanted = options.get("specname") or name
            # An optional hook belongs to a package that need not be installed.
            if wanted not in known and not options.get("optionalhook"):
                near = difflib.get_close_matches(wanted, known, n=1)
                guess = f", did you mean {near[0]!r}?" if near else ""
                return f"it implements {wanted!r}, which is no hook{guess}"
        return ""

    def _collect(self, source: PluginSource) -> None:
        """Take what the plugin offers; all or nothing, so that half a plugin is never in use."""
        offers: list[tuple[str, type]] = []
        for kind in (*DOMAINS, "service", "operation"):
            offers += [
                (kind, offer) for offer in self._answer(source, f"novacron_register_{kind}") or ()
            ]
        sections: dict[str, type] = dict(self._answer(source, "novacron_register_settings") or {})
        for kind, offer in offers:
            name = getattr(offer, "name", None)
            if not isinstance(name, str) or not name:
                raise PluginLoadError(
                    f"its {kind} provider {offer!r} has no name", hint="give the class a `name`"
                )
            if owner := self._offered_by.get((kind, name)):
                raise PluginLoadError(
                    f"the {kind} provider {name!r} is offered by {owner!r} already",
                    hint="uninstall one of them",
                )
            sections.setdefault(f"{kind}.{name}", getattr(offer, "Settings", NoSettings))
        for section in sections:
            if section in self._settings:
                raise PluginLoadError(
                    f"the section [{section}] is claimed by another plugin",
                    hint="uninstall one of them",
                )
        for kind, offer in offers:
            name = offer.name  # type: ignore[attr-defined]
            self._providers.setdefault(kind, {})[name] = offer
            self._offered_by[kind, name] = source.name
        self._settings.update(sections)

    def _answer(self, source: PluginSource, hook: str) -> Any:
        for impl in getattr(self._pluggy.hook, hook).get_hookimpls():
            if impl.plugin_name == source.name:
                try:
                    return impl.function()
                # Same as at import: a stranger's code, and its failure must be named.
                except Exception as error:
                    raise PluginLoadError(
                        f"its {hook} raised {type(error).__name__}: {error}",
                        hint=f"report it to the authors of {source.distribution}",
                    ) from error
        return None

    # What was loaded.

    def providers(self, domain: str) -> Mapping[str, type]:
        """The provider classes of a domain (or ``service``), by name."""
        return dict(sorted(self._providers.get(domain, {}).items()))

    def offered_by(self, domain: str, name: str) -> str:
        """The plugin that offers a provider."""
        return self._offered_by[domain, name]

    def settings_classes(self) -> Mapping[str, type]:
        """The attrs class of each section that a plugin or a provider has, by section name."""
        return dict(self._settings)

    def hook_names(self) -> list[str]:
        """All hooks that are declared, the plugins' own included."""
        return sorted(name for name in vars(self._pluggy.hook) if not name.startswith("_"))

    # Calling. pluggy stops at the first implementation that raises and names nobody, so the
    # implementations are walked here.

    def call(self, hook: str, **arguments: Any) -> list[tuple[str, Any, Exception | None]]:
        """Ask every plugin: (plugin, answer, exception) of each, the last registered last."""
        answers: list[tuple[str, Any, Exception | None]] = []
        for impl in getattr(self._pluggy.hook, hook).get_hookimpls():
            began = time.perf_counter() if self.trace else 0.0
            try:
                answer = impl.function(*(arguments[name] for name in impl.argnames))
                answers.append((impl.plugin_name, answer, None))
            # The caller decides what a plugin's exception means; here it only gets its name.
            except Exception as error:
                answers.append((impl.plugin_name, None, error))
            if self.trace:
                self._record(hook, impl.plugin_name, time.perf_counter() - began, answers[-1])
        return answers

    def _record(
        self, hook: str, plugin: str, took_s: float, answer: tuple[str, Any, Exception | None]
    ) -> None:
        timing = self.timings.setdefault((hook, plugin), HookTiming())
        timing.calls += 1
        timing.total_s += took_s
        timing.max_s = max(timing.max_s, took_s)
        outcome = repr(answer[2]) if answer[2] else repr(answer[1])
        log.info("hook %s -> %s: %.1f us, %.200s", hook, plugin, took_s * 1e6, outcome)

    def check(self, hook: str, **arguments: Any) -> list[Objection]:
        """Ask a ``check_*`` hook. An exception is an objection that names the plugin."""
        objections = []
        for plugin, answer, error in self.call(hook, **arguments):
            if error is not None:
                reason = f"the plugin {plugin!r} failed: {type(error).__name__}: {error}"
                answer = Refusal(reason=reason, hint=f"repair or uninstall {plugin!r}")
            if answer is not None:
                objections.append(Objection(plugin=plugin, refusal=answer))
        return objections

    def choose(self, hook: str, **arguments: Any) -> Any:
        """Ask a ``choose_*`` hook: the first answer, or None. An exception is logged."""
        for plugin, answer, error in self.call(hook, **arguments):
            if error is not None:
                log.error("plugin %r failed in %s", plugin, hook, exc_info=error)
            elif answer is not None:
                return answer
        return None

    def notify(self, hook: str, **arguments: Any) -> None:
        """Tell an ``on_*`` hook. An exception is logged with the plugin's name."""
        for plugin, _, error in self.call(hook, **arguments):
            if error is not None:
                log.error("plugin %r failed in %s", plugin, hook, exc_info=error)


@frozen
class NoSettings:
    """The section of a provider that has no settings."""
