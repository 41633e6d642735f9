"""Which provider a move gets by the flags, and what its end says about that one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import asdict, define, field, frozen
from novacron import ConfigError, MoveContext, MoveFacts, structure
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, Reason

from novacron_flags_openfeature._blame import Blame, Failure
from novacron_flags_openfeature._budget import Budget, Outcome, Verdict
from novacron_flags_openfeature._decisions import Decisions, Rollback
from novacron_flags_openfeature._files import read_json, write_json
from novacron_flags_openfeature._provider import Client
from novacron_flags_openfeature._settings import FOLDER, PREFIX, FlagsSettings

log = logging.getLogger("novacron.flags")

OUTCOMES: Final = "outcomes.json"
# Of a flag's metadata.
FALLBACK: Final = "fallback"
OVER: Final = {
    "fails": "it fails too often",
    "bytes": "it sends too much",
    "time": "it takes too long",
}


@frozen(kw_only=True)
class Answer:
    """What a flag says of one move.

    Attributes:
        flag: Its name.
        variant: What its rule gave; empty if there is no such flag, or none applies.
        value: That variant's provider, or the configured one.
        configured: The provider of the configuration.
        fallback: What machines without the variant have, and all if it is refused: the configured
            one, unless the flag's metadata name another.
        used: The provider that is used.
        why: As a sentence.
        known: There is such a flag.
        on: It could be asked, and is not switched off; only then its moves are counted.
    """

    flag: str
    variant: str
    value: str
    configured: str
    fallback: str
    used: str
    why: str
    known: bool = True
    on: bool = True


@frozen(kw_only=True)
class _Kept:
    flag: str
    value: str
    outcomes: list[Outcome]


@frozen(kw_only=True)
class _KeptFile:
    kept: list[_Kept] = field(factory=list)


def read_outcomes(path: Path, budget: Budget) -> None:
    """Fill a budget with what an earlier run kept. A file that is damaged is left out, loudly."""
    try:
        kept = structure(_KeptFile, read_json(path), str(path))
    except FileNotFoundError:
        return
    except (OSError, ValueError, ConfigError) as error:
        log.error("what moves came to before is not known: %s: %s", path, error)
        return
    for one in kept.kept:
        for outcome in one.outcomes:
            budget.record(one.flag, one.value, outcome)


@define(eq=False)
class Rollout:
    """The flags of one node.

    Args:
        ask: A client of the provider.
        outcomes_path: Where what moves came to is kept over restarts.
        on_rollback: Called with each rollback that was decided here, and the move's session.
    """

    node: str
    settings: FlagsSettings
    ask: OpenFeatureClient
    decisions: Decisions
    outcomes_path: Path
    on_rollback: Callable[[Rollback, str], None] = field(default=lambda rollback, session: None)
    budget: Budget = field(init=False)
    _blame: Blame = field(factory=Blame, init=False)
    _given: dict[str, dict[str, Answer]] = field(factory=dict, init=False)
    _standing: dict[tuple[str, str], Rollback] = field(factory=dict, init=False)
    _unwritten: dict[tuple[str, str], tuple[str, str]] = field(factory=dict, init=False)
    _warned: set[str] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        self.budget = Budget(self.settings.limits())
        read_outcomes(self.outcomes_path, self.budget)
        self.decisions.refresh()
        for (flag, value), at_s in self.decisions.restored_at().items():
            self.budget.forget(flag, value, at_s)
        self._standing = dict(self.decisions.refused())

    # Before a move.

    def choose(
        self, domain: str, chosen: str, available: Sequence[str], move: MoveContext
    ) -> str | None:
        """The provider that the flags give the move; None if it is the configured one."""
        self.refresh()
        answer = self.answer(domain, chosen, available, move)
        self._given.setdefault(move.machine, {})[domain] = answer
        return answer.used if answer.used != chosen else None

    def answer(
        self, domain: str, chosen: str, available: Sequence[str] | None, move: MoveContext
    ) -> Answer:
        """What the flag of a domain says of a move, and what is made of it.

        Args:
            available: What both sides have; None if that is not known.
        """
        flag = PREFIX + domain
        details = self.evaluate(flag, domain, chosen, move)
        on = details.error_code is None and details.reason != Reason.DISABLED
        variant = details.variant or "" if on else ""
        value = details.value or chosen if variant else chosen
        fallback = str(details.flag_metadata.get(FALLBACK) or chosen) if on else chosen
        if available is not None and fallback not in available:
            self._warn(f"flag {flag}: its fallback {fallback!r} is not there; {chosen!r} is used")
            fallback = chosen

        def says(why: str, used: str) -> Answer:
            return Answer(
                flag=flag,
                variant=variant,
                value=value,
                configured=chosen,
                fallback=fallback,
                used=used,
                why=why,
                known=details.error_code is not ErrorCode.FLAG_NOT_FOUND,
                on=on,
            )

        if details.error_code is ErrorCode.FLAG_NOT_FOUND:
            return says("there is no such flag", chosen)
        if details.error_code is not None:
            why = f"the flag cannot be asked: {details.error_code}: {details.error_message}"
            self._warn(f"flag {flag}: {why}")
            return says(why, chosen)
        if not on:
            return says("the flag is off", chosen)
        if value == fallback:
            return says("its rule leaves the machine with that", fallback)
        if self.decisions.doubt:
            return says(self.decisions.doubt, fallback)
        if (rollback := self.decisions.refused().get((flag, value))) is not None:
            why = f"{value} was rolled back by {rollback.by} ({rollback.at}): {rollback.why}"
            return says(why, fallback)
        if (flag, value) in self._unwritten:
            return says(f"{value} was rolled back: {self._unwritten[flag, value][1]}", fallback)
        if available is not None and value not in available:
            why = f"{value!r} is no {domain} provider that both sides have"
            self._warn(f"flag {flag}: {why} (between {move.source} and {move.target})")
            return says(why, fallback)
        return says("its rule gives the machine this variant", value)

    def evaluate(
        self, flag: str, domain: str, chosen: str, move: MoveContext
    ) -> FlagEvaluationDetails[str]:
        """What OpenFeature says; it never raises. The machine's name decides its share."""
        attributes: dict[str, Any] = {
            **self.settings.attributes,
            "machine": move.machine,
            "tenant": move.tenant,
            "node": move.source,
            "target": move.target,
            "mode": move.mode,
            "site": self.settings.site,
            "domain": domain,
            "configured": chosen,
        }
        return self.ask.get_string_details(flag, "", EvaluationContext(move.machine, attributes))

    def _warn(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < 1_000:
            self._warned.add(text)
            log.warning("%s", text)

    # After it.

    def ended(self, move: MoveFacts, failure: Failure | None) -> None:
        """Take what came of a move, and roll back what has used up its budget."""
        self.refresh()
        at_s = time.time()
        changed = False
        for domain, given in self._given.pop(move.machine.name, {}).items():
            # A move that went over to another mode says nothing of the codec that it began with.
            other = domain == "compression" and move.codec != given.used
            if not given.on or other:
                continue
            cause = failure.cause if failure is not None else ""
            failed = failure is not None and self._blame.is_to(
                domain, given.used, move.target, cause, at_s
            )
            if failure is not None and not failed:
                continue  # it says nothing of the variant
            moved = failure is None
            outcome = Outcome(
                at_s=at_s,
                machine=move.machine.name,
                target=move.target,
                failed=failed,
                bytes_ratio=move.wire_bytes / max(move.raw_bytes, 1) if moved else None,
                seconds=move.elapsed_s if moved else None,
            )
            self.budget.record(given.flag, given.used, outcome)
            changed = True
            self._judge(given, move.session, at_s)
        if changed:
            self._keep_outcomes()

    def _judge(self, given: Answer, session: str, at_s: float) -> None:
        key = (given.flag, given.used)
        if given.used == given.fallback or key in self.decisions.refused():
            return
        verdict = self.budget.verdict(*key, given.fallback, at_s)
        if not verdict.over:
            return
        why = self.sentence(verdict)
        log.error("flag %s: %s (%s) is rolled back: %s", *key, given.variant, why)
        try:
            rollback = self.decisions.roll_back(*_names(given), why, f"node {self.node}")
        except (OSError, ConfigError) as error:
            # It is refused here at once, and written as soon as that is possible.
            log.error("the rollback cannot be written yet: %s", error)
            self._unwritten[key] = (given.variant, why)
            return
        self._standing[key] = rollback
        self.on_rollback(rollback, session)

    def sentence(self, verdict: Verdict) -> str:
        """What a verdict says."""
        budget = f"{self.settings.failure_rate:.2%} of moves may fail"
        return (
            f"{OVER[verdict.over]}: {verdict.failures} of its last {verdict.moves} moves failed "
            f"({budget}); evidence {verdict.evidence:.3g}, at {verdict.needed:g} it is rolled back"
        )

    def _keep_outcomes(self) -> None:
        kept = [
            _Kept(flag=flag, value=value, outcomes=list(self.budget.outcomes(flag, value)))
            for flag, value in self.budget.known()
        ]
        try:
            self.outcomes_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(self.outcomes_path, asdict(_KeptFile(kept=kept)))
        except OSError as error:
            log.error("what moves came to cannot be kept for a restart: %s", error)

    # What others decide.

    def refresh(self) -> None:
        """See what other nodes and operators have decided since."""
        for (flag, value), (variant, why) in list(self._unwritten.items()):
            try:
                rollback = self.decisions.roll_back(flag, variant, value, why, f"node {self.node}")
            except (OSError, ConfigError):
                continue
            del self._unwritten[flag, value]
            self._standing[flag, value] = rollback
            self.on_rollback(rollback, "")
        self.decisions.refresh()
        refused = self.decisions.refused()
        for key, rollback in refused.items():
            if key not in self._standing:
                log.warning(
                    "flag %s: %s was rolled back by %s: %s", *key, rollback.by, rollback.why
                )
        for key in self._standing:
            if key not in refused:
                log.warning("flag %s: %s is restored", *key)
                self.budget.forget(*key, time.time())
        self._standing = dict(refused)

    def refused(self) -> Mapping[tuple[str, str], Rollback]:
        return self.decisions.refused()


def _names(given: Answer) -> tuple[str, str, str]:
    return given.flag, given.variant, given.used


def make_rollout(settings: FlagsSettings, node: str, state_dir: Path, client: Client) -> Rollout:
    """The flags of a node; its command line makes them from the same files."""
    folder = state_dir / FOLDER
    shared = Path(settings.decisions).expanduser() if settings.decisions else None
    return Rollout(
        node=node,
        settings=settings,
        ask=client.ask,
        decisions=Decisions(shared or folder / "decisions", node),
        outcomes_path=folder / OUTCOMES,
    )
