"""News that is sent on with other messages: each piece a bounded number of times, the freshest
first (SWIM, section 4.1)."""

from __future__ import annotations

from math import ceil, log10

from novacron_consensus_gossip._wire import NEWS_MAX, Claim, Doubt, encode_claim


def digits(members: int) -> int:
    """The decimal digits that the cluster's size calls for."""
    return max(1, ceil(log10(members + 1)))


def _key(claim: Claim) -> str:
    # Independent suspicions of one member are different news: their number shortens the suspicion.
    if type(claim) is Doubt and claim.state == 1:
        return f"{claim.name} {claim.by}"
    return claim.name


class News:
    """What is still to be sent on."""

    __slots__ = ("_encoded", "_keys", "_rounds")

    def __init__(self) -> None:
        self._encoded: dict[str, bytes] = {}
        # By how often they were sent; within one, the oldest first.
        self._rounds: list[dict[str, None]] = [{}]
        # The keys of all news about a member, with how often each was sent.
        self._keys: dict[str, dict[str, int]] = {}

    def __len__(self) -> int:
        return len(self._encoded)

    def tell(self, claim: Claim) -> None:
        """Send this on from now on, instead of what was said of the member before."""
        key = _key(claim)
        known = self._keys.get(claim.name)
        if known is not None and (key == claim.name or claim.name in known or key in known):
            self.drop(claim.name)
        self._keys.setdefault(claim.name, {})[key] = 0
        self._encoded[key] = encode_claim(claim)
        self._rounds[0][key] = None

    def drop(self, name: str) -> None:
        """Say nothing more of a member."""
        for key, sent in self._keys.pop(name, {}).items():
            del self._encoded[key]
            del self._rounds[sent][key]

    def take(self, room: int, limit: int) -> list[bytes]:
        """What goes into a message with so much room; counts as sent.

        Args:
            room: Bytes.
            limit: How often a piece is sent at the most.
        """
        if not self._encoded:
            return []
        taken: list[bytes] = []
        moved: list[tuple[str, int]] = []
        for sent, keys in enumerate(self._rounds):
            for key in keys:
                encoded = self._encoded[key]
                if len(encoded) <= room and len(taken) < NEWS_MAX:
                    room -= len(encoded)
                    taken.append(encoded)
                    moved.append((key, sent))
            if room < 16:  # nothing is shorter
                break
        for key, sent in moved:
            self._advance(key, sent, limit)
        return taken

    def _advance(self, key: str, sent: int, limit: int) -> None:
        name = key.partition(" ")[0]
        del self._rounds[sent][key]
        if sent + 1 >= limit:
            del self._encoded[key]
            keys = self._keys[name]
            del keys[key]
            if not keys:
                del self._keys[name]
            return
        if len(self._rounds) <= sent + 1:
            self._rounds.append({})
        self._rounds[sent + 1][key] = None
        self._keys[name][key] = sent + 1
