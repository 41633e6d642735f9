"""Which peer is told of a new revocation list, and when. Without I/O.

A list is known by its number, which the authority counts up. Whoever gets a newer one tells all of
its peers at once, so a list reaches a fleet in as many steps as the fleet is wide; who could not be
reached is tried again, and all are asked now and then, since a peer may have been away.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attrs import define, field

# After a peer that was not reached: seconds until the next try, by how often that was.
BACKOFF_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@define
class _Peer:
    number: int = -1  # of the newest list that it is known to have
    failures: int = 0
    next_s: float = 0.0
    busy: bool = False


@define
class Spread:
    """One node's view of what its peers have.

    Args:
        ask_s: A peer is asked again after so long, even if there is nothing to tell.
    """

    ask_s: float
    _peers: dict[str, _Peer] = field(factory=dict, init=False)

    def due(self, now_s: float, number: int, peers: Iterable[str]) -> list[str]:
        """Whom to speak to now, this node having the list of that number; each is busy then until
        `done` or `failed`."""
        names = list(peers)
        self._peers = {name: self._peers.get(name) or _Peer() for name in names}
        found = []
        for name, peer in self._peers.items():
            new = number > peer.number and not peer.failures
            if not peer.busy and (new or now_s >= peer.next_s):
                peer.busy = True
                found.append(name)
        return found

    def done(self, now_s: float, peer: str, number: int) -> None:
        """A peer was spoken to and has the list of that number now."""
        if (known := self._peers.get(peer)) is not None:
            known.number, known.failures, known.busy = number, 0, False
            known.next_s = now_s + self.ask_s

    def failed(self, now_s: float, peer: str) -> None:
        """A peer was not reached."""
        if (known := self._peers.get(peer)) is not None:
            known.next_s = now_s + BACKOFF_S[min(known.failures, len(BACKOFF_S) - 1)]
            known.failures += 1
            known.busy = False

    def heard(self, peer: str, number: int) -> None:
        """A peer said by itself which list it has: it is there, and need not be told that one."""
        if (known := self._peers.get(peer)) is not None:
            known.number = max(known.number, number)
            if known.failures:
                known.failures, known.next_s = 0, 0.0
