"""Comparing tables: what gossip has missed is found and repaired between two members at a time
(anti-entropy, Demers et al. 1987), over something like a stream.

One sends a digest per bucket of its table; the other answers with all that it holds in the buckets
that differ, and gets the first one's in return. Two tables that agree cost one small message. This
is also how a node joins, and how the halves of a partition find each other again: now and then the
other side is somebody who is believed dead, or a seed.
"""

from __future__ import annotations

from novacron_consensus_gossip._desk import Desk
from novacron_consensus_gossip._membership import Membership
from novacron_consensus_gossip._tree import Tree
from novacron_consensus_gossip._values import State
from novacron_consensus_gossip._wire import (
    SHARE_BYTES_MAX,
    Claim,
    Compare,
    Share,
    encode_claim,
)

SEEDS_AT_ONCE = 3
# How often, of all times, somebody is tried who may have been lost to us.
LOST_SHARE = 0.25


class Sync:
    """See the module."""

    def __init__(
        self, desk: Desk, membership: Membership, tree: Tree, seeds: tuple[str, ...]
    ) -> None:
        self._desk = desk
        self._membership = membership
        self._tree = tree
        self.seeds = tuple(seed for seed in dict.fromkeys(seeds) if seed != desk.me.address)
        # Nobody who does not know us can make us send more than one table per period.
        self._asked_ms: int | None = None

    def start(self) -> None:
        """Join by the seeds, and again until somebody is there."""
        desk = self._desk
        if desk.members.live > 1:  # it begins with a table
            wait = int(desk.rng.random() * desk.timing.sync_ms)
            desk.timers.set("sync", 0, desk.now + wait)
        else:
            self.next()

    def next(self) -> None:
        """Compare with the next one."""
        desk = self._desk
        timing = desk.timing
        alone = desk.members.live < 2
        wait = timing.period_ms if alone else timing.sync_ms
        # Not all at the same moment.
        desk.timers.set("sync", 0, desk.now + int(wait * (0.5 + desk.rng.random())))
        if alone:
            for seed in desk.rng.sample(self.seeds, min(SEEDS_AT_ONCE, len(self.seeds))):
                self.ask(seed)
        if desk.rng.random() < LOST_SHARE or alone:
            lost = self._lost()
            if lost is not None:
                self.ask(lost)
                return
        for other in desk.members.pick(desk.rng, 1, desk.is_other):
            self.ask(other.address)

    def _lost(self) -> str | None:
        """The address of a member that is believed dead, or of a seed that is nobody's."""
        desk = self._desk
        addresses = {one.address for one in desk.members if desk.is_other(one)}
        unknown = [seed for seed in self.seeds if seed not in addresses]
        dead = [
            one.address
            for one in desk.members
            if one.state is State.DEAD and one.address not in addresses
        ]
        some = unknown + dead
        return desk.rng.choice(some) if some else None

    def ask(self, address: str) -> None:
        """Compare with whoever is there."""
        desk = self._desk
        digests = desk.members.digests()
        message = Compare(desk.me.name, desk.me.address, digests, self._tree.recent())
        desk.stream(address, message)

    def stranger(self, address: str) -> None:
        """Somebody speaks to us whom we do not know."""
        desk = self._desk
        if self._asked_ms is None or desk.now - self._asked_ms >= desk.timing.period_ms:
            self._asked_ms = desk.now
            self.ask(address)

    def compared(self, message: Compare) -> None:
        """Answer with what differs."""
        differing = self._desk.members.differing(message.digests)
        self._tree.announced(message.who, message.ids)
        ids = self._tree.recent()
        if differing:
            self._share(message.address, differing, reply=True)
        if set(ids) - set(message.ids):
            desk = self._desk
            desk.stream(message.address, Share(desk.me.name, desk.me.address, (), (), False, ids))

    def shared(self, message: Share) -> None:
        """Take over what is newer there, and give what is newer here."""
        if message.reply and message.buckets:
            self._share(message.address, list(message.buckets), reply=False)
        for claim in message.claims:
            self._membership.hear(claim, compared=True)
        self._tree.announced(message.who, message.ids)

    def _share(self, address: str, buckets: list[int], *, reply: bool) -> None:
        """Tell all that is held in these buckets, in as many messages as it takes."""
        desk = self._desk
        by_bucket = desk.members.in_buckets(buckets)
        told: list[Claim] = []
        names: list[int] = []
        size = 0
        for number, members in by_bucket.items():
            claims = self._membership.claims(members)
            length = sum(len(encode_claim(claim)) for claim in claims)
            if told and size + length > SHARE_BYTES_MAX:
                self._send(address, names, told, reply)
                told, names, size = [], [], 0
            told += claims
            names.append(number)
            size += length
        self._send(address, names, told, reply)

    def _send(self, address: str, buckets: list[int], claims: list[Claim], reply: bool) -> None:
        desk = self._desk
        message = Share(desk.me.name, desk.me.address, tuple(buckets), tuple(claims), reply)
        desk.stream(address, message)
