"""Generations: one engine after another, each with a log of its own, and one state over them.

A generation ends at the wish that completes a quorum: that entry seals its log. Whatever the old
engine commits after it counts for nothing, and is asked for again in the new one by its origin. The
new engine begins with an empty log, on top of the state at the seal, which is the same everywhere.
Old engines are kept, so that members that are behind still get to the seal from them, until all
members can begin from a snapshot in a newer one.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

import msgspec
from attrs import define, frozen
from novacron_agreement import (
    Commit,
    Effect,
    LogCore,
    Note,
    Readable,
    Reason,
    Rejected,
    Restore,
    Save,
    Send,
)
from novacron_agreement.engines import EngineStart, LogEngine, Signer, Verifier

from novacron_consensus_acp._ledger import Ledger
from novacron_consensus_acp._measure import Measurement
from novacron_consensus_acp._policy import ROUND_TRIP_MS
from novacron_consensus_acp._settings import AcpSettings
from novacron_consensus_acp._wire import (
    AnyEntry,
    Born,
    Command,
    Inner,
    Marker,
    Opened,
    State,
    WireError,
    Wish,
    decode_entry,
    decode_record,
    decode_state,
    encode,
    statement,
)

_FORMAT: Final = 1


class AcpError(ValueError):
    """The log cannot go on as it is. Nothing was changed or sent.

    Attributes:
        hint: What to do.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message}; {hint}")
        self.hint = hint


@frozen
class Done:
    """An entry that counted, for finding the state at an index again."""

    index: int
    inner_index: int
    entry: AnyEntry


@define
class Pending:
    """Something of this member's own that is under way.

    Attributes:
        ticket: The proposal's; None for a marker or a wish.
        readers: Reads that a marker stands for.
        open_since: When it last got nowhere; None while the engine has it.
    """

    entry: AnyEntry
    ticket: int | None
    readers: list[int]
    open_since: int | None


