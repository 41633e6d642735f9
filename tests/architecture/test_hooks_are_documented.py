"""A hook has a docstring of the one shape, a reference page and a test, or it is no hook."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from novacron.hookspecs import SPEC_MODULES
from workspace import ROOT

Hook = Callable[..., object]
HOOKS: list[Hook] = [
    member
    for module in SPEC_MODULES
    for member in vars(module).values()
    if inspect.isfunction(member) and hasattr(member, "novacron_spec")
]
WORDS = ("When:", "Plugins asked:", "Return:", "On error:", "Runs on:")
VERBS = ("register", "choose", "check", "on")

every_hook = pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)


def short(hook: Hook) -> str:
    return hook.__name__.removeprefix("novacron_")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documentation")
    done = subprocess.run(
        [sys.executable, "scripts/build-docs", "--pages-only", "--into", str(folder)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "docs" / "reference" / "hooks"


def test_there_are_hooks_for_every_spec_module() -> None:
    assert {hook.__module__ for hook in HOOKS} == {module.__name__ for module in SPEC_MODULES}


@every_hook
def test_a_hooks_name_says_its_kind(hook: Hook) -> None:
    assert hook.__name__.startswith("novacron_")
    assert short(hook).partition("_")[0] in VERBS


@every_hook
def test_a_hooks_docstring_answers_the_same_questions(hook: Hook) -> None:
    text = inspect.getdoc(hook) or ""
    at = [text.find(f"\n{word}") for word in WORDS]
    assert -1 not in at, f"missing: {[w for w, i in zip(WORDS, at, strict=True) if i < 0]}"
    assert at == sorted(at), f"the order is {', '.join(WORDS)}"
    assert re.match(r"[A-Z].*\.$", text.splitlines()[0]), "the first line is a sentence"


@every_hook
def test_a_hook_has_a_heading_with_exactly_its_arguments(hook: Hook, pages: Path) -> None:
    page = pages / f"{hook.__module__.rpartition('.')[2]}.md"
    arguments = ", ".join(inspect.signature(hook).parameters)
    headings = [line for line in page.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    assert f"### `{hook.__name__}({arguments})`" in headings


@every_hook
def test_a_hook_has_a_test_that_is_named_after_it(hook: Hook) -> None:
    tests = [*ROOT.glob("core/*/tests/**/*.py"), *ROOT.glob("tests/**/*.py")]
    texts = [path.read_text(encoding="utf-8") for path in tests if path != Path(__file__)]
    named = re.compile(rf"def test_{short(hook)}_")
    assert any(named.search(text) for text in texts), f"no test is called test_{short(hook)}_…"
