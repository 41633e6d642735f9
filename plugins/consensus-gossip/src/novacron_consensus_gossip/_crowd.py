"""A simulated cluster of up to ten thousand members, to measure the protocol.

It runs the very core that nodes run, over a network that loses and delays. To stay fast it does
only what measuring needs; the simulation that injects every kind of fault is `_simulation`.
"""

from __future__ import annotations

import random
from collections import Counter
from heapq import heappop, heappush
from typing import Final

from attrs import field, frozen

from novacron_consensus_gossip._core import GossipCore
from novacron_consensus_gossip._effects import Changed, Deliver, Effect, Send, Stream
from novacron_consensus_gossip._members import Start
from novacron_consensus_gossip._values import Me, Member, State, Timing

WAKE: Final = -1
DATAGRAM: Final = 0
STREAM: Final = 1


@frozen(kw_only=True)
class Weather:
    """The network between the members.

    Attributes:
        loss: The chance that a datagram is lost. A stream's message arrives, or its peer is gone.
        delay_ms: The least and the most that a message is under way, one way.
        slow: The share of members that now and then do not run for a while.
        stall_ms: For how long; about every ten periods.
    """

    loss: float = 0.01
    delay_ms: tuple[int, int] = (1, 10)
    slow: float = 0.0
    stall_ms: int = 3_000


@frozen(kw_only=True)
class Death:
    """How a failure became known, in milliseconds after it.

    Attributes:
        first_ms: The first suspicion anywhere.
        believed_ms: The first that held it dead.
        everywhere_ms: All did; None if that did not happen in time.
    """

    first_ms: int | None
    believed_ms: int | None
    everywhere_ms: int | None


class Crowd:
    """See the module.

    Attributes:
        now: Milliseconds.
        counts: Messages, bytes, and what was believed wrongly.
        false_dead: Members that were held dead while they lived, by name and incarnation.
        delivered: Which members have got each broadcast, by its body.
    """

    def __init__(
        self, members: int, seed: int, timing: Timing | None = None, weather: Weather | None = None
    ) -> None:
        self.timing = timing or Timing()
        self.weather = weather or Weather()
        self.rng = random.Random(seed)
        self.now = 0
        self.counts: Counter[str] = Counter()
        self.false_dead: set[tuple[str, int]] = set()
        self.delivered: dict[bytes, set[int]] = {}
        self.names = [f"m{number:05}" for number in range(members)]
        self._index = {name: number for number, name in enumerate(self.names)}
        start = Start({name: Member(name, name, 0, life=1) for name in self.names})
        self._heap: list[tuple[int, int, int, int, bytes, str]] = []
        self._count = 0
        self._wakes: list[int | None] = [None] * members
        self._stalled: list[int] = [0] * members
        self.up = [True] * members
        self._watched = -1
        self._unaware: set[int] = set()
        self._death: dict[str, int] = {}
        self.cores: list[GossipCore] = []
        for number, name in enumerate(self.names):
            me, rng = Me(name=name, address=name), random.Random(self.rng.getrandbits(62))
            core = GossipCore(me, self.timing, rng, start=start)
            self.cores.append(core)
            self._perform(number, core.start(0))
            self._wake(number)

    # What happens to it.

    def kill(self, number: int) -> None:
        """A member ends, and how that becomes known is watched from now on."""
        self.up[number] = False
        self._watched = number
        self._unaware = {n for n, up in enumerate(self.up) if up}
        self._death = {"at": self.now}

    def death(self) -> Death:
        """How the last `kill` became known."""
        at = self._death["at"]
        told = {key: when - at for key, when in self._death.items()}
        return Death(
            first_ms=told.get("first"),
            believed_ms=told.get("believed"),
            everywhere_ms=told.get("everywhere"),
        )

    def broadcast(self, number: int, body: bytes) -> None:
        self.delivered[body] = set()
        self._perform(number, self.cores[number].broadcast(self.now, "crowd", body))

    @property
    def known_everywhere(self) -> bool:
        return not self._unaware

    def advance(self, ms: int) -> None:
        """Let so much time pass."""
        end = self.now + ms
        heap, cores, up = self._heap, self.cores, self.up
        while heap and heap[0][0] <= end:
            at, _, kind, number, message, sender = heappop(heap)
            if self._stalled[number] > at:  # it comes to it when it runs again
                self._count += 1
                later = (self._stalled[number], self._count, kind, number, message, sender)
                heappush(heap, later)
                continue
            self.now = max(self.now, at)
            if not up[number]:
                continue
            core = cores[number]
            if kind == WAKE:
                self._wakes[number] = None
                due = core.deadline_ms
                effects = core.tick(at) if due is not None and due <= at else []
            elif kind == DATAGRAM:
                effects = core.receive(at, sender, message)
            else:
                effects = core.receive_stream(at, message)
            if effects:
                self._perform(number, effects)
            self._wake(number)
        self.now = end

    def stall(self) -> None:
        """Call once per period: some of the slow members stop for a while."""
        weather = self.weather
        for number in range(int(len(self.cores) * weather.slow)):
            if self.rng.random() < 0.1:
                self._stalled[number] = self.now + int(self.rng.random() * weather.stall_ms)

    # Inside.

    def _wake(self, number: int) -> None:
        due = self.cores[number].deadline_ms
        planned = self._wakes[number]
        if due is not None and (planned is None or due < planned):
            self._wakes[number] = due
            self._count += 1
            heappush(self._heap, (due, self._count, WAKE, number, b"", ""))

    def _perform(self, number: int, effects: list[Effect]) -> None:
        counts, chance = self.counts, self.rng.random
        loss, (least, most) = self.weather.loss, self.weather.delay_ms
        name = self.names[number]
        for effect in effects:
            kind = type(effect)
            if kind is Send or kind is Stream:
                assert isinstance(effect, Send | Stream)
                counts["messages"] += 1
                counts["bytes"] += len(effect.message)
                if kind is Stream:
                    counts["streams"] += 1
                elif chance() < loss:
                    continue
                at = self.now + least + int(chance() * (most - least + 1))
                self._count += 1
                what = STREAM if kind is Stream else DATAGRAM
                to = self._index[effect.to]
                heappush(self._heap, (at, self._count, what, to, effect.message, name))
            elif isinstance(effect, Changed):
                self._changed(number, effect)
            elif isinstance(effect, Deliver):
                self.delivered[effect.body].add(number)

    def _changed(self, number: int, effect: Changed) -> None:
        member = effect.member
        subject = self._index[member.name]
        if effect.state is State.SUSPECT:
            if self.up[subject]:
                self.counts["false-suspicions-held"] += 1
            elif subject == self._watched:
                self._death.setdefault("first", self.now)
        elif effect.state is State.DEAD:
            if self.up[subject]:
                self.counts["false-deaths-held"] += 1
                self.false_dead.add((member.name, member.incarnation))
            elif subject == self._watched:
                self._death.setdefault("believed", self.now)
                self._unaware.discard(number)
                if not self._unaware:
                    self._death.setdefault("everywhere", self.now)
        elif effect.state is State.ALIVE and subject == self._watched and number != subject:
            self._unaware.add(number)