class Generations(ABC):
    """See the module. `_core` builds on it."""

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
    ) -> None:
        """Raises: AcpError for records that are not this member's, or an engine that is missing."""
        self.name = name
        self.members = dict(sorted(members.items()))
        self.settings = settings
        self.rng = rng
        self.engines = dict(engines)
        self.keys = dict(keys)
        self.signer = signer
        self.verifier = verifier
        others = [other for other in self.members if other != name]
        self.measured = Measurement(others, 4 * settings.ping_ms)
        self.refused: Counter[str] = Counter()
        self.liars: set[str] = set()
        self.pauses_ms: list[int] = []
        self.epoch = 0
        self._now = 0
        self._out: list[Effect] = []
        self._number = 0
        self._inner_ticket = 0
        self._pending: dict[int, Pending] = {}
        # What the present engine was asked for: a number of this member's own, or another's key.
        self._asked: dict[int, int | tuple[str, int, int]] = {}
        self._forwarded: set[tuple[str, int, int]] = set()
        self._reads: dict[int, int] = {}
        self._history: list[Done] = []
        self._sealed_ms: int | None = None
        self._compacted = False
        self._olds: dict[int, LogCore] = {}
        self._settled = 0
        # The records of each generation whose records are still durable; they are written anew
        # when one of the engines rewrites its own.
        self._kept: dict[int, list[bytes]] = {}
        self._opened: dict[int, Opened] = {}
        self._starting = True
        self._read_back(records)
        if not self._opened:
            self._opened[0] = Opened(0, settings.engine, settings.place, False)
        settled = [number for number, opened in self._opened.items() if opened.settled]
        first = max(settled, default=min(self._opened))
        begun = self._opened[first]
        self._settled = first
        self.ledger = Ledger(begun.engine, begun.place)
        self.ledger.generation = first
        self._first_ledger = self.ledger.encode()
        self.inner = self._make(first)
        self._olds = {old: self._make(old) for old in sorted(self._opened) if old < first}

    def _read_back(self, records: Sequence[bytes]) -> None:
        for number, data in enumerate(records):
            try:
                record = decode_record(data)
            except WireError as error:
                self._foreign(f"record {number} of {self.name!r} is damaged: {error}")
            if isinstance(record, Born):
                here = (_FORMAT, self.settings.cluster, self.name)
                if (record.format, record.cluster, record.name) != here:
                    self._foreign(
                        f"the records are of member {record.name!r} of {record.cluster!r} in "
                        f"format {record.format}, not of {self.name!r} of {self.settings.cluster!r}"
                    )
                self.epoch = record.epoch
            elif number == 0:
                self._foreign("the records do not begin with their member's name")
            elif isinstance(record, Opened):
                self._opened[record.generation] = record
            else:
                self._kept.setdefault(record.generation, []).append(record.data)

    def _foreign(self, what: str) -> NoReturn:
        raise AcpError(
            what, "check the folder and the settings, or let the member join anew with an empty one"
        )

    def _make(self, generation: int) -> LogCore:
        """A generation's engine, from what is durable of it."""
        opened = self._opened[generation]
        engine = self.engines.get(opened.engine)
        if engine is None:
            raise AcpError(
                f"generation {generation} runs on {opened.engine!r}, which no plugin offers",
                f"install novacron-consensus-{opened.engine}",
            )
        return engine.make(
            EngineStart(
                name=self.name,
                members=self.members,
                keys=self.keys,
                records=tuple(self._kept.get(generation, ())),
                cluster=f"{self.settings.cluster}/{generation}",
                round_trip_ms=ROUND_TRIP_MS[opened.place],
                rng=random.Random(self.rng.random()),
                signer=self.signer,
                verifier=self.verifier,
            )
        )

    # What engines ask for.

    def _run(self, generation: int, effects: Sequence[Effect]) -> None:
        """Perform what a generation's engine wants, as far as it still has a say."""
        for effect in effects:
            present = generation == self.ledger.generation
            match effect:
                case Send(to, message):
                    self._out.append(Send(to, encode(Inner(generation, message))))
                case Save(records, replaces):
                    self._save(generation, records, replaces)
                case Note(kind, detail):
                    self._heed(kind, detail)
                    self._out.append(Note(kind, f"generation {generation}: {detail}"))
                case Commit() if present:
                    self._commit(effect)
                case Restore() if present:
                    self._restore(effect)
                case Readable(ticket) if present and ticket in self._reads:
                    self._out.append(Readable(self._reads.pop(ticket), self.ledger.index))
                case Rejected(ticket, reason) if present:
                    self._rejected(ticket, reason)
                case _:
                    pass  # what the old engine says after its seal counts for nothing

    def _heed(self, kind: str, detail: str) -> None:
        if kind == "equivocation":
            self.liars.add(detail.partition(" ")[0])

    def _save(self, generation: int, records: tuple[bytes, ...], replaces: bool) -> None:
        kept = self._kept.setdefault(generation, [])
        if not replaces:
            kept += records
            self._out.append(Save(tuple(encode(Inner(generation, data)) for data in records)))
            return
        kept[:] = records
        if generation == self.ledger.generation and self._compacted:
            # The state is in this engine's snapshot now.
            self._settled = generation
            self._opened[generation] = msgspec.structs.replace(
                self._opened[generation], settled=True
            )
        self._rewrite()

    def _forget_old(self) -> None:
        """Let go of generations that all members can begin without."""
        older = [number for number in self._opened if number < self._settled]
        if older and not self.measured.unsettled(self._settled):
            for number in older:
                del self._opened[number]
                self._kept.pop(number, None)
                self._olds.pop(number, None)
            self._rewrite()

    def _rewrite(self) -> None:
        """Write down anew everything that is kept."""
        rows: list[bytes] = [encode(self._born())]
        for number, opened in sorted(self._opened.items()):
            rows.append(encode(opened))
            rows += [encode(Inner(number, data)) for data in self._kept.get(number, ())]
        self._out.append(Save(tuple(rows), replaces=True))

    def _born(self) -> Born:
        return Born(_FORMAT, self.settings.cluster, self.name, self.epoch)

    # Committed entries.

    def _commit(self, effect: Commit) -> None:
        try:
            entry = decode_entry(effect.command)
        except WireError:
            self.refused["an entry that is none"] += 1
            return
        key = self.keys.get(entry.origin)
        said = statement(self.settings.cluster, entry)
        if key is None or not self.verifier.verify(key, said, entry.signature):
            self.refused["an entry that its origin has not signed"] += 1
            return
        self._forwarded.discard(entry.key)
        if effect.ticket is not None:
            self._asked.pop(effect.ticket, None)
        if not self.ledger.execute(entry):
            return
        self._history.append(Done(self.ledger.index, effect.index, entry))
        mine = entry.origin == self.name and entry.epoch == self.epoch
        pending = self._pending.pop(entry.number, None) if mine else None
        if isinstance(entry, Command):
            ticket = pending.ticket if pending is not None else None
            self._resumed()
            self._out.append(Commit(self.ledger.index, entry.command, ticket))
        elif isinstance(entry, Marker):
            for reader in pending.readers if pending is not None else ():
                self._out.append(Readable(reader, self.ledger.index))
        elif entry.generation == self.ledger.generation:
            self._wished(entry)

    def quorum(self) -> int:
        """How many members must wish the same: as many as the present engine needs to agree."""
        count = len(self.members)
        if self.engines[self.ledger.engine].survives == "lies":
            return count - (count - 1) // 3
        return count // 2 + 1

    def _wished(self, wish: Wish) -> None:
        wanted = (wish.engine, wish.place)
        if wanted == (self.ledger.engine, self.ledger.place) or wish.place not in ROUND_TRIP_MS:
            return
        if self.ledger.wished_by(*wanted) >= self.quorum():
            self._switch(wish)

    def _switch(self, wish: Wish) -> None:
        """The log is sealed here. Go on with another engine, from this state."""
        before = self.ledger.engine
        old = self.ledger.generation
        self.ledger.begin(wish.engine, wish.place, wish.reason)
        generation = self.ledger.generation
        self._olds[old] = self.inner
        self._asked, self._reads, reads = {}, {}, self._reads
        self._forwarded.clear()
        self._history = []
        self._first_ledger = self.ledger.encode()
        self._compacted = False
        self._sealed_ms = self._now
        if generation not in self._opened:
            opened = Opened(generation, wish.engine, wish.place, False)
            self._opened[generation] = opened
            self._out.append(Save((encode(opened),)))
        self.inner = self._make(generation)
        self._note_switch(before, wish)
        self._run(generation, self.inner.start(self._now))
        for pending in self._pending.values():
            pending.open_since = self._now
        if reads:
            self._read_by_marker(list(reads.values()))
        if not self._starting:
            self._offer_all()

    def _note_switch(self, before: str, wish: Wish) -> None:
        what = f"generation {self.ledger.generation}: {before} gives way to {wish.engine}"
        self._out.append(Note("switch", f"{what} ({wish.place}): {wish.reason}"))

    def _resumed(self) -> None:
        """The first command after a switch says how long the pause was."""
        if self._sealed_ms is not None and not self._starting:
            pause = self._now - self._sealed_ms
            self.pauses_ms = [*self.pauses_ms[-99:], pause]
            detail = f"{pause} ms from the seal to the first command on {self.ledger.engine}"
            self._out.append(Note("pause", detail))
        self._sealed_ms = None

    # Snapshots.

    def compact(self, index: int, snapshot: bytes) -> list[Effect]:
        """The machine's state up to and with ``index``. See `novacron_agreement.LogCore`.

        The log of a generation that is over goes when all members can begin without it.

        Raises: ValueError if the index was never handed out.
        """
        if index > self.ledger.index or index < 1:
            raise ValueError(f"index {index} was never committed here")
        ledger = Ledger.decode(self._first_ledger)
        if index > ledger.index:
            for number, done in enumerate(self._history):
                ledger.execute(done.entry)
                if isinstance(done.entry, Command) and ledger.index == index:
                    self._first_ledger = ledger.encode()
                    del self._history[: number + 1]
                    self._compacted = True
                    state = State(ledger.generation, self._first_ledger, snapshot)
                    data = encode(state)
                    self._run(ledger.generation, self.inner.compact(done.inner_index, data))
                    break
        return self._take()

    def _restore(self, effect: Restore) -> None:
        """The engine brought a snapshot: what was asked for here may be in it, unseen."""
        state = decode_state(effect.snapshot)
        self.ledger = Ledger.decode(state.ledger)
        self._first_ledger = state.ledger
        self._history = []
        self._compacted = True
        self._out.append(Restore(self.ledger.index, state.snapshot))
        for number, pending in list(self._pending.items()):
            if not self.ledger.is_new(pending.entry.key):
                del self._pending[number]
                if pending.ticket is not None:
                    self._out.append(Rejected(pending.ticket, Reason.UNCERTAIN, self.leader))
                for reader in pending.readers:
                    self._out.append(Readable(reader, self.ledger.index))

    # What `_core` adds.

    @property
    def leader(self) -> str | None:
        return self.inner.leader

    def _take(self) -> list[Effect]:
        out, self._out = self._out, []
        return out

    @abstractmethod
    def _rejected(self, ticket: int, reason: str) -> None: ...

    @abstractmethod
    def _offer_all(self) -> None: ...

    @abstractmethod
    def _read_by_marker(self, readers: list[int]) -> None: ...
