"""What this plugin adds for others: they may learn of suspicions, and tell of attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from novacron import NodeFacts, hookspec

if TYPE_CHECKING:
    from novacron_security_threats._events import Alert


@hookspec
def novacron_on_threat(alert: Alert, quarantined: bool, node: NodeFacts) -> None:
    """Learn of a suspicion.

    When: for each alert, after it was recorded.
    Plugins asked: all.
    Return: ignored. ``quarantined`` says whether its identity was shut out because of it.
    On error: logged with the plugin's name.
    Runs on: a worker thread; may block for a moment.
    """
