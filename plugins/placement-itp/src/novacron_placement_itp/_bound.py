"""How fast it could be at best: a bound that holds for every schedule of the model.

A linear program in which machines may be cut in pieces (a relaxation, so its optimum is at or below
any schedule's): the bytes over each link, at least those of a machine that is copied alone as fast
as can be, fit the link in the time; each target's memory holds; and no machine ends before its own
shortest move. Before the first byte flows somebody is prepared, and after the last somebody
finishes: these come on top.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from novacron_placement_itp._model import Bound, Problem
from novacron_placement_itp._program import Program

_HALVINGS: Final = 40


def lower_bound(problem: Problem) -> Bound:
    """Of the makespan, in seconds from now. Machines that can go nowhere are left out."""
    program = Program(problem, whole=False)
    if program.empty:
        return Bound(seconds=0.0, why="nothing is to be moved")
    solution = program.solve()
    return Bound(seconds=solution.seconds + program.edges_s(), why=solution.why)


def lower_bound_of_changing(
    problem: Problem, carried: Callable[[str, float, float], float]
) -> Bound:
    """The same where rates change and are known afterwards.

    Args:
        problem: With the highest rate that each link ever has.
        carried: The bytes that a link (its name) carries from one moment to another.
    """
    program = Program(problem, whole=False)
    if program.empty:
        return Bound(seconds=0.0, why="nothing is to be moved")
    edges, begin = program.edges_s(), program.edges_s() - problem.finish_s
    low = program.solve()
    least, why = low.seconds, low.why
    most = least

    def fits(seconds: float) -> tuple[bool, str]:
        carry = {
            link.name: max(carried(link.name, begin, begin + seconds), 1.0) / seconds
            for link in problem.links
        }
        found = Program(problem, whole=False, carry=carry).solve()
        return found.seconds <= seconds * (1 + 1e-9), found.why

    while not fits(most)[0]:
        most *= 2
    for _ in range(_HALVINGS):
        middle = (least + most) / 2
        if most - least < 1e-3 * most:
            break
        ok, decides = fits(middle)
        least, most, why = (least, middle, why) if ok else (middle, most, decides)
    return Bound(seconds=least + edges, why=why)
