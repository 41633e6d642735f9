"""Snapshots: taking one in place of the log, and bringing one to a member that needs it.

A snapshot goes in pieces. What has arrived is kept while links break and leaders change, and the
receiver says where it wants to go on; pieces belong together if the whole has the same digest.
"""

from __future__ import annotations

import hashlib

from attrs import define, field
from novacron_agreement import Effect, Restore, Save

from novacron_consensus_raft._log import Log
from novacron_consensus_raft._messages import Appended, SnapshotChunk, SnapshotProgress
from novacron_consensus_raft._progress import Flow, Progress
from novacron_consensus_raft._records import (
    Snapshot,
    header_record,
    replacement,
    term_record,
)
from novacron_consensus_raft._replication import Replication
from novacron_consensus_raft._state import Role


@define(eq=False)
class _Arriving:
    """What is there of a snapshot that is on its way."""

    index: int
    digest: bytes
    data: bytearray = field(factory=bytearray)


class Snapshots(Replication):
    """A member that takes, sends and receives snapshots."""

    _arriving: _Arriving | None = None
    _digest = b""  # of the newest snapshot, once somebody needed it

    def compact(self, index: int, snapshot: bytes) -> list[Effect]:
        """Keep the state machine's state up to an index, and forget the log before it.

        Raises: ValueError if that index was not handed out yet.
        """
        self._effects = []
        if index > self.commit:
            raise ValueError(
                f"a snapshot up to index {index}, but only {self.commit} is committed here; give "
                "the index of the last effect that the state machine has seen"
            )
        if index <= (self._snapshot.index if self._snapshot else 0):
            return self._effects
        term = self.log.term(index)
        assert term is not None, "what came after the last snapshot is held"
        made = Snapshot(index, term, self.log.configuration_at(index), snapshot)
        self._keep(made)
        self.log.compact(max(index - self.settings.keep_entries, self.log.base_index))
        return self._effects

    def _keep(self, snapshot: Snapshot) -> None:
        """Make a snapshot and what follows it all that is durable."""
        self._snapshot, self._digest = snapshot, b""
        header = header_record(self.settings.cluster, self.name)
        term = term_record(self.term, self.vote)
        later = (
            self.log.entry(index) for index in range(snapshot.index + 1, self.log.last_index + 1)
        )
        self._effects.append(Save(replacement(header, term, snapshot, later), replaces=True))

    # The leader's side.

    def _offer_snapshot(self, name: str, progress: Progress) -> None:
        """What the member needs is not in the log any more."""
        snapshot = self._snapshot
        assert snapshot is not None, "a log without a snapshot holds everything"
        if not self._digest:
            self._digest = hashlib.sha256(snapshot.data).digest()
        progress.send_snapshot(snapshot, self._digest)
        self._note("snapshot", f"{name} is sent the state up to {snapshot.index}")
        self._send_chunks(name, progress)

    def _repeat_snapshot(self, name: str, progress: Progress) -> None:
        """With each heartbeat: if nothing has arrived since the last one, send it again."""
        if progress.flow is not Flow.SNAPSHOT:
            self._offer_snapshot(name, progress)
        elif not progress.moved:
            # A window of one until it answers: it may be away, or have more than we know.
            progress.answered = False
            progress.sent = progress.taken
            self._send_chunks(name, progress)
        progress.moved = False

    def _send_chunks(self, name: str, progress: Progress) -> None:
        """As many pieces as may be unanswered."""
        snapshot = progress.snapshot
        assert snapshot is not None
        settings, size = self.settings, len(snapshot.data)
        pieces = settings.chunks_inflight if progress.answered else 1
        end = progress.taken + pieces * settings.chunk_bytes
        while progress.sent < min(end, size) or not (size or progress.answered):
            data = snapshot.data[progress.sent : progress.sent + settings.chunk_bytes]
            self._send(
                name,
                SnapshotChunk(
                    settings.cluster,
                    self.term,
                    self._round,
                    snapshot.index,
                    snapshot.term,
                    snapshot.configuration,
                    size,
                    progress.digest,
                    progress.sent,
                    data,
                ),
            )
            progress.sent += len(data)
            if not size:
                return

    def _on_snapshot_progress(self, sender: str, message: SnapshotProgress) -> None:
        progress = self._heard_of(sender, message.round)
        if progress is None:
            return
        snapshot = progress.snapshot
        if snapshot is not None and progress.digest == message.digest:
            wanted = min(message.offset, len(snapshot.data))
            progress.moved = progress.moved or wanted > progress.taken
            progress.answered = True
            # The receiver knows best what it has: less than before if it was restarted.
            progress.taken = wanted
            progress.sent = max(progress.sent, wanted)
            self._send_chunks(sender, progress)
        self._confirm()

    # The follower's side.

    def _on_snapshot_chunk(self, sender: str, message: SnapshotChunk) -> None:
        if self.role is Role.LEADER:
            self._refuse("a second leader in one term", sender)
            return
        self._heard_from(sender)
        if message.index <= self.commit:
            self._arriving = None
            self._answer_snapshot(sender, message)
            return
        if message.size > self.settings.snapshot_bytes_max:
            self._refuse("a snapshot that is larger than snapshot_bytes_max", sender)
            return
        arrived = self._gather(message)
        if len(arrived) < message.size:
            self._ask_on(sender, message, len(arrived))
            return
        self._arriving = None
        data = bytes(arrived)
        if hashlib.sha256(data).digest() != message.digest:
            self._refuse("a snapshot that is not what its digest says", sender)
            self._ask_on(sender, message, 0)
            return
        self._install(Snapshot(message.index, message.index_term, message.configuration, data))
        self._answer_snapshot(sender, message)

    def _gather(self, message: SnapshotChunk) -> bytearray:
        """Add a piece, if it is the next one; all that is there of the snapshot."""
        arriving = self._arriving
        wanted = (message.index, message.digest)
        if arriving is None or (arriving.index, arriving.digest) != wanted:
            arriving = self._arriving = _Arriving(*wanted)
        if message.offset == len(arriving.data):
            arriving.data += message.data
        return arriving.data

    def _install(self, snapshot: Snapshot) -> None:
        """Take a snapshot as this member's state. What its log has beyond it may stay if the
        snapshot is a piece of the same log."""
        if self.log.term(snapshot.index) == snapshot.term:
            self.log.compact(snapshot.index)
        else:
            self.log = Log(snapshot.index, snapshot.term, snapshot.configuration)
        self.commit = snapshot.index
        self._keep(snapshot)
        self._effects.append(Restore(snapshot.index, snapshot.data))
        self._note("restored", f"the state up to {snapshot.index} came as a snapshot")

    def _answer_snapshot(self, sender: str, message: SnapshotChunk) -> None:
        cluster = self.settings.cluster
        self._send(sender, Appended(cluster, self.term, message.round, self.commit, True))

    def _ask_on(self, sender: str, message: SnapshotChunk, offset: int) -> None:
        cluster, digest = self.settings.cluster, message.digest
        self._send(sender, SnapshotProgress(cluster, self.term, message.round, digest, offset))
