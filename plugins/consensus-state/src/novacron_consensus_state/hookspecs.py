"""What other packages may add to state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from novacron import hookspec

if TYPE_CHECKING:
    import random

    from novacron_agreement import LogCore


@hookspec
def novacron_register_log_cores() -> Mapping[  # type: ignore[empty-body]
    str, Callable[[str, Sequence[str], Sequence[bytes], str, random.Random], LogCore]
]:
    """Offer replicated logs for strong reads and writes, for ``[service.state] log``.

    When: once, when the service starts.
    Plugins asked: all; two that offer the same name are a clash that names both.
    Return: by name, what makes a member of a log of its name, all members' names, the records that
        it has made durable, the cluster's name and a seeded chance. Times are milliseconds.
    On error: the service does not start, and the plugin is named.
    Runs on: the event loop; must not block.
    """
