"""Runs a scenario with many seeds and tells the story of the first failure."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from attrs import frozen

Scenario = Callable[[int, "list[str] | None"], Any]


@frozen(kw_only=True)
class Story:
    """What happened in a run that failed.

    Attributes:
        seed: Give it to the scenario to replay.
        commit: The version of the code that failed so, if it is known.
        error: What went wrong.
        doubt: Why the replay was not the same, empty if it was.
        trace: What happened, line by line, up to the failure.
    """

    seed: int
    commit: str
    error: str
    doubt: str
    trace: tuple[str, ...]

    def text(self, tail: int) -> str:
        """The story with so many of the trace's last lines."""
        lines = [f"seed={self.seed} commit={self.commit} {self.error}"]
        if self.doubt:
            lines.append(self.doubt)
        if len(self.trace) > tail:
            lines.append(f"... {len(self.trace) - tail} lines before")
        return "\n".join([*lines, *self.trace[max(0, len(self.trace) - tail) :]])


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
            story = tell(scenario, seed, described(error))
            raise AssertionError(story.text(tail)) from error
    return runs


def described(error: Exception) -> str:
    """An error as stories have it: its kind and its first line."""
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}"


def tell(scenario: Scenario, seed: int, error: str) -> Story:
    """Run a failing seed again with a trace.

    Args:
        error: How it failed, as `described`.
    """
    trace: list[str] = []
    doubt = "the replay did NOT fail: the scenario depends on more than its seed"
    try:
        scenario(seed, trace)
    except Exception as second:  # the same failure, this time with its trace
        again = described(second)
        doubt = "" if again == error else f"the replay failed otherwise: {again}"
    return Story(seed=seed, commit=commit(), error=error, doubt=doubt, trace=tuple(trace))


def commit() -> str:
    """The short name of the commit that is checked out here; ``unknown`` if there is none."""
    try:
        found = subprocess.run(
            ("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"
