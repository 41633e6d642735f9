"""One replica of the state: the core, without I/O.

It is fed messages, requests and the time, and returns effects, to be performed in their order: of
each call first one `Save`, then the rest. A replica that could not save is finished; a new one is
made of the records that are durable. Requests are answered by `Done` or `Refused` with the caller's
ticket, some later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from novacron_agreement import Effect

from novacron_consensus_state import _kinds
from novacron_consensus_state import _messages as msg
from novacron_consensus_state._birth import Birth, Stage
from novacron_consensus_state._effects import Answer, Changed, Done, Refused
from novacron_consensus_state._member import LogFactory, Member
from novacron_consensus_state._messages import WireError
from novacron_consensus_state._requests import Level, No, Requests
from novacron_consensus_state._settings import ReplicaSettings
from novacron_consensus_state._vector import Vector, at_least, join_into

if TYPE_CHECKING:
    import random

TIMEOUT_MS: Final = 5_000

__all__ = [
    "TIMEOUT_MS",
    "Answer",
    "Changed",
    "Done",
    "Level",
    "Refused",
    "Replica",
    "ReplicaSettings",
    "token_of",
]


class Replica:
    """See the module.

    Args:
        name: The member's name.
        members: All members and their regions.
        records: The durable records read back; none for a new replica.
        settings: See `ReplicaSettings`.
        rng: Seeded; its draws name this life of the member and sessions.
        cluster: The cluster's name; messages of others are refused.
        wall_offset_ms: What to add to monotonic milliseconds for milliseconds since 1970.
        log: Makes this node's member of the replicated log of its records, for strong requests.
            None: this node takes no part in it.

    Raises:
        WireError: The records are not this member's, of another cluster, or damaged.
    """

    def __init__(
        self,
        name: str,
        members: Mapping[str, str],
        records: Sequence[bytes],
        settings: ReplicaSettings,
        rng: random.Random,
        *,
        cluster: str = "",
        wall_offset_ms: int = 0,
        log: LogFactory | None = None,
    ) -> None:
        self.member = Member(name, members, records, settings, rng, cluster, wall_offset_ms, log)
        self.store = self.member.store
        self.requests = Requests(self.member)
        self._birth = Birth(self.member, fresh=not records)
        self.refused_messages = 0
        self._mark = self.member.out.mark
        self._mismatches: dict[str, bytes] = {}

    # What the driver calls.

    def start(self, now_ms: int) -> list[Effect]:
        """Begin; called once, before anything else."""
        self.member.spread.probe(now_ms)
        if self._birth.stage is Stage.IN:
            self.member.decided(now_ms, self.member.strong.start(now_ms))
        return self._finish(now_ms)

    def receive(self, now_ms: int, sender: str, message: bytes) -> list[Effect]:
        """A message of a member, whose name is authenticated. What is no sound message is counted
        and changes nothing."""
        if sender not in self.member.spread.peers:
            self.refused_messages += 1
            self.member.out.note("refused", f"{sender!r:.60} is no member")
            return self._finish(now_ms)
        try:
            decoded = msg.decode(self._mark, message)
            self.member.spread.heard(now_ms, sender)
            self._take(now_ms, sender, decoded)
        except WireError as error:
            self.refused_messages += 1
            self.member.out.note("refused", f"from {sender}: {error}"[:300])
        return self._finish(now_ms)

    def tick(self, now_ms: int) -> list[Effect]:
        """The time has come (or it has not: then nothing happens)."""
        self.member.spread.tick(now_ms)
        self.member.delivered(now_ms, self.member.sync.tick(now_ms), "")
        self.member.decided(now_ms, self.member.strong.tick(now_ms))
        self.requests.tick(now_ms)
        return self._finish(now_ms)

    @property
    def deadline_ms(self) -> int:
        """When `tick` wants to be called; read anew after each call."""
        member = self.member
        times = [
            member.spread.deadline_ms(),
            member.sync.deadline_ms(),
            member.strong.deadline_ms(),
            self.requests.deadline_ms(),
        ]
        return min(time for time in times if time is not None)

    def write(
        self,
        now_ms: int,
        ticket: int,
        name: str,
        kind: str,
        operation: str,
        values: Sequence[Any] = (),
        *,
        level: Level | str = Level.EVENTUAL,
        token: bytes = b"",
        expected: int | None = None,
        timeout_ms: int = TIMEOUT_MS,
    ) -> list[Effect]:
        """Change a key.

        Args:
            ticket: The caller's own number for this request, used once in this process's life.
            operation, values: See `_kinds`.
            token: Of the session, at level ``local``: the write comes after all it has seen.
            expected: At level ``strong``: the key's version that must hold.
            timeout_ms: How long to wait for others, if the level needs them.
        """
        wanted = Level(level)

        def begin(now_ms: int) -> None:
            if wanted is Level.STRONG:
                self.requests.write_strong(
                    now_ms, ticket, (name, kind), operation, values, expected, timeout_ms
                )
            else:
                self.requests.write(
                    now_ms, ticket, (name, kind), operation, values, wanted, timeout_ms
                )

        def checked(now_ms: int) -> None:
            if expected is not None and wanted is not Level.STRONG:
                raise No("operation", "a version can be expected at level strong alone")
            self.requests.after_token(now_ms, ticket, token, timeout_ms, begin)

        self.requests.begin(now_ms, ticket, checked)
        return self._finish(now_ms)

    def read(
        self,
        now_ms: int,
        ticket: int,
        name: str,
        kind: str,
        *,
        level: Level | str = Level.EVENTUAL,
        token: bytes = b"",
        max_staleness_ms: int | None = None,
        timeout_ms: int = TIMEOUT_MS,
    ) -> list[Effect]:
        """Read a key.

        Args:
            ticket: The caller's own number for this request, used once in this process's life.
            token: Of the session, at level ``local``: the read sees all that it has seen.
            max_staleness_ms: What was written anywhere longer ago than this must be seen, or the
                read is refused.
            timeout_ms: How long to wait for that, and for what the level needs.
        """
        key, wanted = (name, kind), Level(level)

        def begin(now_ms: int) -> None:
            if wanted is Level.QUORUM:
                self.requests.read_quorum(now_ms, ticket, key, timeout_ms)
            elif wanted is Level.STRONG:
                self.requests.ask_log(now_ms, ticket, key, b"", timeout_ms)
            elif max_staleness_ms is not None:
                self.requests.read_fresh(now_ms, ticket, key, wanted, max_staleness_ms, timeout_ms)
            else:
                self.requests.done(ticket, self.requests.answer(now_ms, key, wanted))

        def checked(now_ms: int) -> None:
            if kind not in _kinds.KINDS:
                raise No("type", f"there is no type {kind!r:.40}", f"one of {_kinds.KINDS}")
            self.requests.after_token(now_ms, ticket, token, timeout_ms, begin)

        self.requests.begin(now_ms, ticket, checked)
        return self._finish(now_ms)

    def cancel(self, ticket: int) -> None:
        """Nobody waits for this request any more. A write may have taken effect, or may yet."""
        self.requests.forget(ticket)

    def set_members(self, now_ms: int, members: Mapping[str, str]) -> list[Effect]:
        """Take another set of members and regions; this one must be among them."""
        self.member.set_members(members)
        return self._finish(now_ms)

    def staleness_ms(self, now_ms: int, key_range: int | None = None) -> dict[str, int | None]:
        """How old the picture of each other member is at the most, overall or in a key range
        (0 to 63); None if it was never whole."""
        others = self.member.topology.others
        return {name: self.member.freshness.age_ms(name, now_ms, key_range) for name in others}

    # Messages.

    def _take(self, now_ms: int, sender: str, message: msg.AnyMessage) -> None:
        if isinstance(message, msg.Probe | msg.Answer | msg.Ack | msg.Pull | msg.Offer):
            told = message.after if isinstance(message, msg.Pull) else message.vector
            if self.member.check_memory(told):
                self._birth.forgot()
            self._birth.heard(now_ms, sender, told)
        match message:
            case msg.Events():
                self._events(now_ms, sender, message)
            case msg.Ack():
                self.member.spread.learned(now_ms, sender, message.vector)
            case msg.Probe():
                self.member.spread.probed(now_ms, sender, message)
                self._compare_roots(now_ms, sender, message.vector, message.root)
            case msg.Answer():
                self.member.spread.answered(now_ms, sender, message)
                self._compare_roots(now_ms, sender, message.vector, message.root)
            case msg.Pull():
                self.member.spread.pulled(sender, message.after)
            case msg.Offer():
                if not at_least(self.store.vector, message.vector):
                    self.member.sync.begin(now_ms, sender, self.member.spread.peers[sender].rtt_ms)
            case msg.Compare():
                self.member.sync.asked(sender, message)
            case msg.Digests():
                self.member.delivered(
                    now_ms, self.member.sync.compared(now_ms, sender, message), sender
                )
            case msg.Want():
                self.member.sync.wanted(sender, message)
            case msg.States():
                self.member.delivered(
                    now_ms, self.member.sync.merged(now_ms, sender, message), sender
                )
            case msg.Fetch():
                self.requests.fetch(sender, message)
            case msg.Fetched():
                self.requests.fetched(sender, message)
            case msg.Forward():
                self.member.decided(now_ms, self.member.strong.serve(now_ms, sender, message))
            case msg.Forwarded():
                self.member.strong.forwarded(now_ms, message)
            case msg.Log():
                self.member.decided(
                    now_ms, self.member.strong.receive(now_ms, sender, message.payload)
                )

    def _events(self, now_ms: int, sender: str, message: msg.Events) -> None:
        had: Vector = {}
        for raw in message.events:
            event = msg.decode_event(raw)
            had[event.origin] = max(event.number, had.get(event.origin, 0))
            self.member.delivered(now_ms, self.store.deliver(event, raw), sender)
        # Nobody sends what is not durable at him, nor an event before its causes.
        self.member.spread.learned(now_ms, sender, had)
        if message.urgent:
            self.member.acknowledge.add(sender)
        if message.more:
            self.member.spread.pull_from(now_ms, sender)

    def _compare_roots(self, now_ms: int, sender: str, vector: Vector, root: bytes) -> None:
        """Two that have seen the same must hold the same. If they do not, one of them was damaged
        or is wrong; they compare trees, and somebody should know."""
        if vector != self.store.vector or root == self.store.tree.root():
            self._mismatches.pop(sender, None)
            return
        if self._mismatches.get(sender) != root:
            self._mismatches[sender] = root  # perhaps rows that came ahead of their events
            return
        del self._mismatches[sender]
        self.member.out.note("divergence", f"{sender} has seen the same and holds something else")
        self.member.sync.begin(now_ms, sender, self.member.spread.peers[sender].rtt_ms)

    def _finish(self, now_ms: int) -> list[Effect]:
        self.member.freshness.seen(self.store.vector)
        self._birth.look(now_ms)
        self.requests.look(now_ms)
        return self._collected()

    def _collected(self) -> list[Effect]:
        return self.member.collected()


def token_of(vectors: Sequence[bytes]) -> bytes:
    """One session token of several. Raises: WireError."""
    joined: Vector = {}
    for vector in vectors:
        join_into(joined, msg.decode_vector(vector))
    return msg.encode_vector(joined)
