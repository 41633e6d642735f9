"""Reads and writes at their levels: what each waits for, and what is said if it does not come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final

from attrs import define

from novacron_consensus_state import _kinds, _positions, _records
from novacron_consensus_state import _messages as msg
from novacron_consensus_state._effects import Answer, Changed, Done, Refused
from novacron_consensus_state._freshness import member_of
from novacron_consensus_state._member import Member, TooLarge
from novacron_consensus_state._messages import WireError
from novacron_consensus_state._strong import LOG_ORIGIN, command_of
from novacron_consensus_state._tree import Key, range_of
from novacron_consensus_state._values import NAME_CHARS_MAX
from novacron_consensus_state._vector import Dot, at_least, covers

PENDING_MAX: Final = 10_000
ASK_AGAIN_MS: Final = 600


class Level(StrEnum):
    """How much a read or write promises. See docs/guide/state.md."""

    EVENTUAL = "eventual"
    LOCAL = "local"
    QUORUM = "quorum"
    STRONG = "strong"


class No(Exception):
    """A request cannot be served."""

    def __init__(self, code: str, reason: str, hint: str = "", truth: str = "") -> None:
        super().__init__(reason)
        self.code, self.reason, self.hint = code, reason, hint
        self.truth = truth or "nothing was changed"


@define
class Pending:
    """A request that waits.

    Attributes:
        ready: Called with the time after each event; the answer, or None if it has to wait on.
        late: What to say when the deadline is reached.
        again: Called with the time every `ASK_AGAIN_MS`: messages may be lost.
    """

    deadline_ms: int
    ready: Callable[[int], Answer | None]
    late: Callable[[int], No]
    again: Callable[[int], None] | None = None
    again_ms: int = 0


class Requests:
    """The requests of one member. A ticket is the caller's own number for a request."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.store = member.store
        self._pending: dict[int, Pending] = {}
        self._fetched: dict[int, set[str]] = {}

    def deadline_ms(self) -> int | None:
        times = [pending.deadline_ms for pending in self._pending.values()]
        times += [p.again_ms for p in self._pending.values() if p.again is not None]
        return min(times, default=None)

    def tick(self, now_ms: int) -> None:
        for pending in list(self._pending.values()):
            if pending.again is not None and now_ms >= pending.again_ms:
                pending.again_ms = now_ms + ASK_AGAIN_MS
                pending.again(now_ms)

    def look(self, now_ms: int) -> None:
        """Something may have happened that a request waits for."""
        looked_at: set[int] = set()
        # A request that begins here may put another wait in its place, which is looked at, too.
        while new := [p for p in self._pending.items() if id(p[1]) not in looked_at]:
            for ticket, pending in new:
                looked_at.add(id(pending))
                if self._pending.get(ticket) is pending:
                    self._look_at(now_ms, ticket, pending)

    def _look_at(self, now_ms: int, ticket: int, pending: Pending) -> None:
        try:
            answer = pending.ready(now_ms)
            if answer is not None:
                self.done(ticket, answer)
                self.forget(ticket)
            elif now_ms >= pending.deadline_ms and self._pending.get(ticket) is pending:
                raise pending.late(now_ms)
        except No as no:
            self.forget(ticket)
            self._refuse(ticket, no)

    def begin(self, now_ms: int, ticket: int, work: Callable[[int], None]) -> None:
        try:
            if len(self._pending) >= PENDING_MAX:
                raise No("busy", f"{PENDING_MAX} requests wait already", "try again later")
            work(now_ms)
        except No as no:
            self._refuse(ticket, no)

    def _refuse(self, ticket: int, no: No) -> None:
        self.member.out.effects.append(Refused(ticket, no.code, no.reason, no.hint, no.truth))

    def done(self, ticket: int, answer: Answer) -> None:
        self.member.out.effects.append(Done(ticket, answer))

    def forget(self, ticket: int) -> None:
        self._pending.pop(ticket, None)
        self._fetched.pop(ticket, None)
        self.member.strong.forget(ticket)

    def answer(self, now_ms: int, key: Key | None, level: Level) -> Answer:
        """An answer from what is here; without a key, that of a write."""
        token = msg.encode_vector(self.store.vector)
        if key is None:
            return Answer(token=token, level=level)
        return Answer(
            value=self.store.value(key),
            token=token,
            level=level,
            age_ms=self.member.freshness.worst(now_ms, range_of(key))[1],
            version=self.member.version(key),
        )

    def after_token(
        self,
        now_ms: int,
        ticket: int,
        token: bytes,
        timeout_ms: int,
        begin: Callable[[int], None],
    ) -> None:
        """Go on when all that the session has seen is here."""
        try:
            need = msg.decode_vector(token) if token else {}
        except WireError as error:
            raise No("session", str(error), "begin the session anew, without a token") from error
        if at_least(self.store.vector, need):
            begin(now_ms)
            return

        def ready(now_ms: int) -> Answer | None:
            if at_least(self.store.vector, need):
                del self._pending[ticket]
                begin(now_ms)
            return None

        def late(now_ms: int) -> No:
            origins = [o for o, n in need.items() if n > self.store.vector.get(o, 0)]
            who = ", ".join(sorted({member_of(origin) for origin in origins}))
            return No(
                "session",
                f"this session has seen writes of {who} that have not come here within "
                f"{timeout_ms} ms",
                "ask the node that the session was at before, or begin it anew without a token",
            )

        for origin, number in need.items():
            if number > self.store.vector.get(origin, 0):
                self.member.spread.missing(now_ms, origin, number)
        self._pending[ticket] = Pending(now_ms + timeout_ms, ready, late)

    def _change(
        self, now_ms: int, key: Key, operation: str, values: Sequence[Any]
    ) -> tuple[_kinds.Change, _kinds.Writer]:
        name, kind = key
        if not 0 < len(name) <= NAME_CHARS_MAX:
            raise No("operation", f"a key has 1 to {NAME_CHARS_MAX} characters")
        others = [k for k in self.store.kinds_of(name) if k != kind]
        if others and operation != "delete":
            raise No(
                "type",
                f"{name!r:.60} is a {others[0]}, not a {kind!r:.40}",
                f"write it as a {others[0]}, delete it first, or choose another name",
            )
        stamp = self.member.clock.stamp(now_ms)
        writer = _kinds.Writer(_positions.tag_of(self.member.origin), stamp)
        try:
            change = _kinds.change(kind, self.store.rows(key), operation, values, writer)
        except _kinds.WrongOperation as error:
            hint = "`novacron state levels` lists types and operations"
            raise No("operation", str(error), hint) from error
        return change, writer

    def write(
        self,
        now_ms: int,
        ticket: int,
        key: Key,
        operation: str,
        values: Sequence[Any],
        level: Level,
        timeout_ms: int,
    ) -> None:
        change, writer = self._change(now_ms, key, operation, values)
        if change.empty:
            # It is so already; at a quorum, as soon as a quorum has what makes it so.
            need = [dot for row in self.store.rows(key).values() for dot in row]
        else:
            everybody = level is Level.QUORUM
            try:
                need = [self.member.make(now_ms, key, change, writer.stamp, everybody=everybody)]
            except TooLarge as error:
                raise No("too-large", str(error), "make it in several writes") from error
        if level is Level.QUORUM and need:
            self._await_quorum(now_ms, ticket, need, timeout_ms)
        else:
            self.done(ticket, self.answer(now_ms, None, level))

    def _await_quorum(self, now_ms: int, ticket: int, need: Sequence[Dot], timeout_ms: int) -> None:
        def have() -> list[str]:
            peers = self.member.spread.peers.items()
            return [name for name, peer in peers if all(covers(peer.known, d) for d in need)]

        def ready(now_ms: int) -> Answer | None:
            if len(have()) + 1 < self.member.topology.majority:
                return None
            return self.answer(now_ms, None, Level.QUORUM)

        def late(now_ms: int) -> No:
            return No(
                "timeout",
                f"{len(have()) + 1} of {len(self.member.topology.members)} members have it after "
                f"{timeout_ms} ms, and a majority is {self.member.topology.majority}",
                "read it at quorum to learn what became of it; look for members that are down",
                truth="it is written here and spreads on; whether a majority has it is not known",
            )

        def again(now_ms: int) -> None:
            for dot in need:
                raw = self.store.history.get(dot)
                lacking = [
                    n for n, p in self.member.spread.peers.items() if not covers(p.known, dot)
                ]
                for to in lacking if raw else ():
                    self.member.hurry.add(to)
                    self.member.out.send_event(to, raw or b"")

        self._pending[ticket] = Pending(
            now_ms + timeout_ms, ready, late, again, now_ms + ASK_AGAIN_MS
        )

    def read_quorum(self, now_ms: int, ticket: int, key: Key, timeout_ms: int) -> None:
        from_whom = self._fetched[ticket] = set()

        def ready(now_ms: int) -> Answer | None:
            if len(from_whom) + 1 < self.member.topology.majority:
                return None
            return self.answer(now_ms, key, Level.QUORUM)

        def late(now_ms: int) -> No:
            return No(
                "timeout",
                f"{len(from_whom) + 1} of {len(self.member.topology.members)} members answered "
                f"within {timeout_ms} ms, and a majority is {self.member.topology.majority}",
                "look for members that are down, or read at a lower level",
            )

        def again(now_ms: int) -> None:
            for to in self.member.topology.others:
                if to not in from_whom:
                    self.member.out.send(to, msg.Fetch(ticket, *key))

        again(now_ms)
        self._pending[ticket] = Pending(
            now_ms + timeout_ms, ready, late, again, now_ms + ASK_AGAIN_MS
        )

    def fetch(self, sender: str, message: msg.Fetch) -> None:
        states = list(self.store.pages((message.name, message.kind)))
        answer = msg.Fetched(message.ticket, dict(self.store.vector), states, True)
        if len(states) > 1:
            answer = msg.Fetched(message.ticket, {}, [], False)
        self.member.out.send(sender, answer)

    def fetched(self, sender: str, message: msg.Fetched) -> None:
        from_whom = self._fetched.get(message.ticket)
        if from_whom is None:
            return
        if not message.whole:
            ticket = message.ticket
            self.forget(ticket)
            hint = "read it at strong or local, or keep it in several keys"
            self._refuse(ticket, No("too-large", "the key is too large for a quorum read", hint))
            return
        for state in message.states:
            msg.check_state(state)
        if message.states:
            self.member.out.save(_records.merged(message.vector, message.states))
        for state in message.states:
            if self.store.merge(state, message.vector):
                self.member.out.effects.append(Changed(state.name, state.kind))
        from_whom.add(sender)

    def read_fresh(
        self,
        now_ms: int,
        ticket: int,
        key: Key,
        level: Level,
        most_ms: int,
        timeout_ms: int,
    ) -> None:
        asked_ms = now_ms

        def ready(now_ms: int) -> Answer | None:
            _, age_ms = self.member.freshness.worst(now_ms, range_of(key))
            if age_ms is None or age_ms > most_ms:
                return None
            return self.answer(now_ms, key, level)

        def late(now_ms: int) -> No:
            who, age_ms = self.member.freshness.worst(now_ms, range_of(key))
            region = self.member.topology.members[who]
            age = "was never whole" if age_ms is None else f"may be {age_ms} ms old"
            rtt = int(self.member.spread.peers[who].rtt_ms)
            return No(
                "stale",
                f"the picture of {who} (region {region}) {age}; at most {most_ms} ms was demanded",
                f"a round trip to {who} takes about {rtt} ms: ask a node of region {region}, "
                f"demand a wider bound, or look whether {who} is down (waited "
                f"{now_ms - asked_ms} ms)",
            )

        answer = ready(now_ms)
        if answer is not None:
            self.done(ticket, answer)
            return
        if timeout_ms <= 0:
            raise late(now_ms)
        self.member.spread.probe(now_ms)
        self._pending[ticket] = Pending(now_ms + timeout_ms, ready, late)

    # Strong requests.

    def write_strong(
        self,
        now_ms: int,
        ticket: int,
        key: Key,
        operation: str,
        values: Sequence[Any],
        expected: int | None,
        timeout_ms: int,
    ) -> None:
        change, writer = self._change(now_ms, key, operation, values)
        # Also what changes nothing here goes through the log, which may know better.
        client = f"{self.member.origin}:{self.member.rng.getrandbits(64):016x}"
        command = command_of(client, key, operation, values, writer, change, expected)
        if len(command) > msg.EVENT_BYTES_MAX - 4096:
            raise No("too-large", f"the change takes {len(command)} bytes", "write it in parts")
        self.ask_log(now_ms, ticket, key, command, timeout_ms)

    def ask_log(self, now_ms: int, ticket: int, key: Key, command: bytes, timeout_ms: int) -> None:
        if self.member.strong.core is None and not self.member.topology.others:
            raise No(
                "no-log",
                "no replicated log is configured for strong requests",
                'set [service.state] log = "raft", or use the level quorum',
            )

        def ready(now_ms: int) -> Answer | None:
            outcome = self.member.strong.outcomes.get(ticket)
            if outcome is None:
                return None
            if outcome.number < 0:
                code = "version" if outcome.reason.startswith("version") else "log"
                hint = "read it at strong, and decide anew" if code == "version" else ""
                raise No(code, outcome.reason, hint)
            if self.store.vector.get(LOG_ORIGIN, 0) < outcome.number:
                self.member.spread.missing(now_ms, LOG_ORIGIN, outcome.number)
                return None
            if command:
                answer = self.answer(now_ms, None, Level.STRONG)
                return Answer(token=answer.token, level=Level.STRONG, version=outcome.number)
            return self.answer(now_ms, key, Level.STRONG)

        def late(now_ms: int) -> No:
            leader = self.member.strong.leader
            return No(
                "timeout",
                f"the replicated log has not answered within {timeout_ms} ms "
                f"(its leader, as far as known: {leader or 'nobody'})",
                "look whether a majority of the log's members is up",
                truth="whether the write took effect is not known: read the key at strong"
                if command
                else "",
            )

        self._pending[ticket] = Pending(now_ms + timeout_ms, ready, late)
        self.member.decided(now_ms, self.member.strong.ask(now_ms, ticket, command))
