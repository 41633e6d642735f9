"""The error budget: when what came of a variant's moves is worse than chance allows.

No input or output here: outcomes and the time come in, verdicts go out.

Each question (does it fail too often, send more, take longer) is a row of yes and no with a share
of yes that is allowed. The evidence against "no more than allowed" is that of an e-detector: the
sum, over all stretches that end now, of the likelihood ratio of the stretch, mixed evenly over all
shares above the allowed one. While the share is within what is allowed, the mean number of moves
until the evidence reaches N is at least N, however often one looks.

Source: J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: a nonparametric framework for sequential
change detection", New England Journal of Statistics in Data Science (2023), the Shiryaev-Roberts
kind.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from attrs import define, field, frozen

# Of pairs of moves that are alike, half are worse by chance.
WORSE_BY_CHANCE: Final = 0.5
LOG_EVIDENCE_MAX: Final = 600.0  # of one stretch; far beyond what anybody waits for


@frozen(kw_only=True)
class BudgetLimits:
    """What a variant may cost.

    Attributes:
        failure_rate: The share of moves that may fail for its sake.
        false_alarm_moves: A sound variant is rolled back at most once in so many moves.
        least_moves: Never judged by fewer.
        window_moves: Judged by at most so many, the last ones.
        window_s: Judged by none that is older.
        bytes_regression: By what share a move may send more than the same machine's moves to the
            same node did with the fallback; 0 for any.
        time_regression: The same for the time.
    """

    failure_rate: float = 0.01
    false_alarm_moves: float = 10_000.0
    least_moves: int = 3
    window_moves: int = 200
    window_s: float = 7 * 86400.0
    bytes_regression: float = 0.25
    time_regression: float = 1.0


@frozen(kw_only=True)
class Outcome:
    """What came of one move.

    Attributes:
        at_s: When it ended, seconds since 1970.
        machine: Whose move.
        target: To which node.
        failed: It did not move, and the variant is to blame.
        bytes_ratio: Bytes on the wire for each byte of state; None if it did not move.
        seconds: How long it took; None if it did not move.
    """

    at_s: float
    machine: str
    target: str
    failed: bool = False
    bytes_ratio: float | None = None
    seconds: float | None = None


@frozen(kw_only=True)
class Verdict:
    """How a variant stands.

    Attributes:
        moves: In the window.
        failures: Of them, for its sake.
        evidence: Against it: the strongest of the questions that are asked.
        needed: At which it is rolled back.
        over: What it does too much: ``fails``, ``bytes`` or ``time``; empty while it is within
            its budget.
    """

    moves: int
    failures: int
    evidence: float
    needed: float
    over: str = ""


def stretch(yes: int, moves: int, allowed: float) -> float:
    """The likelihood of so many yes in a stretch, mixed evenly over all shares above the allowed
    one, against that under the allowed one."""
    # The integral of q^yes (1-q)^no from `allowed` to 1 is a Beta function times a binomial tail.
    no = moves - yes
    log_beta = math.lgamma(yes + 1) + math.lgamma(no + 1) - math.lgamma(moves + 2)
    log_yes, log_no = math.log(allowed), math.log1p(-allowed)
    terms = [
        math.lgamma(moves + 2)
        - math.lgamma(i + 1)
        - math.lgamma(moves + 2 - i)
        + i * log_yes
        + (moves + 1 - i) * log_no
        for i in range(yes + 1)
    ]
    most = max(terms)
    log_tail = most + math.log(sum(math.exp(term - most) for term in terms))
    log_likelihood = log_beta + log_tail - yes * log_yes - (no + 1) * log_no
    return math.exp(min(log_likelihood, LOG_EVIDENCE_MAX))


def evidence(answers: Sequence[bool], allowed: float) -> float:
    """The evidence that lately more answers were yes than allowed. Grows from 0 without bound."""
    total, yes = 0.0, 0
    for moves, answer in enumerate(reversed(answers), 1):
        yes += answer
        total += stretch(yes, moves, allowed)
    return total


@define
class Budget:
    """The outcomes of all variants of all flags, and the verdicts on them."""

    limits: BudgetLimits = field(factory=BudgetLimits)
    _windows: dict[tuple[str, str], deque[Outcome]] = field(factory=dict, init=False)

    def record(self, flag: str, value: str, outcome: Outcome) -> None:
        """Take what came of a move that the flag gave this value."""
        window = self._windows.setdefault(
            (flag, value), deque(maxlen=max(1, self.limits.window_moves))
        )
        window.append(outcome)

    def outcomes(self, flag: str, value: str) -> Sequence[Outcome]:
        return tuple(self._windows.get((flag, value), ()))

    def known(self) -> list[tuple[str, str]]:
        """The flags and their values of which there are outcomes."""
        return sorted(self._windows)

    def forget(self, flag: str, value: str, until_s: float) -> None:
        """Drop what happened until then: somebody has looked and wants it tried again."""
        kept = [outcome for outcome in self.outcomes(flag, value) if outcome.at_s > until_s]
        self._windows.pop((flag, value), None)
        for outcome in kept:
            self.record(flag, value, outcome)

    def verdict(self, flag: str, value: str, fallback: str, now_s: float) -> Verdict:
        """Whether the moves with this value are within the budget.

        Args:
            fallback: The value of the moves to compare with; it is never rolled back.
        """
        limits = self.limits
        mine = self._recent(flag, value, now_s)
        moved = [outcome for outcome in mine if not outcome.failed]
        before = [one for one in self._recent(flag, fallback, now_s) if not one.failed]
        questions = {
            "fails": evidence([outcome.failed for outcome in mine], limits.failure_rate),
            "bytes": evidence(
                worse(_figures(moved, "bytes"), _figures(before, "bytes"), limits.bytes_regression),
                WORSE_BY_CHANCE,
            ),
            "time": evidence(
                worse(_figures(moved, "time"), _figures(before, "time"), limits.time_regression),
                WORSE_BY_CHANCE,
            ),
        }
        strongest = max(questions, key=lambda question: questions[question])
        found = questions[strongest]
        enough = len(mine) >= limits.least_moves and found >= limits.false_alarm_moves
        return Verdict(
            moves=len(mine),
            failures=sum(outcome.failed for outcome in mine),
            evidence=found,
            needed=limits.false_alarm_moves,
            over=strongest if enough and value != fallback else "",
        )

    def _recent(self, flag: str, value: str, now_s: float) -> list[Outcome]:
        oldest = now_s - self.limits.window_s
        return [outcome for outcome in self.outcomes(flag, value) if outcome.at_s >= oldest]


Figure = tuple[tuple[str, str], float]


def _figures(outcomes: Iterable[Outcome], what: str) -> list[Figure]:
    """The figure of each outcome that has one, by machine and target."""
    found = []
    for outcome in outcomes:
        figure = outcome.bytes_ratio if what == "bytes" else outcome.seconds
        if figure is not None:
            found.append(((outcome.machine, outcome.target), figure))
    return found


def worse(mine: Sequence[Figure], before: Sequence[Figure], by: float) -> list[bool]:
    """Which of these figures are worse, by more than a share, than the middle one of the same
    machine's moves to the same node before. Machines differ far more than codecs do, so only a
    machine's own moves are compared."""
    if by <= 0:
        return []
    usual: dict[tuple[str, str], list[float]] = {}
    for key, figure in before:
        usual.setdefault(key, []).append(figure)
    return [figure > _middle(usual[key]) * (1 + by) for key, figure in mine if key in usual]


def _middle(figures: Sequence[float]) -> float:
    """The median."""
    ordered, half = sorted(figures), len(figures) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
