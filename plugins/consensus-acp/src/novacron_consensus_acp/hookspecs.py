"""What other plugins may add to the adaptive log: the logs that it chooses from.

A plugin implements this with ``@hookimpl(optionalhook=True)``: it then loads also where this one is
not installed.
"""

from __future__ import annotations

from collections.abc import Sequence

from novacron import hookspec
from novacron_agreement.engines import LogEngine


@hookspec
def novacron_register_log_engines() -> Sequence[LogEngine]:  # type: ignore[empty-body]
    """Offer replicated logs to the adaptive one.

    When: once, when an adaptive log is made, before its records are read.
    Plugins asked: all; two that offer the same name are a clash that names both.
    Return: engines of names that nobody else has.
    On error: no adaptive log is made, and the plugin is named.
    Runs on: the thread that makes the log; must not block.
    """
