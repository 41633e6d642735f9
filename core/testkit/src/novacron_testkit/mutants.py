"""Bugs planted on purpose: a simulation that does not find them would not find yours.

A `Mutant` is a core with one fragment of its source replaced. The changed source is executed as a
module of its own, beside the real one, so both can run in one process:

    MUTANTS = (
        Mutant(
            "votes twice in a term",
            "novacron_consensus_raft.core",
            before="if self._voted_for in (None, candidate):",
            after="if True:",
        ),
    )

    def test_every_planted_bug_is_found():
        require_found(MUTANTS, scenario, seeds=300)

The scenario gets the module as its third argument, ``scenario(seed, trace, core)``, and must take
from it everything that the mutants change.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from attrs import frozen

CoreScenario = Callable[[int, "list[str] | None", ModuleType], Any]


class MutantError(ValueError):
    """A mutant's description does not fit the source any more; nothing was run."""


@frozen
class Mutant:
    """A bug planted by replacing one exact fragment of a module's source.

    Attributes:
        name: What is wrong then, in words.
        module: The import name of the module whose source is changed.
        before: The fragment; it must occur exactly once.
        after: What stands there instead.
        core: The import name of the module that the scenario gets, if that is not ``module`` itself
            but one that imports it (what stands between them is executed anew, too). Names must be
            taken when they are imported (``from .log import Log``): ``import package.log`` looks
            the module up at each use, and finds the real one.
        known: A seed that has found it once; it is tried before the others, to save time. Where it
            finds nothing any more, all are tried.
    """

    name: str
    module: str
    before: str
    after: str
    core: str = ""
    known: int | None = None

    def load(self) -> ModuleType:
        """The module with the bug in it; a second call gives the same one.

        Raises:
            MutantError: The fragment is not there exactly once, changes nothing, or leaves
                something that is no Python; or ``core`` does not import ``module``.
        """
        entry = self.core or self.module
        told = repr((self.name, self.module, self.before, self.after, entry)).encode()
        mark = f"__mutant_{hashlib.sha256(told).hexdigest()[:12]}"
        made = sys.modules.get(entry + mark)
        return made if made is not None else self._execute(entry, mark)

    def source(self) -> str:
        """The changed source. Raises MutantError."""
        text = _source(self.module)
        count = text.count(self.before) if self.before else 0
        if count != 1:
            raise MutantError(
                f"mutant {self.name!r}: its fragment occurs {count} times in {self.module}, not "
                f"once; write it anew after the present source: {self.before!r:.200}"
            )
        if self.before == self.after:
            raise MutantError(f"mutant {self.name!r} changes nothing; give another `after`")
        return text.replace(self.before, self.after)

    def _execute(self, entry: str, mark: str) -> ModuleType:
        changed = self.source()
        importlib.import_module(entry)  # whatever it needs is there before names are exchanged
        order = _between(entry, self.module)
        if not order:
            raise MutantError(
                f"mutant {self.name!r}: {entry} does not import {self.module}; name as `core` the "
                "module that the scenario takes and that uses the changed one"
            )
        real: dict[str, ModuleType] = {}
        made: dict[str, ModuleType] = {}
        try:
            for name in order:
                text = changed if name == self.module else _source(name)
                module = self._run(name, name + mark, text)
                # Those executed after it import this one in the real one's place.
                real[name], made[name] = sys.modules[name], module
                _put(name, module)
        except BaseException:
            for module in made.values():
                sys.modules.pop(module.__name__, None)
            raise
        finally:
            for name, module in real.items():
                _put(name, module)
        return made[entry]

    def _run(self, name: str, alias: str, text: str) -> ModuleType:
        path = f"<{name}, mutant {self.name!r}>"
        module = ModuleType(alias, f"{name} with a bug: {self.name}")
        module.__package__ = name.rpartition(".")[0]
        module.__file__ = path
        # Libraries that read annotations late look their module up by its name, so it stays there.
        sys.modules[alias] = module
        try:
            exec(compile(text, path, "exec", dont_inherit=True), module.__dict__)
        except BaseException as error:
            del sys.modules[alias]
            raise MutantError(
                f"mutant {self.name!r}: {name} cannot be executed with it: "
                f"{type(error).__name__}: {error}"
            ) from error
        return module


@frozen
class Finding:
    """What became of one mutant.

    Attributes:
        mutant: Which.
        seed: The first seed that found it; None if none did.
        why: The law that it broke, as reported.
    """

    mutant: Mutant
    seed: int | None
    why: str = ""


def find_one(mutant: Mutant, scenario: CoreScenario, seeds: Iterable[int]) -> Finding:
    """Run a scenario with a mutant until a seed finds it."""
    core = mutant.load()
    known = () if mutant.known is None else (mutant.known,)
    for seed in itertools.chain(known, seeds):
        try:
            scenario(seed, None, core)
        except Exception as error:  # a bug may break a law or simply crash: both are found
            return Finding(mutant, seed, f"{type(error).__name__}: {error}")
    return Finding(mutant, None)


def find(mutants: Iterable[Mutant], scenario: CoreScenario, seeds: int) -> list[Finding]:
    """Run a scenario with each mutant until a seed finds it, with seeds 0 to ``seeds`` - 1."""
    return [find_one(mutant, scenario, range(seeds)) for mutant in mutants]


def require_found(mutants: Sequence[Mutant], scenario: CoreScenario, seeds: int) -> list[Finding]:
    """Like `find`, for a test. Raises AssertionError that names those which no seed found."""
    names = [mutant.name for mutant in mutants]
    assert len(set(names)) == len(names), "two mutants have the same name"
    found = find(mutants, scenario, seeds)
    missed = [finding.mutant.name for finding in found if finding.seed is None]
    assert not missed, f"not found within {seeds} seeds: {'; '.join(missed)}"
    return found


# Which modules have to be executed anew.


def _source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise MutantError(f"the source of the module {name!r} cannot be found")
    return Path(spec.origin).read_text(encoding="utf-8")


def _put(name: str, module: ModuleType) -> None:
    """Let imports of a name give this module, in both ways of writing them."""
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, module)


def _between(entry: str, target: str) -> list[str]:
    """The modules by which ``entry`` comes to import ``target``, both included, the target first;
    empty if it does not."""
    package = target.rpartition(".")[0]
    order: list[str] = []
    seen: dict[str, bool] = {target: True}

    def leads_there(name: str) -> bool:
        if name not in seen:
            seen[name] = False  # a circle of imports ends here
            below = [leads_there(one) for one in _imports(name, package)]  # all, not only one
            if any(below):
                seen[name] = True
                order.append(name)
        return seen[name]

    return [target, *order] if leads_there(entry) else []


def _imports(name: str, package: str) -> list[str]:
    """The modules of a package that a module imports when it is executed."""
    found: set[str] = set()
    home = name.rpartition(".")[0]
    for node in _at_import(ast.parse(_source(name)).body):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = home.split(".")[: len(home.split(".")) - (node.level - 1)]
                base = ".".join([*above, *([base] if base else [])])
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    inside = package + "."
    return sorted(one for one in found if one.startswith(inside) and one in sys.modules)


def _at_import(body: Sequence[ast.stmt]) -> Iterable[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(statement.test):
                yield from _at_import(statement.body)
            yield from _at_import(statement.orelse)
        elif isinstance(statement, ast.Try):
            yield from _at_import(statement.body)
        else:
            yield statement
