"""The section ``[compliance.local]`` and what its rules refuse."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

from attrs import field, frozen, validators
from novacron import MigrationPlan, NodeFacts, OperationRequest, Refusal

SECTION: Final = "compliance.local"
ANY: Final = "*"
MIGRATE: Final = "migrate"

_pattern = validators.and_(validators.instance_of(str), validators.min_len(1))


@frozen(kw_only=True)
class Rule:
    """One rule of ``refuse``: what matches all of its patterns is refused.

    Attributes:
        reason: Why not; the operator reads it.
        hint: What would lift the refusal.
        kind: Which operations (``migrate``, ``delete``, …).
        machine: Which machines.
        subject: Who asks; not together with ``target`` or ``mode``.
        target: Which target nodes; migrations only.
        mode: Which modes; migrations only.
    """

    reason: str = field(validator=_pattern)
    hint: str = ""
    kind: str = field(default=ANY, validator=_pattern)
    machine: str = field(default=ANY, validator=_pattern)
    subject: str = field(default=ANY, validator=_pattern)
    target: str = field(default=ANY, validator=_pattern)
    mode: str = field(default=ANY, validator=_pattern)

    def __attrs_post_init__(self) -> None:
        # A rule that could never match would be a hole that looks like a wall.
        if self.judges_plans and not fnmatchcase(MIGRATE, self.kind):
            raise ValueError(
                f"the rule {self.reason!r} names a target or a mode, which only migrations have, "
                f"but its kind is {self.kind!r}"
            )
        if self.judges_plans and self.subject != ANY:
            raise ValueError(
                f"the rule {self.reason!r} names a subject together with a target or a mode; "
                "these are known at different moments: make two rules"
            )

    @property
    def judges_plans(self) -> bool:
        """Whether the rule asks for what only a migration's plan knows."""
        return self.target != ANY or self.mode != ANY


@frozen(kw_only=True)
class LocalSettings:
    """The section ``[compliance.local]``.

    Attributes:
        refuse: Rules; the first that matches an operation or a migration refuses it.
    """

    refuse: list[Rule] = field(factory=list)


def refuse_operation(request: OperationRequest, node: NodeFacts) -> Refusal | None:
    for rule in _rules(node):
        if (
            not rule.judges_plans
            and fnmatchcase(request.kind, rule.kind)
            and fnmatchcase(request.machine, rule.machine)
            and fnmatchcase(request.subject, rule.subject)
        ):
            return _refusal(rule, f"{request.kind} of {request.machine!r}")
    return None


def refuse_migration(plan: MigrationPlan, node: NodeFacts) -> Refusal | None:
    for rule in _rules(node):
        if (
            rule.subject == ANY
            and fnmatchcase(MIGRATE, rule.kind)
            and fnmatchcase(plan.machine.name, rule.machine)
            and fnmatchcase(plan.target, rule.target)
            and fnmatchcase(plan.mode, rule.mode)
        ):
            return _refusal(rule, f"migration of {plan.machine.name!r} to {plan.target!r}")
    return None


def _rules(node: NodeFacts) -> list[Rule]:
    settings = node.settings.get(SECTION)
    if settings is None:
        return []
    if not isinstance(settings, LocalSettings):
        # Raising refuses; rules that cannot be read must not be rules that allow.
        raise TypeError(f"[{SECTION}] holds {type(settings).__name__}, not LocalSettings")
    return settings.refuse


def _refusal(rule: Rule, what: str) -> Refusal:
    hint = rule.hint or f"a rule of [[{SECTION}.refuse]] says so; who keeps it can change it"
    return Refusal(reason=f"{what} is not allowed: {rule.reason}", hint=hint)
