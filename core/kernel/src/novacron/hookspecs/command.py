"""The command line: each command lives with what it commands and comes in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from novacron.markers import hookspec

if TYPE_CHECKING:
    import click


@frozen(kw_only=True)
class Finding:
    """One line of ``novacron doctor``.

    Attributes:
        subject: What was looked at ("kvm", "page kernels").
        status: ``ok``, ``note`` (works, but know this), ``missing`` or ``broken``.
        detail: What was found.
        hint: What to do, empty if nothing.
    """

    subject: str
    status: str
    detail: str
    hint: str = ""


@hookspec
def novacron_register_commands() -> Sequence[click.Command]:  # type: ignore[empty-body]
    """Offer commands for ``novacron``.

    When: once per run of the command line, after the plugins are loaded.
    Plugins asked: all; two that offer the same name are a clash that names both. Groups of the
        same name are one group with the commands of both.
    Return: click commands or groups. They find the shell's state by
        ``ctx.find_object(novacron.ShellState)``.
    On error: the plugin is reported as failed and none of its hooks is used.
    Runs on: the main thread; must not block.
    """


@hookspec
def novacron_register_findings() -> Sequence[Finding]:  # type: ignore[empty-body]
    """Look at this host and say what works and what is missing for this plugin.

    When: when somebody runs ``novacron doctor``.
    Plugins asked: all.
    Return: findings, in the order in which to show them.
    On error: shown as a finding with status ``broken`` that names the plugin.
    Runs on: the main thread; may take a second.
    """
