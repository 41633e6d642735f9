from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from attrs import evolve
from novacron_testkit.mutants import Mutant, MutantError, find, require_found

HELPER = """
def double(number):
    return number * 2
"""
MIDDLE = """
from .helper import double

def twice(number):
    return double(double(number))
"""
CORE = """
from __future__ import annotations
from typing import TYPE_CHECKING

import attrs
from bugged import middle

if TYPE_CHECKING:
    from bugged import other

@attrs.define
class Core:
    start: int = 1

    def result(self) -> int:
        return middle.twice(self.start)
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "bugged"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text(HELPER)
    (folder / "middle.py").write_text(MIDDLE)
    (folder / "core.py").write_text(CORE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "bugged"]:
        del sys.modules[name]


def scenario(seed: int, trace: list[str] | None, core: ModuleType) -> None:
    assert core.Core(seed).result() == 4 * seed, f"it is {core.Core(seed).result()}"


def test_a_planted_bug_is_found_by_the_first_seed_that_shows_it() -> None:
    mutant = Mutant("sees one too few", "bugged.core", "start)", "start - (self.start > 2))")
    (found,) = find([mutant], scenario, 10)
    assert found.seed == 3
    assert found.why.startswith("AssertionError: it is 8")


def test_a_seed_that_is_known_to_find_a_bug_is_tried_first() -> None:
    mutant = Mutant(
        "sees one too few", "bugged.core", "start)", "start - (self.start > 2))", known=7
    )
    (found,) = find([mutant], scenario, 10)
    assert found.seed == 7
    (found,) = find([evolve(mutant, known=1)], scenario, 10)
    assert found.seed == 3


def test_the_real_module_stays_as_it_is() -> None:
    import bugged.core  # type: ignore[import-not-found]

    mutant = Mutant("forgets", "bugged.core", "twice(self.start)", "twice(0)").load()
    assert bugged.core.Core(5).result() == 20
    assert mutant.Core(5).result() == 0
    assert mutant.Core is not bugged.core.Core
    assert sys.modules[mutant.Core.__module__] is mutant


def test_a_bug_in_a_module_that_the_core_imports_over_another_is_planted_there() -> None:
    mutant = Mutant("triples", "bugged.helper", "* 2", "* 3", core="bugged.core").load()
    assert mutant.Core(1).result() == 9
    import bugged.core
    import bugged.helper  # type: ignore[import-not-found]

    assert bugged.core.Core(1).result() == 4
    assert bugged.helper.double(1) == 2


def test_the_same_mutant_is_made_once() -> None:
    first = Mutant("forgets", "bugged.core", "twice(self.start)", "twice(0)")
    again = Mutant("forgets", "bugged.core", "twice(self.start)", "twice(0)")
    assert first.load() is again.load()


@pytest.mark.parametrize(
    ("mutant", "says"),
    [
        (Mutant("m", "bugged.core", "is not there", ""), "occurs 0 times"),
        (Mutant("m", "bugged.middle", "double", ""), "occurs 3 times"),
        (Mutant("m", "bugged.core", "", "x"), "occurs 0 times"),
        (Mutant("m", "bugged.core", "start)", "start)"), "changes nothing"),
        (Mutant("m", "bugged.core", "start)", "start"), "cannot be executed"),
        (Mutant("m", "bugged.core", "start)", "0)", core="bugged.helper"), "does not import"),
        (Mutant("m", "bugged.nowhere", "a", "b"), "cannot be found"),
    ],
)
def test_a_mutant_that_does_not_fit_its_module_says_so(mutant: Mutant, says: str) -> None:
    with pytest.raises(MutantError, match=says):
        mutant.load()


def test_those_that_no_seed_finds_are_named() -> None:
    harmless = Mutant("is harmless", "bugged.core", "start)", "start + 0)")
    with pytest.raises(AssertionError, match="not found within 5 seeds: is harmless"):
        require_found([harmless], scenario, 5)
