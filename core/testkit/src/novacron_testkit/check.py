"""``novacron plugins check``: the contracts of an installed plugin's providers, and its form.

A plugin says how it is tested by a module ``contract`` beside its hooks (``<import>.contract``),
with a subclass of the domain's contract for each provider. Where there is none, one is made on the
fly; only machine and security providers cannot do without, because nobody else can guess how their
machines or their trust are made.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import frozen
from novacron import API_VERSION, DOMAINS, NotFound, PluginLoadError, PluginManager

if TYPE_CHECKING:
    from novacron_testkit.contracts import Contract

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
_TIMEOUT_S: Final = 1800


@frozen(kw_only=True)
class LawResult:
    """One law and how it went.

    Attributes:
        subject: What was held to it: ``compression zstd``, or ``plugin``.
        law: The law, as a sentence.
        outcome: ``passed``, ``failed`` or ``skipped``.
        why: What went wrong, or why it was skipped.
        seconds: How long it took.
    """

    subject: str
    law: str
    outcome: str
    why: str = ""
    seconds: float = 0.0


@frozen(kw_only=True)
class CheckReport:
    """What was found about one plugin."""

    plugin: str
    results: tuple[LawResult, ...]

    @property
    def ok(self) -> bool:
        return all(result.outcome != FAILED for result in self.results)

    def count(self, outcome: str) -> int:
        return sum(result.outcome == outcome for result in self.results)

    def to_json(self) -> dict[str, Any]:
        return {
            "plugin": self.plugin,
            "ok": self.ok,
            "results": [attrs.asdict(result) for result in self.results],
        }


def check_plugin(
    name: str, manager: PluginManager, *, timeout_s: float = _TIMEOUT_S
) -> CheckReport:
    """Hold an installed plugin to the laws of the domains that it serves.

    The contracts run in a process of their own, by pytest.

    Raises:
        NotFound: No plugin has that name.
        PluginLoadError: It is installed and could not be loaded.
    """
    loaded = manager.plugins.get(name)
    if loaded is None:
        for failure in manager.failures:
            if failure.name == name:
                raise PluginLoadError(str(failure), hint=failure.cure)
        near = difflib.get_close_matches(name, manager.plugins, n=1)
        raise NotFound(
            f"no plugin is named {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else "`novacron plugins list` shows all",
        )
    offers = [
        (domain, offered, provider)
        for domain in DOMAINS
        for offered, provider in manager.providers(domain).items()
        if manager.offered_by(domain, offered) == name
    ]
    results = [*_form(loaded.plugin), *_settings(offers)]
    results += _run(_home(loaded.plugin), offers, timeout_s)
    return CheckReport(plugin=name, results=tuple(results))


def _home(plugin: object) -> str:
    """The import name that the plugin's contract module stands under."""
    return plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__


def _law(subject: str, law: str, why: str) -> LawResult:
    return LawResult(subject=subject, law=law, outcome=FAILED if why else PASSED, why=why)


def _form(plugin: object) -> Iterator[LawResult]:
    said = getattr(plugin, "NOVACRON_API", None)
    wrong = "" if said == API_VERSION else f"it says {said}, this kernel has {API_VERSION}"
    yield _law("plugin", "it was built for this kernel's API", wrong)
    documented = inspect.getdoc(plugin) if isinstance(plugin, ModuleType) else type(plugin).__doc__
    yield _law("plugin", "it says in a docstring what it is", "" if documented else "it has none")
    home = Path(getattr(plugin, "__file__", None) or "")
    if isinstance(plugin, ModuleType) and home.name == "__init__.py":
        typed = (home.parent / "py.typed").exists()
        yield _law("plugin", "its types are public (py.typed)", "" if typed else "it is missing")


def _settings(offers: list[tuple[str, str, type]]) -> Iterator[LawResult]:
    for domain, name, provider in offers:
        subject = f"{domain} {name}"
        settings = getattr(provider, "Settings", None)
        if not (isinstance(settings, type) and attrs.has(settings)):
            yield _law(subject, "its settings are an attrs class", f"Settings is {settings!r}")
            continue
        required = [f.name for f in attrs.fields(settings) if f.default is attrs.NOTHING]
        why = f"no default: {', '.join(required)}" if required else ""
        yield _law(subject, "every setting has a default", why)
        text = settings.__doc__ or ""
        unsaid = [f.name for f in attrs.fields(settings) if f"{f.name.lstrip('_')}" not in text]
        why = f"not in the docstring of Settings: {', '.join(unsaid)}" if unsaid else ""
        yield _law(subject, "every setting is explained", why)


