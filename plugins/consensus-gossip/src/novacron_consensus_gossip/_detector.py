"""Who is up: SWIM's probes (Das, Gupta, Motivala 2002) with Lifeguard's refinements.

Each period a node pings one other. If no answer comes in time it asks some others to try, so that
one lossy path accuses nobody; these say, too, when they got no answer, so that a node learns that
its own network is the reason. A member that others suspect is probed out of turn by a few, chosen
by chance: so a failure is confirmed within a period or two however large the cluster is, and the
cost stays the same.
"""

from __future__ import annotations

from novacron_consensus_gossip._desk import Desk
from novacron_consensus_gossip._health import Health
from novacron_consensus_gossip._members import Round
from novacron_consensus_gossip._membership import Membership
from novacron_consensus_gossip._values import Member, State
from novacron_consensus_gossip._wire import Ack, Claim, Doubt, Nack, Ping, Relay

RELAYED_MAX = 256
EXTRA_MAX = 4


class Probe:
    """A ping that waits for its answer."""

    __slots__ = ("asked", "by_relays", "extra", "member", "nacks", "sent_ms")

    def __init__(self, member: Member, sent_ms: int, extra: bool) -> None:
        self.member = member
        self.sent_ms = sent_ms
        self.extra = extra
        self.asked = 0
        self.nacks = 0


class Relayed:
    """A probe for somebody else."""

    __slots__ = ("number", "target", "to")

    def __init__(self, to: str, number: int, target: str) -> None:
        self.to = to
        self.number = number
        self.target = target


