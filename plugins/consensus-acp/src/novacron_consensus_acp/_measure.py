"""What a member measures of the others: how long they take to answer, and how often they do not."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

from attrs import define, field

_KEPT = 16


@define
class _Peer:
    asked: dict[int, int] = field(factory=dict)  # by number: when
    took_ms: deque[int] = field(factory=lambda: deque(maxlen=_KEPT))
    answered: deque[bool] = field(factory=lambda: deque(maxlen=2 * _KEPT))
    generation: int = 0
    settled: int = 0


class Measurement:
    """Of each other member."""

    def __init__(self, others: Iterable[str], patience_ms: int) -> None:
        self._peers = {name: _Peer() for name in others}
        self._patience_ms = patience_ms
        self._number = 0

    def ask(self, name: str, now_ms: int) -> int:
        """A question goes out; its number."""
        peer = self._peers[name]
        for number, at in list(peer.asked.items()):
            if now_ms - at > self._patience_ms:
                del peer.asked[number]
                peer.answered.append(False)
        self._number += 1
        peer.asked[self._number] = now_ms
        return self._number

    def heard(self, name: str, generation: int, settled: int) -> None:
        """A member says which generation it is in, and from which one it can begin again. Both may
        be lower than before: a restarted member has to come through all that it has not settled."""
        peer = self._peers.get(name)
        if peer is not None:
            peer.generation, peer.settled = generation, settled

    def answered(self, name: str, number: int, now_ms: int) -> None:
        peer = self._peers.get(name)
        at = peer.asked.pop(number, None) if peer is not None else None
        if peer is not None and at is not None:
            peer.took_ms.append(now_ms - at)
            peer.answered.append(True)

    def round_trip_ms(self, others: int) -> float | None:
        """Within which time so many others answer, in the median; None if fewer do."""
        found = sorted(median(peer.took_ms) for peer in self._peers.values() if peer.took_ms)
        if others == 0:
            return 0.0
        return found[others - 1] if len(found) >= others else None

    def loss(self) -> float:
        """Of those that answer at all: the share of questions without an answer."""
        rows = [peer.answered for peer in self._peers.values() if any(peer.answered)]
        count = sum(len(row) for row in rows)
        return 1 - sum(sum(row) for row in rows) / count if count else 0.0

    def behind(self, generation: int) -> list[str]:
        """Who is not known to have come to a generation."""
        return [name for name, peer in self._peers.items() if peer.generation < generation]

    def unsettled(self, generation: int) -> list[str]:
        """Who may still need what was before a generation."""
        return [name for name, peer in self._peers.items() if peer.settled < generation]
