"""The hash-chained operation log (provider ``local``), rules that refuse, and ``novacron log``."""

from __future__ import annotations

from collections.abc import Sequence

import click
from novacron import (
    MigrationPlan,
    NodeFacts,
    OperationLog,
    OperationRequest,
    Refusal,
    hookimpl,
)

from novacron_compliance_local._commands import log
from novacron_compliance_local._log import LocalLog, LogError
from novacron_compliance_local._rules import LocalSettings, Rule, refuse_migration, refuse_operation

NOVACRON_API = 1

__all__ = ["NOVACRON_API", "LocalLog", "LocalSettings", "LogError", "Rule"]


@hookimpl
def novacron_register_compliance() -> Sequence[type[OperationLog]]:
    return [LocalLog]


@hookimpl
def novacron_check_operation(request: OperationRequest, node: NodeFacts) -> Refusal | None:
    return refuse_operation(request, node)


@hookimpl
def novacron_check_migration(plan: MigrationPlan, node: NodeFacts) -> Refusal | None:
    return refuse_migration(plan, node)


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    return [log]
