"""The core: `novacron_agreement.LogCore` over one engine after another. See `_generations`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import msgspec
from attrs import frozen
from novacron_agreement import COMMAND_BYTES_MAX, Effect, LogCore, Reason, Rejected, Save, Send
from novacron_agreement.engines import LogEngine, Signer, Verifier
from novacron_agreement.numbers import WINDOW

from novacron_consensus_acp._generations import AcpError, Generations, Pending
from novacron_consensus_acp._policy import Choice, Declared, Hysteresis, Measured, choose
from novacron_consensus_acp._settings import AcpSettings
from novacron_consensus_acp._wire import (
    ENTRY_EXTRA,
    REASON_CHARS_MAX,
    AnyEntry,
    Command,
    Forward,
    Inner,
    Marker,
    Ping,
    Pong,
    WireError,
    Wish,
    decode_entry,
    decode_message,
    encode,
    statement,
)

__all__ = ["AcpCore", "AcpError", "AcpSettings", "Explanation"]

# With so many old generations kept for members that are behind, no other is wished for.
OLD_MAX = 3
_COMMAND_MAX = COMMAND_BYTES_MAX - ENTRY_EXTRA


@frozen(kw_only=True)
class Explanation:
    """What a log runs on, and why.

    Attributes:
        present: The choice that holds.
        right: The choice that this member would make now.
        generation: How often the log has changed.
        measured: What this member measured.
        wishes: Who wishes what for the next generation.
        waits_for: Members that may still need the generations before this one.
        pauses_ms: How long the log stood still in each switch that this process saw.
    """

    present: Choice
    right: Choice
    generation: int
    measured: Measured
    wishes: Mapping[str, str]
    waits_for: Sequence[str]
    pauses_ms: Sequence[int]


class AcpCore(Generations):
    """One member of an adaptive log.

    Args:
        members: All members and their addresses; on all members the same.
        engines: What can be chosen from, see `novacron_consensus_acp.engines`.
        keys: The members' public keys.
        declared: What people say of trust.
    """

    def __init__(
        self,
        name: str,
        members: Mapping[str, str],
        records: Sequence[bytes],
        settings: AcpSettings,
        rng: random.Random,
        *,
        engines: Mapping[str, LogEngine],
        keys: Mapping[str, bytes],
        signer: Signer,
        verifier: Verifier,
        declared: Declared | None = None,
    ) -> None:
        super().__init__(
            name, members, records, settings, rng,
            engines=engines, keys=keys, signer=signer, verifier=verifier,
        )  # fmt: skip
        self.declared = declared or Declared()
        self._hysteresis = Hysteresis(settings.hold_ms, settings.dwell_ms)
        self._seen_generation = self.ledger.generation
        self._ping_at = 0
        self._retry_at = 0

    # What drivers call.

    def start(self, now_ms: int) -> list[Effect]:
        """Begin: restore and apply what is known to be committed, in all generations."""
        self._now = now_ms
        self._new_epoch(self.epoch + 1)
        if not self._kept:
            self._out.append(Save((encode(self._opened[self.ledger.generation]),)))
        for generation, core in list(self._olds.items()):
            self._run(generation, core.start(now_ms))
        self._run(self.ledger.generation, self.inner.start(now_ms))
        self._starting = False
        if self.ledger.epoch_of(self.name) >= self.epoch:
            self._new_epoch(self.ledger.epoch_of(self.name) + 1)
        self._seen_generation = self.ledger.generation
        self._ping_at = now_ms + self.rng.randrange(1 + self.settings.ping_ms // 4)
        self._retry_at = now_ms + self.settings.retry_ms
        return self._take()

    def receive(self, now_ms: int, sender: str, message: bytes) -> list[Effect]:
        """A member's message; what is unsound is counted in ``refused`` and dropped."""
        self._now = now_ms
        if sender not in self.members:
            self.refused["it is not a member"] += 1
            return []
        try:
            said = decode_message(message)
        except WireError:
            self.refused["no message of this protocol"] += 1
            return []
        match said:
            case Inner(generation, data):
                core = self._core_of(generation)
                if core is not None:
                    self._run(generation, core.receive(now_ms, sender, data))
            case Forward(generation, data) if generation == self.ledger.generation:
                self._forward(data)
            case Ping(generation, settled, number):
                self.measured.heard(sender, generation, settled)
                pong = Pong(self.ledger.generation, self._settled, number)
                self._out.append(Send(sender, encode(pong)))
            case Pong(generation, settled, number):
                self.measured.heard(sender, generation, settled)
                self.measured.answered(sender, number, now_ms)
            case _:
                pass
        self._after()
        return self._take()

    def propose(self, now_ms: int, ticket: int, command: bytes) -> list[Effect]:
        """Ask for a command to be committed: `Commit` or `Rejected` with the ticket follows."""
        self._now = now_ms
        if len(command) > _COMMAND_MAX:
            self._out.append(Rejected(ticket, Reason.TOO_LARGE, self.leader))
        elif not self._has_room():
            self._out.append(Rejected(ticket, Reason.BUSY, self.leader))
        else:
            number = self._number + 1
            entry = Command(self.name, self.epoch, number, b"", command)
            self._begin(entry, ticket=ticket)
        self._after()
        return self._take()

    def read(self, now_ms: int, ticket: int) -> list[Effect]:
        """Ask when a linearizable read may be served: by the engine if it can here, else by a
        marker through the log."""
        self._now = now_ms
        self._inner_ticket += 1
        self._reads[self._inner_ticket] = ticket
        effects = self.inner.read(now_ms, self._inner_ticket)
        self._run(self.ledger.generation, effects)
        self._after()
        return self._take()

    def declare(self, now_ms: int, declared: Declared) -> list[Effect]:
        """People say something new of trust, on this member."""
        self._now = now_ms
        self.declared = declared
        self._consider()
        self._after()
        return self._take()

    def _new_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._out.append(Save((encode(self._born()),)))

    # Time.

    @property
    def deadline_ms(self) -> int | None:
        """When `tick` wants to be called."""
        times = [self._ping_at, self._retry_at, self.inner.deadline_ms]
        times += [core.deadline_ms for _, core in self._needed()]
        return min(time for time in times if time is not None)

    def tick(self, now_ms: int) -> list[Effect]:
        """Do what its time has come for."""
        self._now = now_ms
        for generation, core in [*self._needed(), (self.ledger.generation, self.inner)]:
            if core.deadline_ms is not None and now_ms >= core.deadline_ms:
                self._run(generation, core.tick(now_ms))
        if now_ms >= self._ping_at:
            self._ping_at = now_ms + self.settings.ping_ms
            self._ping()
            self._forget_old()
            self._consider()
        if now_ms >= self._retry_at:
            self._retry_at = now_ms + self.settings.retry_ms
            self._offer_all()
        self._after()
        return self._take()

    def _ping(self) -> None:
        for name in self.members:
            if name != self.name:
                number = self.measured.ask(name, self._now)
                ping = Ping(self.ledger.generation, self._settled, number)
                self._out.append(Send(name, encode(ping)))

    def _after(self) -> None:
        """What follows from any event."""
        if self._seen_generation != self.ledger.generation:
            self._seen_generation = self.ledger.generation
            self._hysteresis.switched(self._now)

    def _core_of(self, generation: int) -> LogCore | None:
        if generation == self.ledger.generation:
            return self.inner
        return self._olds.get(generation)

    def _needed(self) -> list[tuple[int, LogCore]]:
        """Old engines that some member has not left behind; the others only rest."""
        return [
            (generation, core)
            for generation, core in self._olds.items()
            if self.measured.behind(generation + 1)
        ]

    # Entries of this member.

    def _has_room(self) -> bool:
        unsigned = Marker(self.name, self.epoch, self._number + 1, b"")
        return len(self._pending) < WINDOW // 2 and self.ledger.is_new(unsigned.key)

    def _begin(
        self, unsigned: AnyEntry, *, ticket: int | None = None, readers: Sequence[int] = ()
    ) -> None:
        self._number = unsigned.number
        said = statement(self.settings.cluster, unsigned)
        entry = msgspec.structs.replace(unsigned, signature=self.signer.sign(said))
        self._pending[entry.number] = Pending(entry, ticket, list(readers), self._now)
        self._offer(entry.number)

    def _offer(self, number: int) -> None:
        """Give an entry to the engine."""
        pending = self._pending[number]
        pending.open_since = None
        self._inner_ticket += 1
        ticket = self._inner_ticket
        self._asked[ticket] = number
        effects = self.inner.propose(self._now, ticket, encode(pending.entry))
        self._run(self.ledger.generation, effects)

    def _offer_all(self) -> None:
        """Try again what got nowhere."""
        for number, pending in list(self._pending.items()):
            if pending.open_since is not None and number in self._pending:
                self._offer(number)

    def _rejected(self, ticket: int, reason: str) -> None:
        if ticket in self._reads:
            self._read_by_marker([self._reads.pop(ticket)])
            return
        asked = self._asked.pop(ticket, None)
        if isinstance(asked, tuple):
            self._forwarded.discard(asked)  # another's; it will ask again
            return
        pending = self._pending.get(asked) if asked is not None else None
        if pending is None:
            return
        pending.open_since = self._now
        leader = self.inner.leader
        if reason == Reason.NOT_LEADER and leader is not None and leader != self.name:
            entry = encode(pending.entry)
            self._out.append(Send(leader, encode(Forward(self.ledger.generation, entry))))

    def _forward(self, data: bytes) -> None:
        """Another member's entry, which cannot come into the log there."""
        try:
            entry = decode_entry(data)
        except WireError:
            self.refused["a forwarded entry that is none"] += 1
            return
        key = self.keys.get(entry.origin)
        said = statement(self.settings.cluster, entry)
        if key is None or not self.verifier.verify(key, said, entry.signature):
            self.refused["a forwarded entry that its origin has not signed"] += 1
            return
        known = entry.key in self._forwarded or not self.ledger.is_new(entry.key)
        if known or len(self._forwarded) >= WINDOW * len(self.members):
            return
        self._forwarded.add(entry.key)
        self._inner_ticket += 1
        self._asked[self._inner_ticket] = entry.key
        effects = self.inner.propose(self._now, self._inner_ticket, data)
        self._run(self.ledger.generation, effects)

    def _read_by_marker(self, readers: list[int]) -> None:
        if self._starting or not self._has_room():
            self._out += [Rejected(reader, Reason.BUSY, self.leader) for reader in readers]
        else:
            unsigned = Marker(self.name, self.epoch, self._number + 1, b"")
            self._begin(unsigned, readers=readers)

    # Choosing.

    def measurement(self) -> Measured:
        """What this member has measured so far."""
        others = self.quorum() - 1
        return Measured(
            members=len(self.members),
            round_trip_ms=self.measured.round_trip_ms(others),
            loss=self.measured.loss(),
            equivocations=len(self.liars),
        )

    def present(self) -> Choice:
        """The choice that holds."""
        ledger = self.ledger
        return Choice(engine=ledger.engine, place=ledger.place, reasons=(ledger.reason,))

    def _consider(self) -> None:
        """Wish for another choice if that has been the right one for long enough."""
        present, measured = self.present(), self.measurement()
        right = choose(self.declared, measured, present, self.engines)
        mine = self.ledger.wishes.get(self.name)
        wanted = self._hysteresis.wants(self._now, right, present, measured.loss)
        if self._starting or any(isinstance(p.entry, Wish) for p in self._pending.values()):
            return
        if wanted and len(self._olds) < OLD_MAX:
            if mine is None or mine[:2] != (right.engine, right.place):
                self._wish(right)
        elif mine is not None and right.same_as(present) and mine[0:2] != _pair(present):
            self._wish(present)  # taken back

    def _wish(self, choice: Choice) -> None:
        if self._has_room():
            number, generation = self._number + 1, self.ledger.generation
            reason = "; ".join(choice.reasons)[:REASON_CHARS_MAX]
            what = (generation, choice.engine, choice.place, reason)
            self._begin(Wish(self.name, self.epoch, number, b"", *what))

    def explain(self) -> Explanation:
        """What the log runs on, and why."""
        present, measured = self.present(), self.measurement()
        return Explanation(
            present=present,
            right=choose(self.declared, measured, present, self.engines),
            generation=self.ledger.generation,
            measured=measured,
            wishes={name: f"{w[0]} ({w[1]})" for name, w in sorted(self.ledger.wishes.items())},
            waits_for=self.measured.unsettled(self.ledger.generation),
            pauses_ms=list(self.pauses_ms),
        )


def _pair(choice: Choice) -> tuple[str, str]:
    return choice.engine, choice.place
