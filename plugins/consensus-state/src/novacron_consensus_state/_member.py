"""One member's copy of the state: what it is made of, and the ways in which events enter it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from novacron_agreement import Effect, LogCore

from novacron_consensus_state import _kinds, _records
from novacron_consensus_state import _messages as msg
from novacron_consensus_state._clock import AHEAD_MS_MAX, HybridClock
from novacron_consensus_state._effects import Changed, Outbox
from novacron_consensus_state._freshness import Freshness, member_of
from novacron_consensus_state._messages import Event, WireError
from novacron_consensus_state._settings import ReplicaSettings
from novacron_consensus_state._spread import Spread
from novacron_consensus_state._store import Store
from novacron_consensus_state._strong import LOG_ORIGIN, StrongLog
from novacron_consensus_state._sync import TreeSync
from novacron_consensus_state._topology import Topology
from novacron_consensus_state._tree import Key
from novacron_consensus_state._vector import Dot, Vector

if TYPE_CHECKING:
    import random

LogFactory = Callable[[Sequence[bytes]], LogCore]


class TooLarge(ValueError):
    """A change does not fit into an event. Nothing was changed."""


class Member:
    """See the module; the arguments are those of `Replica`.

    Attributes:
        origin: Under which this life of the member makes events.
        acknowledge: Who wants to know at once what is durable here.
        hurry: Who is asked to say so at once.
    """

    def __init__(
        self,
        name: str,
        members: Mapping[str, str],
        records: Sequence[bytes],
        settings: ReplicaSettings,
        rng: random.Random,
        cluster: str,
        wall_offset_ms: int,
        log: LogFactory | None,
    ) -> None:
        self.name = name
        self.cluster = cluster
        self.settings = settings
        self.rng = rng
        self.store = Store(settings.history_bytes)
        self.clock = HybridClock(wall_offset_ms)
        self.out = Outbox(msg.mark_of(cluster))
        self.acknowledge: set[str] = set()
        self.hurry: set[str] = set()
        self._said: Vector = {}  # what the last event's causes have told already
        self._saved_bytes = 0
        self._versions: dict[Key, int] = {}  # of strong writes that were seen in this life
        log_records = self._restore(records)
        topology = Topology(name, members)
        self.freshness = Freshness(topology.others)
        self.spread = Spread(self.store, topology, self.freshness, settings, self.out)
        self.sync = TreeSync(self.store, self.freshness, self.out, rng, settings.leaves_per_want)
        core = log(log_records) if log else None
        self.strong = StrongLog(name, topology.others, core, log_records, settings, self.out)

    @property
    def topology(self) -> Topology:
        return self.spread.topology

    def set_members(self, members: Mapping[str, str]) -> None:
        topology = Topology(self.name, members)
        self.freshness.set_members(topology.others)
        self.spread.set_topology(topology)
        self.strong.others = topology.others

    # Its life.

    def _restore(self, records: Sequence[bytes]) -> list[bytes]:
        if not records:
            # A life of its own: if a member's disk is lost, its next life must not number events
            # as the one before did.
            self._begin_life()
            return []
        found = _records.read_header(records[0])
        if (found.cluster, found.member) != (self.cluster, self.name):
            raise WireError(
                f"this is the state of member {found.member!r} of cluster {found.cluster!r}, not "
                f"of {self.name!r} of {self.cluster!r}"
            )
        log_records: list[bytes] = []
        for record in records:
            if record[:1] == _records.HEADER:
                self.origin = _records.read_header(record).origin
            elif record[:1] == _records.LOG:
                log_records.append(record[1:])
            else:
                self.clock.restored(_records.replay(record, self.store))
        return log_records

    def _begin_life(self) -> None:
        self.origin = f"{self.name}/{self.rng.getrandbits(48):012x}"
        self._said = {}
        self.out.save(_records.header(self.cluster, self.name, self.origin))

    def check_memory(self, vector: Mapping[str, int]) -> bool:
        """Somebody knows more of what this node made than it does: its state is an old copy.
        Numbering events on from there would give two events one name. Returns whether it is so."""
        if vector.get(self.origin, 0) <= self.store.vector.get(self.origin, 0):
            return False
        old = self.origin
        self._begin_life()
        self.out.note("amnesia", f"this state is older than what others know of {old}")
        return True

    # Events.

    def make(
        self, now_ms: int, key: Key, change: _kinds.Change, stamp: int, *, everybody: bool
    ) -> Dot:
        """Make an event of a change and send it on its way: to those whom it concerns first, or to
        everybody, who are then to acknowledge it. Raises TooLarge."""
        store = self.store
        adds, drops = list(change.adds), list(change.drops)
        for path, up, down in change.counts:
            counted = _kinds.counted(self.origin, path, up, down, store.rows(key))
            adds += counted.adds
            drops += counted.drops
        number = store.vector.get(self.origin, 0) + 1
        deps = {
            origin: seen
            for origin, seen in store.vector.items()
            if origin != self.origin and seen > self._said.get(origin, 0)
        }
        event = Event(self.origin, number, stamp, deps, *key, adds, drops)
        raw = msg.encode_event(event)
        if len(raw) > msg.EVENT_BYTES_MAX or len(drops) > msg.EVENT_BYTES_MAX // 16:
            raise TooLarge(f"the change takes {len(raw)} bytes; the most is {msg.EVENT_BYTES_MAX}")
        self._said |= deps
        self.delivered(now_ms, store.deliver(event, raw), "")
        dot = (self.origin, number)
        if everybody:
            targets: Sequence[str] = self.topology.others
            self.hurry.update(targets)
        else:
            targets = self.topology.on(self.name, self.spread.is_heard(now_ms))
        self.spread.push(now_ms, dot, raw, targets)
        return dot

    def delivered(self, now_ms: int, events: Sequence[tuple[Event, bytes]], sender: str) -> None:
        """Events are seen now: keep them, hand them on, tell who watches."""
        for event, raw in events:
            self.out.save(_records.EVENT + raw)
            if event.origin == LOG_ORIGIN:
                self._versions[event.name, event.kind] = event.number
            else:
                ahead = self.clock.heard(event.stamp, now_ms)
                if ahead > AHEAD_MS_MAX:
                    text = f"the clock of {member_of(event.origin)} is {ahead} ms ahead"
                    self.out.note("clock", text)
            if event.origin != self.origin:
                maker = self._maker(event.origin)
                dot = (event.origin, event.number)
                self.spread.pass_on(now_ms, maker, dot, raw, sender)
            self.out.effects.append(Changed(event.name, event.kind))
        self.spread.arrived()

    def _maker(self, origin: str) -> str:
        """Whom an event is taken to come from, when it is handed on."""
        return self.strong.leader if origin == LOG_ORIGIN else member_of(origin)

    def decided(self, now_ms: int, events: Sequence[Event]) -> None:
        """The log has decided these."""
        for event in events:
            raw = msg.encode_event(event)
            delivered = self.store.deliver(event, raw)
            self.delivered(now_ms, delivered, "")
            if self.strong.leader == self.name:
                heard = self.spread.is_heard(now_ms)
                outside = [
                    to for to in self.topology.on(self.name, heard) if to not in self.strong.members
                ]
                self.spread.push(now_ms, (event.origin, event.number), raw, outside)

    def version(self, key: Key) -> int:
        """The number of the key's last strong write that is known here; 0 if none is."""
        numbers = [
            number
            for row in self.store.rows(key).values()
            for origin, number in row
            if origin == LOG_ORIGIN
        ]
        known = (self.strong.machine.versions.get(key, 0), self._versions.get(key, 0))
        return max(*known, *numbers)

    # The end of each call.

    def collected(self) -> list[Effect]:
        """The effects of a call, at its end."""
        for name in sorted(self.acknowledge):
            self.spread.acknowledge(name)
        self._saved_bytes += sum(map(len, self.out.records))
        if self.strong.rewrite or self._saved_bytes > self.settings.snapshot_bytes:
            self.strong.rewrite = False
            self.out.replace(self._snapshot())
            # The next one when it has doubled, so that writing it costs in proportion.
            size = sum(map(len, self.out.records))
            self._saved_bytes = -max(0, size - self.settings.snapshot_bytes)
        made = self.out.taken(frozenset(self.hurry))
        self.acknowledge.clear()
        self.hurry.clear()
        return made

    def _snapshot(self) -> list[bytes]:
        first = _records.header(self.cluster, self.name, self.origin)
        logged = [_records.LOG + record for record in self.strong.records]
        return [first, *_records.snapshot(self.store), *logged]
