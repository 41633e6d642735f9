"""Waiting for what has no event: the state of two processes, or how far a file has grown.

A node tells its events to who asks, but none tells of both nodes at once, and a log that another
process writes tells of nothing. So these are looked at again and again, until a deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
LOOK_AGAIN_S = 0.02


def until(condition: Callable[[], T], seconds: float, what: Callable[[], object] = str) -> T:
    """What the condition says once that is true.

    Args:
        condition: Asked again until it says something true.
        seconds: For how long.
        what: Says, when the time is over, what was there instead.
    """
    deadline = time.monotonic() + seconds
    while True:
        if said := condition():
            return said
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s; seen last: {what()}")
        time.sleep(LOOK_AGAIN_S)
