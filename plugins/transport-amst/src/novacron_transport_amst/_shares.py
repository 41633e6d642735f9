"""What this node may send, split among its links. Without I/O."""

from __future__ import annotations

import threading
from typing import Final

# A link that has not asked for so long is no more.
GONE_S: Final = 2.0


class Shares:
    """Splits what this node may send among the links that have something to send.

    A link that wants less than its part leaves the rest to the others (max-min fairness).
    """

    def __init__(self, total: float | None) -> None:
        self._total = total
        self._wants: dict[int, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def of(self, key: int, want: float, now_s: float) -> float | None:
        """What a link may send, in bytes per second; None if there is no limit.

        Args:
            key: Of the link.
            want: Bytes per second that it could use; 0 if it has nothing to send.
        """
        if self._total is None:
            return None
        with self._lock:
            self._wants[key] = (want, now_s)
            self._wants = {k: v for k, v in self._wants.items() if now_s - v[1] < GONE_S}
            left, count = self._total, len(self._wants)
            for wanted, other in sorted((w, k) for k, (w, _) in self._wants.items()):
                part = min(wanted, left / count) if count > 1 else left
                if other == key:
                    return max(part, left / count)
                left, count = left - part, count - 1
        return self._total
