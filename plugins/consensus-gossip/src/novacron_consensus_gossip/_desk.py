"""What the parts of one core share: who it is, the time, chance, the table, and its effects."""

from __future__ import annotations

import random
from collections import Counter

from novacron_consensus_gossip._effects import Changed, Effect, Note, Send, Stream
from novacron_consensus_gossip._members import NOBODY, Members, Start
from novacron_consensus_gossip._news import News, digits
from novacron_consensus_gossip._timers import Timers
from novacron_consensus_gossip._values import Me, Member, State, Timing
from novacron_consensus_gossip._wire import (
    NEWS_BYTES_MAX,
    Claim,
    Message,
    embed,
    encode,
    encode_claim,
)


class Desk:
    """See the module.

    Attributes:
        now: Milliseconds; set at each event.
        counts: What was refused, lost and done, by a constant word; for metrics.
        leaving: It has said goodbye.
        closed: It takes no part any more.
        suspected: Members whose suspicion began with this event.
        changed: Members that came or went with this event.
    """

    def __init__(self, me: Me, timing: Timing, rng: random.Random, start: Start = NOBODY) -> None:
        self.me = me
        self.timing = timing
        self.rng = rng
        self.now = 0
        self.members = Members(start)
        self.news = News()
        self.timers = Timers()
        self.counts: Counter[str] = Counter()
        self.leaving = False
        self.closed = False
        self.suspected: list[Member] = []
        self.changed: list[tuple[Member, State | None]] = []
        self._effects: list[Effect] = []

    # Effects.

    def do(self, effect: Effect) -> None:
        self._effects.append(effect)

    def effects(self) -> list[Effect]:
        """What is to be done since the last call."""
        done, self._effects = self._effects, []
        return done

    def note(self, kind: str, detail: str) -> None:
        self.counts[kind] += 1
        self._effects.append(Note(kind, detail))

    def send(self, to: str, message: Message) -> None:
        self._effects.append(Send(to, encode(message)))

    def stream(self, to: str, message: Message) -> None:
        self._effects.append(Stream(to, encode(message)))

    # News.

    def take_news(self, first: Claim | None = None) -> tuple[Claim, ...]:
        """What a message to somebody brings along; ``first`` is something that concerns them."""
        if first is None:
            return embed(self.news.take(NEWS_BYTES_MAX, self.limit)) if len(self.news) else ()
        head = encode_claim(first)
        return embed([head, *self.news.take(NEWS_BYTES_MAX - len(head), self.limit)])

    def tell(self, claim: Claim) -> None:
        """Let everybody know."""
        self.news.tell(claim)
        if self.timers.at("gossip") is None:
            self.timers.set("gossip", 0, self.now + int(self.rng.random() * self.timing.gossip_ms))

    @property
    def limit(self) -> int:
        """How often each piece of news is sent."""
        return self.timing.retransmit * digits(self.members.live)

    # Members.

    def hold(self, member: Member) -> None:
        """Hold this of a member from now on, and say so."""
        self.members.put(member)
        self.changed.append((member, member.state))
        self._effects.append(Changed(member, member.state))

    def is_other(self, member: Member) -> bool:
        """Whether it is another member that is not known to be gone."""
        return member.state <= State.SUSPECT and member.name != self.me.name
