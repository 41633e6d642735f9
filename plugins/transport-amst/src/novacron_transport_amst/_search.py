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

# A search is begun anew at this age, and not before the other one.
OLD_S: Final = 8.0
YOUNG_S: Final = 0.2


@define
class Search:
    """When the search of one stream is to be begun anew. Without I/O."""

    _since_s: float | None = field(default=None, init=False)

    def over(self, now_s: float, *, searching: bool, paced: bool) -> bool:
        """Whether to begin anew now; whoever asks does so then.

        Args:
            searching: What BBR says of itself.
            paced: Whether the stream is held at a pace. Left alone, BBR must decide by itself.
        """
        if self._since_s is None:
            self._since_s = now_s
        age_s = now_s - self._since_s
        if not paced or age_s < YOUNG_S or (searching and age_s < OLD_S):
            return False
        self._since_s = now_s
        return True
