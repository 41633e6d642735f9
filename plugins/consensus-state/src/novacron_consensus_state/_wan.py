"""A wide-area network in one process, for figures: replicas in regions, delays, loss, partitions.

Time is simulated, so that minutes take seconds; one seed gives one run. Messages are lost as
datagrams are: a transport that sends again would delay them instead.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any

from attrs import define, field
from novacron_agreement import Effect, Save, Send

from novacron_consensus_state._effects import Answer, Changed, Done, Refused
from novacron_consensus_state._member import LogFactory
from novacron_consensus_state._replica import Replica
from novacron_consensus_state._settings import ReplicaSettings

JITTER_MS = 4


@define(kw_only=True)
class Wan:
    """See the module.

    Args:
        regions: Region by member.
        delays_ms: The least and the most one-way delay between two regions; each pair has its own.
        loss: Of a message that leaves its region.

    Attributes:
        now: Milliseconds since the beginning.
        sent_bytes: Of all messages.
        changed: Called with the member, name and type of each key that changes somewhere.
        cut: Pairs of regions between which nothing passes.
    """

    regions: Mapping[str, str]
    delays_ms: tuple[int, int]
    loss: float
    seed: int
    settings: ReplicaSettings
    log: Callable[[str], LogFactory | None] = lambda name: None
    changed: Callable[[str, str, str], None] = lambda member, name, kind: None
    now: int = 0
    sent_bytes: int = 0
    cut: set[frozenset[str]] = field(factory=set)
    replicas: dict[str, Replica] = field(factory=dict)
    records: dict[str, list[bytes]] = field(factory=dict)
    _heap: list[tuple[int, int, Callable[[], None]]] = field(factory=list)
    _count: int = 0
    _answers: dict[int, Callable[[Answer | Refused], None]] = field(factory=dict)
    _ticket: int = 0
    _delays: dict[frozenset[str], int] = field(factory=dict)
    _due: dict[str, int] = field(factory=dict)
    _rng: random.Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        names = sorted(set(self.regions.values()))
        pairs = [frozenset((a, b)) for a in names for b in names if a < b]
        least, most = self.delays_ms
        # Evenly from the least to the most, so that the largest delay is known.
        for at, pair in enumerate(pairs):
            self._delays[pair] = least + (most - least) * at // max(1, len(pairs) - 1)

    def start(self) -> None:
        """Begin all replicas that have not begun."""
        for name in self.regions:
            if name in self.replicas:
                continue
            kept = self.records.setdefault(name, [])
            self.replicas[name] = replica = Replica(
                name,
                self.regions,
                list(kept),
                self.settings,
                random.Random(f"{self.seed} {name} {self.now}"),
                cluster="wan",
                log=self.log(name),
            )
            self._perform(name, replica.start(self.now))

    def delay_ms(self, a: str, b: str) -> int:
        """One way between two members."""
        pair = frozenset((self.regions[a], self.regions[b]))
        return self._delays[pair] if len(pair) == 2 else 1

    def write(
        self,
        member: str,
        name: str,
        kind: str,
        operation: str,
        values: Sequence[Any],
        then: Callable[[Answer | Refused], None] = lambda answer: None,
        **more: Any,
    ) -> None:
        self._ticket += 1
        self._answers[self._ticket] = then
        replica = self.replicas[member]
        effects = replica.write(self.now, self._ticket, name, kind, operation, values, **more)
        self._perform(member, effects)

    def read(
        self,
        member: str,
        name: str,
        kind: str,
        then: Callable[[Answer | Refused], None] = lambda answer: None,
        **more: Any,
    ) -> None:
        self._ticket += 1
        self._answers[self._ticket] = then
        effects = self.replicas[member].read(self.now, self._ticket, name, kind, **more)
        self._perform(member, effects)

    def at(self, delay_ms: int, call: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._heap, (self.now + delay_ms, self._count, call))

    def run(self, ms: int, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass, until something holds; whether it does."""
        end = self.now + ms
        if until():
            return True
        while self._heap and self._heap[0][0] <= end:
            self.now, _, call = heappop(self._heap)
            call()
            if until():
                return True
        self.now = end
        return until()

    def converged(self) -> bool:
        """Whether all replicas have seen and hold the same."""
        stores = [replica.store for replica in self.replicas.values()]
        return (
            all(store.vector == stores[0].vector for store in stores)
            and len({store.tree.root() for store in stores}) == 1
        )

    def isolate(self, region: str, *, heal: bool = False) -> None:
        """Cut a region off from all others, or heal it."""
        for other in set(self.regions.values()) - {region}:
            pair = frozenset((region, other))
            self.cut = self.cut - {pair} if heal else self.cut | {pair}

    def _perform(self, member: str, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Save(records, replaces):
                    kept = self.records[member]
                    if replaces:
                        kept.clear()
                    kept += records
                case Send(to, message):
                    self._post(member, to, message)
                case Done(ticket, answer):
                    self._answers.pop(ticket)(answer)
                case Refused():
                    self._answers.pop(effect.ticket)(effect)
                case Changed(name, kind):
                    self.changed(member, name, kind)
        due = self.replicas[member].deadline_ms
        if self._due.get(member) != due:
            self._due[member] = due
            self.at(max(0, due - self.now), lambda: self._tick(member, due))

    def _tick(self, member: str, due: int) -> None:
        if self._due.get(member) == due:
            del self._due[member]
            self._perform(member, self.replicas[member].tick(self.now))

    def _post(self, member: str, to: str, message: bytes) -> None:
        self.sent_bytes += len(message)
        far = self.regions[member] != self.regions[to]
        pair = frozenset((self.regions[member], self.regions[to]))
        if pair in self.cut or (far and self._rng.random() < self.loss):
            return
        delay = self.delay_ms(member, to) + int(self._rng.random() * JITTER_MS)

        def arrive() -> None:
            self._perform(to, self.replicas[to].receive(self.now, member, message))

        self.at(delay, arrive)
