"""Beginning a migration anew when the path, or the peer's process, failed on the way.

The machine runs at the source meanwhile. What the destination has kept of an earlier attempt makes
the next one cheap; how, is the codec's business.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from novacron.errors import Cancelled, MigrationFailed, TransportError
from novacron.operations import Operation

ATTEMPTS_MAX: Final = 10
BACKOFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)


async def persist(
    operation: Operation, attempt: Callable[[], Awaitable[dict[str, Any]]], patience_s: float
) -> dict[str, Any]:
    """Make attempts until one succeeds or fails for a reason that another would meet again.

    Args:
        operation: Shows what happens, and may be cancelled between two attempts too.
        attempt: Raises MigrationFailed with the fact ``again`` if another may succeed, and
            TransportError if it could not even begin.
        patience_s: How long after an attempt that had begun another is tried to be begun.
    Raises: What the last attempt that had begun raised; Cancelled.
    """
    failures = tries = 0
    last: MigrationFailed | None = None
    give_up_at = 0.0
    while True:
        try:
            return await attempt()
        except MigrationFailed as failed:
            failures, tries, last = failures + 1, 0, failed
            give_up_at = time.monotonic() + patience_s
            if not failed.facts.get("again") or failures >= ATTEMPTS_MAX:
                raise
            operation.tell("message", {"text": f"{failed}; {failed.truth}; beginning anew"})
        except TransportError:
            if last is None:
                raise
            if time.monotonic() > give_up_at:
                raise last from None
        await _wait(operation, BACKOFF_S[min(tries, len(BACKOFF_S) - 1)], last)
        tries += 1


async def _wait(operation: Operation, seconds: float, last: MigrationFailed) -> None:
    cancelled = asyncio.Event()

    async def cancel() -> None:
        cancelled.set()

    operation.on_cancel(cancel)
    operation.enter("wait")
    try:
        async with asyncio.timeout(seconds):
            await cancelled.wait()
    except TimeoutError:
        return
    raise Cancelled("the migration was cancelled", truth=last.truth)
