"""Every fuzz target of the workspace, for a bounded time (`make fuzz` runs them for long).

A target is a file ``fuzz_*.py`` that takes ``--seconds N``, states its invariant in its docstring
and ends with 0 if it held.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from workspace import ROOT, TOPS

TARGETS = sorted(path for top in (*TOPS, "tests") for path in (ROOT / top).rglob("fuzz_*.py"))
SECONDS = int(os.environ.get("NOVACRON_FUZZ_SECONDS", "3"))

every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda path: path.stem)


@every_target
def test_a_target_states_its_invariant(target: Path) -> None:
    assert ast.get_docstring(ast.parse(target.read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
@every_target
def test_a_target_holds(target: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(target), "--seconds", str(SECONDS)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=SECONDS + 90,
    )
    assert done.returncode == 0, done.stdout[-8000:]
