"""Keeps BBR searching, so that it carries what the steering sends and never decides by itself.

BBR ends its search for the path's rate after three round trips in which it did not grow by a
quarter. Random loss does that to it anywhere: while it repairs a loss it sends no more than what
arrives, so with a loss in most round trips it takes a twentieth of the path for the whole, and
then looks for a quarter more once in eight round trips. A stream here is paced from outside, by
a steering that watches the queue of the path. So its search is begun anew whenever it has ended,
and before ten seconds have passed, after which BBR would stop sending for a fifth of a second to
measure its round trip. A search that may not send faster than the pace does no harm.

BBR: Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14 (5), 2016.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field

# A search that goes on is begun anew at this age in seconds, in a moment when nothing is repaired,
# and in any case at the older one; one that ended, not before it is so old. Beginning anew costs a
# stream that repairs a loss its window.
RIPE_S: Final = 5.0
OLD_S: Final = 8.5
YOUNG_S: Final = 0.2


@define
class Search:
    """When the search of one stream is to be begun anew. Without I/O.

    Args:
        spread: From 0 to 1, other for each stream of a link, so that not all begin at once.
    """

    spread: float = 0.0
    _since_s: float | None = field(default=None, init=False)

    def over(self, now_s: float, *, searching: bool, paced: bool, repairing: bool) -> bool:
        """Whether to begin anew now; whoever asks does so then.

        Args:
            searching: What BBR says of itself.
            paced: Whether the stream is held at a pace. Left alone, BBR must decide by itself.
            repairing: Whether lost packets are being sent again.
        """
        if self._since_s is None:
            self._since_s = now_s
        age_s = now_s - self._since_s
        ripe = age_s >= RIPE_S + self.spread and not repairing
        old = age_s >= OLD_S - self.spread
        if not paced or age_s < YOUNG_S or (searching and not ripe and not old):
            return False
        self._since_s = now_s
        return True
