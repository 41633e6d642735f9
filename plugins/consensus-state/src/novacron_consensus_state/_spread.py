"""How events get around: pushed when they are made, asked for when they are missing.

Pushing is quick and may fail; probing tells each peer what the other has, and what is missing for
longer than a moment is pulled. Both sides only ever say what is durable at them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from attrs import define, field

from novacron_consensus_state._effects import Outbox
from novacron_consensus_state._freshness import Freshness
from novacron_consensus_state._messages import (
    PAGE_BYTES_MAX,
    Ack,
    Answer,
    Events,
    Offer,
    Probe,
    Pull,
)
from novacron_consensus_state._settings import ReplicaSettings
from novacron_consensus_state._topology import Topology
from novacron_consensus_state._vector import Dot, Vector, covers, join_into, lowest

if TYPE_CHECKING:
    from novacron_consensus_state._store import Store

PAGES_PER_PULL: Final = 4
FIRST_RTT_MS: Final = 250.0
PULL_LEAST_MS: Final = 100


@define
class Peer:
    """What is known of another member.

    Attributes:
        known: What is durable there, as it has said.
        rtt_ms: Smoothed round trip.
    """

    known: Vector = field(factory=dict)
    heard_ms: int | None = None
    rtt_ms: float = FIRST_RTT_MS
    root: bytes = b""
    failures: int = 0


class Spread:
    """See the module."""

    def __init__(
        self,
        store: Store,
        topology: Topology,
        freshness: Freshness,
        settings: ReplicaSettings,
        out: Outbox,
    ) -> None:
        self.store = store
        self.topology = topology
        self.freshness = freshness
        self.settings = settings
        self.out = out
        self.peers: dict[str, Peer] = {name: Peer() for name in topology.others}
        self.next_probe_ms = 0
        # What all members of each other region have: only ever more, while its members stay.
        self._floors: dict[str, Vector] = {}
        self._again: deque[tuple[int, str, Dot, bytes]] = deque()
        self._lacking: dict[str, tuple[int, int]] = {}  # by origin: up to which number, since when
        self._next_pull_ms = 0

    def set_topology(self, topology: Topology) -> None:
        self.topology = topology
        self.peers = {name: self.peers.get(name, Peer()) for name in topology.others}
        self._floors = {}

    # Pushing.

    def push(self, now_ms: int, dot: Dot, raw: bytes, targets: Iterable[str]) -> None:
        """Send an event now, and once more soon if its arrival is not known by then."""
        for to in targets:
            self.out.send_event(to, raw)
            if self.settings.repeat_ms:
                self._again.append((now_ms + self.settings.repeat_ms, to, dot, raw))

    def pass_on(self, now_ms: int, maker: str, dot: Dot, raw: bytes, sender: str) -> None:
        """Send an event that came from elsewhere to those who depend on this node for it."""
        targets = self.topology.on(maker, self.is_heard(now_ms))
        self.push(now_ms, dot, raw, (to for to in targets if to not in (sender, maker)))

    def is_heard(self, now_ms: int) -> _Heard:
        return _Heard(self.peers, now_ms - self.settings.silent_ms)

    # Hearing.

    def heard(self, now_ms: int, sender: str) -> None:
        peer = self.peers[sender]
        peer.heard_ms, peer.failures = now_ms, 0

    def learned(self, now_ms: int, sender: str, vector: Mapping[str, int]) -> None:
        """A peer has all this."""
        join_into(self.peers[sender].known, vector)
        for origin, number in vector.items():
            if number > self.store.vector.get(origin, 0):
                self.missing(now_ms, origin, number)

    def missing(self, now_ms: int, origin: str, number: int) -> None:
        """An event exists that is not here."""
        most, since = self._lacking.get(origin, (0, now_ms))
        self._lacking[origin] = (max(most, number), since)

    def probed(self, now_ms: int, sender: str, probe: Probe) -> None:
        self._hears_of(now_ms, sender, probe.vector, probe.floor, probe.root)
        self.out.send(
            sender,
            Answer(
                probe.stamp,
                dict(self.store.vector),
                self.floor(),
                self.store.tree.root(),
                self.freshness.ages_ms(now_ms),
            ),
        )

    def answered(self, now_ms: int, sender: str, answer: Answer) -> None:
        took = now_ms - answer.stamp
        if took < 0:
            return  # no stamp of ours
        peer = self.peers[sender]
        peer.rtt_ms = took if peer.rtt_ms == FIRST_RTT_MS else 0.8 * peer.rtt_ms + 0.2 * took
        self._hears_of(now_ms, sender, answer.vector, answer.floor, answer.root)
        self.freshness.promised(sender, answer.stamp, answer.vector, self.store.vector)
        for member, age_ms in answer.ages.items():
            self.freshness.promised(member, answer.stamp - age_ms, answer.vector, self.store.vector)

    def _hears_of(
        self, now_ms: int, sender: str, vector: Vector, floor: Vector, root: bytes
    ) -> None:
        self.learned(now_ms, sender, vector)
        self.peers[sender].root = root
        region = self.topology.members[sender]
        if region != self.topology.region:
            join_into(self._floors.setdefault(region, {}), floor)
        stable = self.stable()
        if stable:
            self.store.history.stable(stable)

    def floor(self) -> Vector:
        """What all members of this region have."""
        known = [self.peers[name].known for name in self.topology.neighbours]
        return lowest([self.store.vector, *known])

    def stable(self) -> Vector:
        """What all members have: nobody will ever ask for it again."""
        others = [r for r in self.topology.regions if r != self.topology.region]
        return lowest([self.floor(), *(self._floors.get(region, {}) for region in others)])

    def acknowledge(self, to: str) -> None:
        self.out.send(to, Ack(dict(self.store.vector)))

    # Pulling.

    def pulled(self, sender: str, after: Mapping[str, int]) -> None:
        """A peer asks for what it has not seen."""
        store = self.store
        if not store.history.reaches(after, store.vector):
            self.out.send(sender, Offer(dict(store.vector)))
            return
        part: list[bytes] = []
        size = pages = 0
        for raw in store.history.since(after):
            if part and size + len(raw) > PAGE_BYTES_MAX:
                pages += 1
                if pages == PAGES_PER_PULL:
                    self.out.send(sender, Events(part, more=True))
                    return
                self.out.send(sender, Events(part))
                part, size = [], 0
            part.append(raw)
            size += len(raw)
        if part:
            self.out.send(sender, Events(part))

    def pull_from(self, now_ms: int, to: str) -> None:
        self.out.send(to, Pull(dict(self.store.vector)))
        self._next_pull_ms = now_ms + int(2 * self.peers[to].rtt_ms) + PULL_LEAST_MS

    def arrived(self) -> None:
        """Something was delivered: perhaps nothing is missing any more."""
        seen = self.store.vector
        self._lacking = {
            origin: lack for origin, lack in self._lacking.items() if lack[0] > seen.get(origin, 0)
        }

    # Time.

    def tick(self, now_ms: int) -> None:
        self._repeat(now_ms)
        if now_ms >= self.next_probe_ms:
            self.probe(now_ms)
        self._pull(now_ms)

    def deadline_ms(self) -> int:
        times = [self.next_probe_ms]
        if self._again:
            times.append(self._again[0][0])
        if self._lacking and not self.store.held:
            due = min(since for _, since in self._lacking.values()) + self.settings.patience_ms
            times.append(max(due, self._next_pull_ms))
        return min(times)

    def probe(self, now_ms: int) -> None:
        """Ask everybody whom this node asks, and now and then those who stay silent."""
        self.next_probe_ms = now_ms + self.settings.probe_ms
        vector, floor, root = dict(self.store.vector), self.floor(), self.store.tree.root()
        targets = self.topology.asked(self.is_heard(now_ms))
        # Somebody else's silence may have made it a relay no more; it is asked for its return.
        for region in self.topology.regions:
            first = next(n for n, its in self.topology.members.items() if its == region)
            if first != self.topology.me and first not in targets:
                targets.append(first)
        for to in targets:
            self.out.send(to, Probe(now_ms, vector, floor, root))

    def _repeat(self, now_ms: int) -> None:
        while self._again and self._again[0][0] <= now_ms:
            _, to, dot, raw = self._again.popleft()
            if to in self.peers and not covers(self.peers[to].known, dot):
                self.out.send_event(to, raw)

    def _pull(self, now_ms: int) -> None:
        if not self._lacking or self.store.held or now_ms < self._next_pull_ms:
            return
        seen = self.store.vector
        late = [
            origin
            for origin, (number, since) in self._lacking.items()
            if since + self.settings.patience_ms <= now_ms and number > seen.get(origin, 0)
        ]
        if not late:
            return
        # Of those who have something that is missing: who answers, and then who is near.
        able = [
            (peer.failures, peer.rtt_ms, name)
            for name, peer in self.peers.items()
            if any(peer.known.get(origin, 0) > seen.get(origin, 0) for origin in late)
        ]
        if not able:
            self._next_pull_ms = now_ms + self.settings.probe_ms
            return
        name = min(able)[2]
        self.peers[name].failures += 1
        self.pull_from(now_ms, name)


@define
class _Heard:
    """Whether a peer was heard lately. A call, so that it can be handed to the topology."""

    peers: dict[str, Peer]
    since_ms: int

    def __call__(self, name: str) -> bool:
        heard = self.peers[name].heard_ms
        return heard is not None and heard >= self.since_ms
