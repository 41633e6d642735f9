"""When a view is given up, and how members come to the same one.

Each member sends its timeout to the next view's leader alone, which gathers a quorum of them into a
certificate: a change of view costs messages linear in the number of members. Only if that leader
does not answer either, timeouts go to everybody. A member that sees f + 1 others give up a view
joins them, since one of them is honest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from novacron_consensus_bft._wire import Timeout, TimeoutCertificate

# A view's time is doubled after each one that brought nothing, so many times at the most.
DOUBLINGS_MAX: Final = 6


class Pacemaker:
    """Whose newest timeout is for which view.

    Attributes:
        failures: Views given up since something was committed.
        entered_ms: When the present view began here.
        resend_ms: When this member's own timeout is sent again; None if the view is not given up.
    """

    def __init__(self, view_timeout_ms: int) -> None:
        self._base_ms = view_timeout_ms
        self._timeouts: dict[int, Timeout] = {}
        self.failures = 0
        self.entered_ms = 0
        self.resend_ms: int | None = None

    @property
    def view_timeout_ms(self) -> int:
        return self._base_ms << min(self.failures, DOUBLINGS_MAX)

    def clear(self) -> None:
        """A new era: nothing said before counts."""
        self._timeouts.clear()
        self.failures = 0
        self.resend_ms = None

    def add(self, place: int, timeout: Timeout) -> None:
        """Keep each member's newest."""
        known = self._timeouts.get(place)
        if known is None or known.view < timeout.view:
            self._timeouts[place] = timeout

    def newest(self, place: int) -> int:
        """The newest view that a member gave up; -1: none."""
        known = self._timeouts.get(place)
        return known.view if known is not None else -1

    def joined(self, faulty: int, here: int | None) -> int:
        """The highest view that at least one honest other member has given up; -1: none."""
        views = sorted(
            (timeout.view for place, timeout in self._timeouts.items() if place != here),
            reverse=True,
        )
        return views[faulty] if len(views) > faulty else -1

    def certificate(self, era: int, view: int, quorum: int) -> TimeoutCertificate | None:
        """That a quorum has given this view up, once it has."""
        rows = tuple(
            (place, *timeout.high.rank, timeout.signature)
            for place, timeout in sorted(self._timeouts.items())
            if timeout.view == view
        )
        return TimeoutCertificate(era, view, rows[:quorum]) if len(rows) >= quorum else None

    def of_view(self, view: int) -> Iterable[Timeout]:
        return [timeout for timeout in self._timeouts.values() if timeout.view == view]