class Detector:
    """See the module.

    Attributes:
        probes: By number.
        relayed: Probes for others, by our own number.
        round_trip_ms: The last direct round trip to each member that answered lately.
    """

    def __init__(self, desk: Desk, health: Health, membership: Membership) -> None:
        self._desk = desk
        self._health = health
        self._membership = membership
        self._round = Round()
        self._number = desk.rng.getrandbits(31)
        self.probes: dict[int, Probe] = {}
        self.relayed: dict[int, Relayed] = {}
        self.round_trip_ms: dict[str, int] = {}

    def start(self) -> None:
        """Begin at a moment of its own within the first period."""
        period = self._desk.timing.period_ms
        self._desk.timers.set("probe", 0, self._desk.now + int(self._desk.rng.random() * period))

    def _next_number(self) -> int:
        self._number = (self._number + 1) & 0x7FFFFFFF
        return self._number

    # Probing.

    def next_probe(self) -> None:
        """Probe the next member in turn."""
        desk = self._desk
        period = desk.timing.period_ms * self._health.stretch
        desk.timers.set("probe", 0, desk.now + period)
        members = desk.members
        if members.live < 2:
            return
        # Most places hold somebody who lives; where few do, the search goes on next time.
        for _ in range(min(members.places, 64)):
            member = members.at(self._round.next(members.places, desk.rng))
            if member is not None and desk.is_other(member):
                self.probe(member)
                return

    def corroborate(self, suspected: Member) -> None:
        """Somebody suspects a member: perhaps try it, too."""
        desk = self._desk
        extra = sum(probe.extra for probe in self.probes.values())
        chance = desk.timing.corroborators / max(1, desk.members.live)
        if desk.rng.random() < chance and extra < EXTRA_MAX and desk.is_other(suspected):
            self.probe(suspected, extra=True)

    def look(self, name: str) -> None:
        """A suspicion goes on for long: perhaps the refutation did not arrive here."""
        member = self._desk.members.get(name)
        if member is not None and member.state is State.SUSPECT:
            self.probe(member, extra=True)

    def probe(self, member: Member, *, extra: bool = False) -> None:
        desk = self._desk
        number = self._next_number()
        self.probes[number] = Probe(member, desk.now, extra)
        stretch = self._health.stretch
        desk.timers.set("direct", number, desk.now + desk.timing.probe_ms * stretch)
        desk.timers.set("verdict", number, desk.now + desk.timing.period_ms * stretch)
        news = desk.take_news(self._concerning(member.name))
        desk.send(member.address, Ping(desk.me.name, number, member.name, news))

    def _concerning(self, name: str) -> Doubt | None:
        """What a member has to know so that it can refute (Lifeguard's buddy system)."""
        known = self._desk.members.get(name)
        if known is None or known.state is State.ALIVE:
            return None
        return Doubt(name, known.incarnation, known.state, self._desk.me.name)

    def ask_others(self, number: int) -> None:
        """No answer yet: let some others try."""
        probe = self.probes.get(number)
        if probe is None:
            return
        desk = self._desk
        target = probe.member
        others = desk.members.pick(
            desk.rng,
            desk.timing.relays,
            lambda one: one.state is State.ALIVE and one.name not in (target.name, desk.me.name),
        )
        probe.asked = len(others)
        for other in others:
            news = desk.take_news()
            message = Relay(desk.me.name, number, target.name, target.address, news)
            desk.send(other.address, message)

    def verdict(self, number: int) -> None:
        """The time for an answer is over."""
        probe = self.probes.pop(number, None)
        if probe is None:
            return
        # Those who were asked and said nothing at all hint at our own network.
        silent = probe.asked - probe.nacks
        self._health.change(silent if probe.asked else 1)
        self._desk.counts["probes-failed"] += 1
        self._membership.suspect(probe.member)

    def acknowledged(self, number: int, who: str) -> None:
        probe = self.probes.get(number)
        if probe is not None:
            if who != probe.member.name:
                self._desk.counts["answers-refused"] += 1
                return
            del self.probes[number]
            timers = self._desk.timers
            if timers.at("direct", number) is not None:  # nobody else was asked
                self.round_trip_ms[who] = self._desk.now - probe.sent_ms
            timers.cancel("direct", number)
            timers.cancel("verdict", number)
            self._health.change(-1)
            return
        relayed = self.relayed.get(number)
        if relayed is not None and relayed.target == who:
            del self.relayed[number]
            self._desk.timers.cancel("relayed", number)
            self._desk.send(relayed.to, Ack(who, relayed.number))

    def not_reached(self, number: int) -> None:
        """One that was asked got no answer either."""
        probe = self.probes.get(number)
        if probe is not None and probe.nacks < probe.asked:
            probe.nacks += 1

    def void(self) -> None:
        """This node was away: whoever answered meanwhile was not heard."""
        self.probes.clear()
        self.relayed.clear()
        for kind in ("direct", "verdict", "relayed"):
            self._desk.timers.clear(kind)

    # For others.

    def pinged(self, sender: str, ping: Ping, first: Claim | None) -> None:
        """Answer; ``first``: what the other has to know of us, if it doubts us."""
        desk = self._desk
        if ping.target != desk.me.name:
            desk.counts["not-me"] += 1  # it had this address before us, perhaps
            return
        news = desk.take_news(first or self._concerning(ping.who))
        desk.send(sender, Ack(desk.me.name, ping.number, news))

    def try_for(self, sender: str, relay: Relay) -> None:
        desk = self._desk
        if len(self.relayed) >= RELAYED_MAX:
            desk.counts["relays-refused"] += 1
            return
        number = self._next_number()
        self.relayed[number] = Relayed(sender, relay.number, relay.target)
        # Before the one who asks gives up.
        desk.timers.set("relayed", number, desk.now + desk.timing.probe_ms)
        news = desk.take_news(self._concerning(relay.target))
        desk.send(relay.address, Ping(desk.me.name, number, relay.target, news))

    def tried(self, number: int) -> None:
        """The one that we tried for somebody did not answer."""
        relayed = self.relayed.pop(number, None)
        if relayed is not None:
            self._desk.send(relayed.to, Nack(self._desk.me.name, relayed.number))

    def gone(self, name: str) -> None:
        """A member is not there any more."""
        self.round_trip_ms.pop(name, None)
