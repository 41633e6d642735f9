"""Whether a variant is to blame for a move that failed."""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import define, field, frozen

# What the kernel says when a peer, and not the path or the codec, went away. A link is up again by
# then, so it would not tell.
_RESTARTS: Final = ("was restarted", "restarted in the middle", "lost the session", "superseded")
# It says so without the words that another attempt may be made, since none of its own parts may do
# that: the batches were taken one by one, and are not what was sent.
_MISMATCH: Final = "what arrived is not what was sent"
_UNSOUND: Final = "the peer broke the protocol"
OUTAGE_S: Final = 120.0
LOSSES_KEPT: Final = 1_000


@frozen(kw_only=True)
class Failure:
    """A move that failed, as far as the node knows why.

    Attributes:
        reason: The kernel's words.
        again: The kernel would begin anew: a frame was not sound, or the link was lost.
        link_up: The link was up when the move ended.
    """

    reason: str
    again: bool
    link_up: bool

    @property
    def cause(self) -> str:
        """``codec``, ``link``, ``protocol`` or ``other``."""
        if _MISMATCH in self.reason:
            return "codec"
        if _UNSOUND in self.reason:
            return "protocol"
        if not self.again or any(words in self.reason for words in _RESTARTS):
            return "other"
        return "codec" if self.link_up else "link"


# Which causes are a variant's fault, by the domain whose provider it chooses.
BLAMED: Final = {
    "compression": {"codec"},
    "transport": {"link"},
    "protocol": {"link", "protocol"},
}


@define
class Blame:
    """Knows which links are down for everybody, whatever they are used with."""

    _lost: deque[tuple[float, str, str]] = field(
        factory=lambda: deque(maxlen=LOSSES_KEPT), init=False
    )

    def is_to(self, domain: str, value: str, target: str, cause: str, at_s: float) -> bool:
        """Whether the value of a domain's flag is to blame, and remember it if it is a link's loss.

        A link that moves with other values lost as well, a moment ago, is the world's fault.
        """
        if cause not in BLAMED.get(domain, ()):
            return False
        if cause != "link":
            return True
        alike = any(
            at_s - when <= OUTAGE_S and where == target and other != value
            for when, where, other in self._lost
        )
        self._lost.append((at_s, target, value))
        return not alike
