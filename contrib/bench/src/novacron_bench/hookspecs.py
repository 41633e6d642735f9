"""What other packages may add to the benchmark.

A plugin implements these hooks like any other (`novacron.hookimpl`); the workloads and competitors
that it returns are then known to ``novacron bench wan --workload`` and ``--entry`` by their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from novacron import hookspec

if TYPE_CHECKING:
    from novacron_bench._competitor import Competitor
    from novacron_bench._guest import Workload


@hookspec
def novacron_bench_workloads() -> Sequence[Workload]:  # type: ignore[empty-body]
    """Add what guests may do while they move.

    When: once, before a benchmark begins or lists its workloads.
    Plugins asked: all of them, in no promised order.
    Return: workloads of names that nobody else has.
    On error: the benchmark does not begin, and names the plugin.
    Runs on: the main thread of the command; may read files.
    """


@hookspec
def novacron_bench_competitors() -> Sequence[Competitor]:  # type: ignore[empty-body]
    """Add ways to move a guest, to be measured beside the others.

    When: once, before a benchmark begins or lists its competitors.
    Plugins asked: all of them, in no promised order.
    Return: competitors of names that nobody else has; each `Competitor.run` gets a `Contest`.
    On error: the benchmark does not begin, and names the plugin.
    Runs on: the main thread of the command; may read files.
    """