def contract_class(home: str, domain: str, provider: str) -> type[Contract]:
    """The contract of one provider, for pytest to collect.

    Args:
        home: The plugin's import name.
        provider: ``module:qualified name`` of the provider class.
    Raises:
        LookupError: The plugin has to bring one and has not.
    """
    from novacron_testkit.contracts import CONTRACTS, NEEDS_FACTORY

    module, _, path = provider.partition(":")
    cls: type = attrgetter(path)(importlib.import_module(module))
    base = CONTRACTS[domain]
    own = f"{home}.contract"
    if _exists(own):
        for found in vars(importlib.import_module(own)).values():
            if (
                isinstance(found, type)
                and issubclass(found, base)
                and getattr(found, "provider", None) is cls
            ):
                return found
    if domain in NEEDS_FACTORY:
        raise LookupError(f"{own} has no {base.__name__} whose provider is {cls.__name__}")
    return type(f"{cls.__name__}Contract", (base,), {"provider": cls})


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is a module and not a package
        return False


def _run(home: str, offers: list[tuple[str, str, type]], timeout_s: float) -> Iterator[LawResult]:
    lines = ["from novacron_testkit.check import contract_class", ""]
    subjects: dict[str, str] = {}
    for number, (domain, name, cls) in enumerate(offers):
        provider = f"{cls.__module__}:{cls.__qualname__}"
        try:
            contract_class(home, domain, provider)
        except LookupError as error:
            why = f"{error.args[0]}; see `novacron plugins new {domain} NAME` for one"
            yield _law(f"{domain} {name}", "it brings a contract to be checked by", why)
            continue
        # A plugin's contract module is its own code: whatever it raises is its failure.
        except Exception as error:
            why = f"its contract cannot be imported: {type(error).__name__}: {error}"
            yield _law(f"{domain} {name}", "it brings a contract to be checked by", why)
            continue
        subjects[f"Test{number}"] = f"{domain} {name}"
        lines.append(f"Test{number} = contract_class({home!r}, {domain!r}, {provider!r})")
    if not subjects:
        return
    with tempfile.TemporaryDirectory(prefix="novacron-check-") as folder:
        root = Path(folder)
        (root / "test_check.py").write_text("\n".join(lines) + "\n")
        (root / "pytest.ini").write_text("[pytest]\njunit_family = xunit2\n")
        yield from _pytest(root, subjects, timeout_s)


def _pytest(root: Path, subjects: dict[str, str], timeout_s: float) -> Iterator[LawResult]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    # The plugin is looked for where it was found now; nobody's pytest plugins take part but ours.
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if environment.pop("PYTHONDONTWRITEBYTECODE", ""):
        # Machines are processes: each would compile all of its modules anew.
        environment["PYTHONPYCACHEPREFIX"] = str(root / "bytecode")
    command = (
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout"),
        *("--import-mode=importlib", "-c", str(root / "pytest.ini"), f"--rootdir={root}"),
        *(f"--junitxml={root / 'report.xml'}", str(root / "test_check.py")),
    )
    try:
        ended = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=timeout_s
        )
        said = (ended.stdout + ended.stderr)[-2000:]
    except subprocess.TimeoutExpired:
        said = f"the contracts did not end within {timeout_s:g} s"
    try:
        report = ElementTree.parse(root / "report.xml")
    except (OSError, ElementTree.ParseError):
        yield _law("plugin", "its contracts can be run", said)
        return
    cases = list(report.iter("testcase"))
    for case in cases:
        subject = subjects.get(case.get("classname", "").rpartition(".")[2], "plugin")
        outcome, why = _outcome(case)
        law = case.get("name", "").removeprefix("test_").replace("_", " ")
        seconds = float(case.get("time") or 0)
        yield LawResult(subject=subject, law=law, outcome=outcome, why=why, seconds=seconds)
    if not cases:
        yield _law("plugin", "its contracts can be run", said)


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    for tag in ("failure", "error"):
        found = case.find(tag)
        if found is not None:
            message = " ".join((found.get("message") or found.text or "").split())
            return FAILED, message[:400]
    skipped = case.find("skipped")
    if skipped is not None:
        return SKIPPED, skipped.get("message") or ""
    return PASSED, ""
