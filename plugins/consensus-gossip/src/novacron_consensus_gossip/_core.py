"""One member of the cluster, without I/O: events and the time in, effects out.

The driver hands in datagrams (`GossipCore.receive`), messages that came over a stream
(`GossipCore.receive_stream`) and the time (`GossipCore.tick`, when ``deadline_ms`` is reached), and
performs the effects in their order. Nothing here trusts what arrives: what cannot be decoded is
counted and dropped.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping

from novacron_consensus_gossip._desk import Desk
from novacron_consensus_gossip._detector import Detector
from novacron_consensus_gossip._effects import Changed, Effect
from novacron_consensus_gossip._health import Health
from novacron_consensus_gossip._members import NOBODY, Members, Start
from novacron_consensus_gossip._membership import Membership
from novacron_consensus_gossip._sync import Sync
from novacron_consensus_gossip._tree import Tree
from novacron_consensus_gossip._values import Me, Member, State, Timing
from novacron_consensus_gossip._wire import (
    BODY_BYTES_MAX,
    LIFE_MAX,
    TAGS_BYTES_MAX,
    TAGS_MAX,
    TOPIC_CHARS_MAX,
    Ack,
    Alive,
    Announce,
    Claim,
    Compare,
    Doubt,
    Gossip,
    Graft,
    Nack,
    Payload,
    Ping,
    Prune,
    Relay,
    Saved,
    Share,
    WireError,
    decode_bulk,
    decode_datagram,
    decode_saved,
    tags_bytes,
)


class GossipCore:
    """One member.

    Args:
        me: Who it is.
        timing: The protocol's settings.
        rng: Its only source of chance.
        records: What the last `Save` of an earlier life held; empty in the first one.
        start: Members to begin with, for simulations of large clusters.

    Attributes:
        members: Everybody it knows, itself included.
        counts: What was refused and done, by a constant word.
    """

    def __init__(
        self,
        me: Me,
        timing: Timing,
        rng: random.Random,
        records: Iterable[bytes] = (),
        start: Start = NOBODY,
    ) -> None:
        check_tags(me.tags)
        self._desk = desk = Desk(me, timing, rng, start)
        self._health = Health(timing.health_max)
        saved = _read(records, me.name, desk.counts)
        life = rng.randrange(1, LIFE_MAX)
        own = desk.members.get(me.name)
        incarnation = own.incarnation if own else (saved.incarnation + 1 if saved else 0)
        self._membership = Membership(
            desk, self._health, incarnation=incarnation, life=own.life if own else life
        )
        self._detector = Detector(desk, self._health, self._membership)
        self._tree = Tree(desk, life)
        seeds = (*me.seeds, *(saved.seeds if saved else ()))
        self._sync = Sync(desk, self._membership, self._tree, seeds)

    # What is asked of it.

    @property
    def members(self) -> Members:
        return self._desk.members

    @property
    def counts(self) -> Counter[str]:
        return self._desk.counts

    @property
    def health(self) -> int:
        """Local health: 0 is good, higher means that this node is slow or badly connected."""
        return self._health.score

    @property
    def incarnation(self) -> int:
        return self._membership.incarnation

    @property
    def closed(self) -> bool:
        """It takes no part any more: it has left, or another node uses its name."""
        return self._desk.closed

    @property
    def round_trips_ms(self) -> Mapping[str, int]:
        """The last direct round trip to each member that answered."""
        return self._detector.round_trip_ms

    @property
    def deadline_ms(self) -> int | None:
        return None if self._desk.closed else self._desk.timers.next()

    # Events.

    def start(self, now_ms: int) -> list[Effect]:
        """Begin; called once, before anything else."""
        self._desk.now = now_ms
        if self._desk.members.get(self._desk.me.name) is None:
            self._membership.announce()
        self._detector.start()
        self._sync.start()
        return self._done()

    def receive(self, now_ms: int, sender: str, message: bytes) -> list[Effect]:
        """A datagram; ``sender`` is the address to answer to."""
        desk = self._desk
        if desk.closed:
            return []
        try:
            decoded = decode_datagram(message)
        except WireError:
            desk.counts["datagrams-refused"] += 1
            return []
        self._awake(now_ms)
        kind = type(decoded)
        doubted: Alive | None = None
        # Doubts about us come with the news; they are heard before anything is answered.
        if kind not in (Announce, Graft, Prune):
            for claim in decoded.news:  # type: ignore[union-attr]
                self._membership.hear(claim)
                if type(claim) is Doubt and claim.name == desk.me.name and not desk.leaving:
                    doubted = self._membership.me()  # it hears at once what outranks its doubt
        detector = self._detector
        if isinstance(decoded, Ping):
            if desk.members.get(decoded.who) is None:
                self._sync.stranger(sender)
            detector.pinged(sender, decoded, doubted)
        elif doubted is not None:
            desk.send(sender, Gossip(desk.me.name, (doubted,)))
        if isinstance(decoded, Ack):
            detector.acknowledged(decoded.number, decoded.who)
        elif isinstance(decoded, Relay):
            detector.try_for(sender, decoded)
        elif isinstance(decoded, Nack):
            detector.not_reached(decoded.number)
        elif isinstance(decoded, Announce):
            self._tree.announced(decoded.who, decoded.ids)
        elif isinstance(decoded, Graft):
            self._tree.grafted(decoded.who, decoded.id)
        elif isinstance(decoded, Prune):
            self._tree.pruned(decoded.who)
        return self._done()

    def receive_stream(self, now_ms: int, message: bytes) -> list[Effect]:
        """A message that came over a stream."""
        desk = self._desk
        if desk.closed:
            return []
        try:
            decoded = decode_bulk(message)
        except WireError:
            desk.counts["streams-refused"] += 1
            return []
        self._awake(now_ms)
        if isinstance(decoded, Compare):
            self._sync.compared(decoded)
        elif isinstance(decoded, Share):
            self._sync.shared(decoded)
        elif isinstance(decoded, Payload):
            self._tree.arrived(decoded)
        return self._done()

    def tick(self, now_ms: int) -> list[Effect]:
        """The time has come (or it has not: then nothing happens)."""
        desk = self._desk
        if desk.closed:
            return []
        self._awake(now_ms)
        while (due := desk.timers.take(now_ms)) is not None:
            self._happen(*due)
            if desk.closed:
                break
        return self._done()

    def leave(self, now_ms: int) -> list[Effect]:
        """Say goodbye. `closed` becomes true within two periods, when enough have heard it."""
        desk = self._desk
        desk.now = now_ms
        if desk.leaving or desk.closed:
            return []
        claim = self._membership.leave()
        for kind in ("probe", "sync"):
            desk.timers.clear(kind)
        wait = 2 * desk.timing.period_ms if desk.members.live else 0  # nobody is there to be told
        desk.timers.set("left", 0, now_ms + wait)
        self._spread(claim)
        return self._done()

    def broadcast(self, now_ms: int, topic: str, body: bytes) -> list[Effect]:
        """Send something to all members that there are; it is not delivered here.

        Raises: ValueError if the topic or the body is too long; nothing is sent.
        """
        if not 0 < len(topic) <= TOPIC_CHARS_MAX:
            raise ValueError(f"a topic has 1 to {TOPIC_CHARS_MAX} characters, not {len(topic)}")
        if len(body) > BODY_BYTES_MAX:
            raise ValueError(
                f"a broadcast of {len(body)} bytes; {BODY_BYTES_MAX} is the most: send a reference"
            )
        self._desk.now = now_ms
        if not self._desk.closed:
            self._tree.broadcast(topic, body)
        return self._done()

    def set_tags(self, now_ms: int, tags: Mapping[str, str]) -> list[Effect]:
        """Tell something else about itself. Raises ValueError if it is too much."""
        check_tags(tags)
        self._desk.now = now_ms
        if not self._desk.leaving and not self._desk.closed:
            self._membership.tags = dict(tags)
            self._membership.raise_incarnation(self.incarnation)
        return self._done()

    # Inside.

    def _happen(self, kind: str, which: int | str) -> None:
        if kind == "probe":
            self._detector.next_probe()
        elif kind == "sync":
            self._sync.next()
        elif kind == "gossip":
            self._gossip()
        elif kind == "left":
            self._desk.closed = True
            self._desk.note("left", "the others have been told")
        elif isinstance(which, int):
            if kind == "direct":
                self._detector.ask_others(which)
            elif kind == "verdict":
                self._detector.verdict(which)
            elif kind == "relayed":
                self._detector.tried(which)
        elif kind == "suspicion":
            self._membership.time_is_up(which)
        elif kind == "look":
            self._detector.look(which)
        elif kind == "forget":
            self._membership.forget(which)
        elif kind == "missing":
            self._tree.still_missing(bytes.fromhex(which))

    def _awake(self, now_ms: int) -> None:
        """Notice that this process did not run for a while: it must not blame the others."""
        desk = self._desk
        desk.now = max(desk.now, now_ms)
        due = desk.timers.next()
        late = 0 if due is None else now_ms - due
        if late <= desk.timing.period_ms:
            return
        self._detector.void()
        self._membership.put_off(late)
        self._health.change(1)
        desk.note("stalled", f"this process did not run for {late / 1000:.1f} s")
        if late > desk.timing.forget_ms // 2:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """What is held here is so old that others have forgotten it: ask, and tell nothing."""
        desk = self._desk
        others = [one for one in desk.members if one.name != desk.me.name]
        living = [one.address for one in others if one.state <= State.SUSPECT]
        for one in others:
            desk.members.remove(one.name)
            desk.news.drop(one.name)
            desk.changed.append((one, None))
            desk.do(Changed(one, None))
        self._membership.suspicions.clear()
        for kind in ("suspicion", "look", "forget"):
            desk.timers.clear(kind)
        some = desk.rng.sample(living, min(32, len(living)))
        self._sync.seeds = tuple(dict.fromkeys((*self._sync.seeds, *some)))
        desk.timers.set("sync", 0, desk.now)

    def _gossip(self) -> None:
        """Send news on by itself, while there is any."""
        desk = self._desk
        for member in desk.members.pick(desk.rng, desk.timing.fanout, self._hears_gossip):
            news = desk.take_news()
            if not news:
                break
            desk.send(member.address, Gossip(desk.me.name, news))
        if len(desk.news):
            desk.timers.set("gossip", 0, desk.now + desk.timing.gossip_ms)

    def _hears_gossip(self, member: Member) -> bool:
        desk = self._desk
        if desk.is_other(member):
            return True
        fresh = desk.now - member.since_ms < desk.timing.gossip_dead_ms
        return member.state is State.DEAD and fresh and member.name != desk.me.name

    def _spread(self, claim: Claim) -> None:
        """Tell some others at once."""
        desk = self._desk
        for member in desk.members.pick(desk.rng, desk.timing.fanout, desk.is_other):
            desk.send(member.address, Gossip(desk.me.name, (claim,)))

    def _done(self) -> list[Effect]:
        desk = self._desk
        while desk.suspected or desk.changed:
            suspected, desk.suspected = desk.suspected, []
            changed, desk.changed = desk.changed, []
            for member in suspected:
                self._detector.corroborate(member)
            for member, state in changed:
                self._tree.member_changed(member, state)
                if state is None or state >= State.DEAD:
                    self._detector.gone(member.name)
        return desk.effects()


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises ValueError if there are too many, or they take too many bytes."""
    size = tags_bytes(dict(tags))
    if len(tags) > TAGS_MAX or size > TAGS_BYTES_MAX:
        raise ValueError(
            f"{len(tags)} tags of {size} bytes; {TAGS_MAX} tags of {TAGS_BYTES_MAX} bytes is the "
            "most: every member keeps them"
        )


def _read(records: Iterable[bytes], name: str, counts: Counter[str]) -> Saved | None:
    """What an earlier life of this very node left."""
    found = None
    for record in records:
        try:
            saved = decode_saved(record)
        except WireError:
            counts["records-refused"] += 1  # it costs one refutation, no more
            continue
        if saved.name == name:
            found = saved
    return found


__all__ = ["Alive", "GossipCore", "check_tags"]
