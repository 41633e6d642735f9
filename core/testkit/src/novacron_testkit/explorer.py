"""Runs a scenario with many seeds and tells the story of the first failure."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

Scenario = Callable[[int, "list[str] | None"], Any]


def explore(scenario: Scenario, runs: int, *, first_seed: int = 0, tail: int = 60) -> int:
    """Run a scenario with ``runs`` seeds; the first failure is run again with a trace and shown.

    Returns: how many runs there were.
    Raises:
        AssertionError: Begins with ``seed=… commit=…``; give that seed to the scenario to replay.
    """
    for seed in range(first_seed, first_seed + runs):
        try:
            scenario(seed, None)
        except Exception as error:  # whatever it is, it is reported with its seed
            raise AssertionError(_story(scenario, seed, error, tail)) from error
    return runs


def _story(scenario: Scenario, seed: int, error: Exception, tail: int) -> str:
    trace: list[str] = []
    again = "the replay did NOT fail: the scenario depends on more than its seed"
    try:
        scenario(seed, trace)
    except Exception as second:  # the same failure, this time with its trace
        again = "" if repr(second) == repr(error) else f"the replay failed otherwise: {second!r}"
    lines = [f"seed={seed} commit={commit()} {type(error).__name__}: {error}"]
    if again:
        lines.append(again)
    if len(trace) > tail:
        lines.append(f"... {len(trace) - tail} lines before")
    return "\n".join(lines + trace[-tail:])


def commit() -> str:
    try:
        found = subprocess.run(
            ("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"