@frozen(kw_only=True)
class Figures:
    """What one size showed.

    Attributes:
        members: The size of the cluster.
        node_periods: Over how much the false deaths were counted.
        false_dead: Members that anybody held dead while they lived.
        false_held: How often a member held a living one dead.
        known_periods: For each failure, after how many periods all knew; None if they did not.
        first_periods: For each failure, after how many periods somebody suspected it.
        messages: Messages per member and period, at rest.
        bytes_sent: Bytes per member and period, at rest.
        messages_in_failure: Messages per member and period while a failure becomes known.
    """

    members: int
    node_periods: int
    false_dead: int
    false_held: int
    known_periods: list[float | None] = field(factory=list)
    first_periods: list[float | None] = field(factory=list)
    messages: float
    bytes_sent: float
    messages_in_failure: float


def measure(
    members: int,
    *,
    seed: int,
    failures: int,
    rest_periods: int,
    timing: Timing | None = None,
    weather: Weather | None = None,
    wait_periods: int = 40,
) -> Figures:
    """Let a cluster rest for some periods, then kill members one after the other."""
    crowd = Crowd(members, seed, timing, weather)
    period = crowd.timing.period_ms
    for _ in range(rest_periods):
        crowd.stall()
        crowd.advance(period)
    at_rest = Counter(crowd.counts)
    known: list[float | None] = []
    first: list[float | None] = []
    periods = 0
    for number in crowd.rng.sample(range(members), failures):
        crowd.kill(number)
        for _ in range(wait_periods * 10):
            crowd.advance(period // 10)
            if crowd.known_everywhere:
                break
        death = crowd.death()
        known.append(None if death.everywhere_ms is None else death.everywhere_ms / period)
        first.append(None if death.first_ms is None else death.first_ms / period)
        # What is still on its way is part of what the failure costs.
        crowd.advance(3 * period)
        periods += 3 + round((death.everywhere_ms or wait_periods * period) / period)
    rest = max(1, rest_periods * members)
    total = (rest_periods + periods) * members
    return Figures(
        members=members,
        node_periods=total,
        false_dead=len(crowd.false_dead),
        false_held=crowd.counts["false-deaths-held"],
        known_periods=known,
        first_periods=first,
        messages=at_rest["messages"] / rest,
        bytes_sent=at_rest["bytes"] / rest,
        messages_in_failure=(crowd.counts["messages"] - at_rest["messages"])
        / max(1, periods * members),
    )
