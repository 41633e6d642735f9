"""What raft claims, one transcript each: events go in, and what members say and do comes out.

A transcript is a text that people read. Each block is an event, a line ``----``, and what follows
from it. Lines that begin with ``#`` explain. Where the core's behaviour was changed on purpose,

    NOVACRON_WRITE_TRANSCRIPTS=1 pytest plugins/consensus-raft/tests/test_raft_transcripts.py

writes what follows now, to be read before it is kept. The events:

    cluster a b c [KEY=VALUE ...]    members that begin; settings of `RaftSettings`
    begin a with 1 1 2 [term N]      a member whose log has entries of these terms
    join d                           a member without anything
    stand a                          time passes until a stands for election
    wait MS                          time passes, and nobody does anything
    tick a                           a does what is due
    beat a N                         N heartbeats of a, and all that follows from them
    propose a X | read a             tickets are counted from 1
    change a [vote=..] [learn=..] [remove=..] | transfer a b | compact a INDEX
    deliver [a->b]                   what is under way arrives (between these two); one step
    run                              all arrives, and what follows from it, until nothing is left
    lose [a->b]                      what is under way is lost
    cut a b | heal                   what is sent between them is lost | is not any more
    restart a                        a begins anew from what it saved
    log a | status                   show

``quietly`` before an event shows only what was committed, answered and refused.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from attrs import define
from novacron_agreement import (
    Commit,
    Done,
    Effect,
    Note,
    Readable,
    Rejected,
    Restore,
    Save,
    Send,
)
from novacron_consensus_raft import Configuration, RaftCore, RaftSettings
from novacron_consensus_raft import _messages as wire
from novacron_consensus_raft._records import entry_record, header_record, term_record

FOLDER = Path(__file__).parent / "transcripts"
CLUSTER = "test"


def described(message: wire.AnyMessage) -> str:
    """A message in words."""
    match message:
        case wire.RequestVote(term=term, last_index=index, last_term=last, pre=pre):
            how = " as told by the leader" if message.transfer else ""
            asks = "would you vote" if pre else "vote"
            return f"{asks} for me in term {term}{how}? My last entry is {index} of term {last}"
        case wire.Vote(term=term, granted=granted, pre=pre):
            word = "would" if pre else "do"
            return (
                f"{'yes' if granted else 'no'}, I {word}{'' if granted else ' not'} (term {term})"
            )
        case wire.Append(term=term, entries=entries):
            after = f"after {message.previous_index} of term {message.previous_term}"
            has = ", ".join(shown(entry) for entry in entries) or "nothing new"
            return (
                f"{after}: {has}; committed {message.commit} (term {term}, round {message.round})"
            )
        case wire.Appended(taken=True):
            return f"I have all to {message.index} (term {message.term}, round {message.round})"
        case wire.Appended():
            hint = f"perhaps {message.hint_index} of term {message.hint_term}"
            return f"I have no such {message.index}, {hint} (term {message.term})"
        case wire.SnapshotChunk(index=index, offset=offset, data=data, size=size):
            return f"state to {index}: bytes {offset} to {offset + len(data)} of {size}"
        case wire.SnapshotProgress(offset=offset):
            return f"send me the state from byte {offset}"
        case wire.TimeoutNow(term=term):
            return f"your turn to lead (term {term})"


def shown(entry: wire.Entry) -> str:
    place = f"{entry.index} of term {entry.term}"
    match entry.kind:
        case wire.EntryKind.COMMAND:
            return f"{place} {entry.data.decode()!r}"
        case wire.EntryKind.NOTHING:
            return f"{place} nothing"
        case _:
            return f"{place} {members(Configuration.decode(entry.data))}"


def members(known: Configuration) -> str:
    said = "voters " + " ".join(known.voters)
    said += " and also " + " ".join(known.outgoing) if known.joint else ""
    return said + (" learners " + " ".join(known.learners) if known.learners else "")


def decoded(records: tuple[bytes, ...]) -> Iterator[str]:
    for record in records:
        if record[:1] == b"e":
            entry = msgspec.msgpack.decode(record[1:], type=wire.Entry)
            yield f"entry {shown(entry)}"
        elif record[:1] == b"t":
            term, vote = msgspec.msgpack.decode(record[1:])
            yield f"term {term}" + (f" and its vote for {vote}" if vote else "")
        elif record[:1] == b"s":
            index, term = msgspec.msgpack.decode(record[1:])[:2]
            yield f"the state to {index} of term {term}"


@define
class _Under:
    """A message under way."""

    sender: str
    to: str
    data: bytes


class Stage:
    """The members of a transcript, and what is under way between them."""

    def __init__(self) -> None:
        self.now = 0
        self.cores: dict[str, RaftCore] = {}
        self.records: dict[str, list[bytes]] = {}
        self.begun: dict[str, tuple[list[int], int]] = {}
        self.under_way: list[_Under] = []
        self.cuts: set[frozenset[str]] = set()
        self.names: list[str] = []
        self.settings = RaftSettings(cluster=CLUSTER)
        self.tickets = 0
        self.lines: list[str] = []
        self.quiet = False

    def do(self, line: str) -> str:
        """Let an event happen. Returns: what follows."""
        self.lines = []
        word, *rest = line.split()
        self.quiet = word == "quietly"
        if self.quiet:
            word, *rest = rest
        event: Callable[..., None] = getattr(self, f"on_{word}")
        event(*rest)
        return "\n".join(self.lines)

    # Who is there.

    def on_cluster(self, *words: str) -> None:
        self.names = [word for word in words if "=" not in word]
        asked = dict(word.split("=") for word in words if "=" in word)
        values: dict[str, object] = {key: int(value) for key, value in asked.items()}
        if "lease" in values:
            values["lease"] = bool(values["lease"])
        settings = {"heartbeat_ms": 100, "election_ms": 1000, "lease": False, **values}
        self.settings = RaftSettings(cluster=CLUSTER, **settings)  # type: ignore[arg-type]
        for name in self.names:
            self._start(name, self._records(name))

    def on_begin(self, name: str, *words: str) -> None:
        """Before `cluster`, which all members are then named in."""
        terms, _, term = " ".join(words[1:]).partition(" term ")
        log = [int(one) for one in terms.split()]
        self.begun[name] = (log, int(term or max(log)))

    def _records(self, name: str) -> list[bytes]:
        """Of a member whose log was given."""
        if name not in self.begun:
            return []
        log, term = self.begun[name]
        first = Configuration.of(dict.fromkeys(self.names, "")).encode()
        entries = [wire.Entry(1, 1, wire.EntryKind.MEMBERS, first)]
        for index, of_term in enumerate(log[1:], 2):
            command = f"{index}.{of_term}".encode()
            entries.append(wire.Entry(index, of_term, wire.EntryKind.COMMAND, command))
        head = [header_record(CLUSTER, name), term_record(term, None)]
        return [*head, *map(entry_record, entries)]

    def _start(self, name: str, records: list[bytes]) -> None:
        beginning = dict.fromkeys(self.names, "") if name in self.names else {}
        rng = random.Random(name)
        self.cores[name] = core = RaftCore(name, beginning, records, self.settings, rng)
        self.records[name] = list(records)
        self._effects(name, core.start(self.now), quiet=True)

    def on_join(self, name: str) -> None:
        self._start(name, [])

    def on_restart(self, name: str) -> None:
        rng = random.Random(f"{name} again")
        core = RaftCore(name, {}, self.records[name], self.settings, rng)
        self.cores[name] = core
        self._effects(name, core.start(self.now))

    # Time.

    def on_stand(self, name: str) -> None:
        due = self.cores[name].deadline_ms
        assert due is not None, f"{name} does not stand for election"
        self.now = max(self.now, due)
        self.on_tick(name)

    def on_wait(self, ms: str) -> None:
        self.now += int(ms)

    def on_tick(self, name: str) -> None:
        self._effects(name, self.cores[name].tick(self.now))

    def on_beat(self, name: str, times: str) -> None:
        for _ in range(int(times)):
            self.on_wait(str(self.settings.heartbeat_ms))
            self.on_tick(name)
            self.on_run()

    # Requests.

    def _ticket(self) -> int:
        self.tickets += 1
        return self.tickets

    def on_propose(self, name: str, *commands: str) -> None:
        asked = [(self._ticket(), command.encode()) for command in commands]
        self._effects(name, self.cores[name].propose_all(self.now, asked))

    def on_read(self, name: str) -> None:
        self._effects(name, self.cores[name].read(self.now, self._ticket()))

    def on_change(self, name: str, *words: str) -> None:
        asked = dict(word.split("=") for word in words)
        lists = {key: value.split(",") for key, value in asked.items()}
        effects = self.cores[name].change_members(
            self.now,
            self._ticket(),
            voters=dict.fromkeys(lists.get("vote", []), ""),
            learners=dict.fromkeys(lists.get("learn", []), ""),
            remove=lists.get("remove", []),
        )
        self._effects(name, effects)

    def on_transfer(self, name: str, to: str) -> None:
        self._effects(name, self.cores[name].transfer(self.now, self._ticket(), to))

    def on_compact(self, name: str, index: str) -> None:
        self._effects(name, self.cores[name].compact(int(index), f"state {index}".encode()))

    # The network.

    def on_deliver(self, way: str = "") -> None:
        taken, self.under_way = self._split(way)
        for one in taken:
            core = self.cores[one.to]
            self._effects(one.to, core.receive(self.now, one.sender, one.data))

    def on_run(self) -> None:
        for _ in range(1000):
            if not self.under_way:
                return
            self.on_deliver()
        raise AssertionError("it never ends")

    def on_lose(self, way: str = "") -> None:
        _, self.under_way = self._split(way)

    def on_cut(self, a: str, b: str) -> None:
        self.cuts.add(frozenset((a, b)))

    def on_heal(self) -> None:
        self.cuts.clear()

    def _split(self, way: str) -> tuple[list[_Under], list[_Under]]:
        if not way:
            return self.under_way, []
        sender, _, to = way.partition("->")
        taken = [one for one in self.under_way if one.sender == sender and one.to == to]
        return taken, [one for one in self.under_way if one not in taken]

    # Showing.

    def on_log(self, name: str) -> None:
        log = self.cores[name].log
        self.lines += [f"after {log.base_index} of term {log.base_term}"] * bool(log.base_index)
        first = log.base_index + 1
        self.lines += [shown(log.entry(index)) for index in range(first, log.last_index + 1)]

    def on_status(self) -> None:
        for name, core in self.cores.items():
            follows = f" of {core.leader}" if core.leader not in (None, name) else ""
            said = f"{name}: {core.role}{follows} in term {core.term}"
            self.lines.append(
                f"{said}, last entry {core.log.last_index} of term {core.log.last_term}, "
                f"committed {core.commit}"
            )

    def _effects(self, name: str, effects: list[Effect], *, quiet: bool = False) -> None:
        for effect in effects:
            line = self._effect(name, effect)
            loud = not isinstance(effect, Send | Save | Note)
            if line and not quiet and (loud or not self.quiet):
                self.lines.append(line)

    def _effect(self, name: str, effect: Effect) -> str:
        match effect:
            case Send(to, data):
                lost = frozenset((name, to)) in self.cuts or to not in self.cores
                if not lost:
                    self.under_way.append(_Under(name, to, data))
                said = described(wire.decode(data, CLUSTER))
                return f"{name} -> {to}: {said}" + (" (lost)" if lost else "")
            case Save(records, replaces):
                kept = [] if replaces else self.records[name]
                self.records[name] = [*kept, *records]
                how = " in place of all before" if replaces else ""
                return f"{name} saves{how}: {'; '.join(decoded(records))}"
            case Commit(index, command, ticket):
                whose = f", which answers {ticket}" if ticket is not None else ""
                return f"{name} applies {index}: {command.decode()!r}{whose}"
            case Restore(index, snapshot):
                return f"{name} takes the state to {index}: {snapshot.decode()!r}"
            case Readable(ticket, index):
                return f"{name} may serve read {ticket} at {index}"
            case Done(ticket, _):
                return f"{name} has done {ticket}"
            case Rejected(ticket, reason, leader):
                hint = f", ask {leader}" if leader else ""
                return f"{name} rejects {ticket}: {reason}{hint}"
            case Note(kind, detail):
                return f"{name} notes {kind}: {detail}"
            case _:
                raise AssertionError(effect)


def blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """The blocks of a transcript: what is before the event, the event, what follows."""
    for part in re.split(r"\n\n+", text.strip()):
        said, _, follows = part.partition("\n----")
        *before, event = said.split("\n")
        yield "\n".join(before), event, follows.strip("\n")


def played(text: str) -> str:
    """The transcript as it goes now."""
    stage = Stage()
    parts = []
    for before, event, _ in blocks(text):
        if event.startswith("#"):
            parts.append(f"{before}\n{event}".strip())
            continue
        follows = stage.do(event)
        head = f"{before}\n{event}".strip()
        parts.append(f"{head}\n----\n{follows}".rstrip() if follows else head)
    return "\n\n".join(parts) + "\n"


TRANSCRIPTS = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_it_goes_as_the_transcript_says(path: Path) -> None:
    kept = path.read_text(encoding="utf-8")
    now = played(kept)
    if os.environ.get("NOVACRON_WRITE_TRANSCRIPTS"):
        path.write_text(now, encoding="utf-8")
        kept = now
    assert now == kept


def test_there_is_a_transcript_for_each_claim() -> None:
    assert len(TRANSCRIPTS) >= 15
    assert all(path.read_text(encoding="utf-8").startswith("# ") for path in TRANSCRIPTS)
