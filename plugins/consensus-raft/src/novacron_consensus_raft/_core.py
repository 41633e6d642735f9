"""One member of a raft cluster, without I/O: what the driver and the simulator run.

The protocol is that of Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm"
(2014), and of Ongaro's dissertation (2014), with pre-votes, check-quorum, leases, learners and
streamed snapshots. What a driver owes it stands in `novacron_agreement.effects`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from attrs import frozen
from novacron_agreement import Effect, Restore

from novacron_consensus_raft import _messages as wire
from novacron_consensus_raft._configuration import Configuration
from novacron_consensus_raft._election import Elections
from novacron_consensus_raft._progress import Flow
from novacron_consensus_raft._records import begin, beginning_records, recover
from novacron_consensus_raft._settings import RaftSettings
from novacron_consensus_raft._state import Role


@frozen(kw_only=True)
class PeerStatus:
    """What a leader knows of another member.

    Attributes:
        match: Its log is like the leader's up to here.
        caught_up: Whether it has all that is committed: a learner may vote now.
        silent_ms: For how long nothing was heard of it.
        reads: The newest version of the messages that it reads, as far as it said.
        snapshot: Whether it is being sent a snapshot, and how many bytes of it are there.
    """

    match: int
    caught_up: bool
    silent_ms: int
    reads: int
    snapshot: tuple[int, int] | None = None


@frozen(kw_only=True)
class Status:
    """A member at a moment, for people and metrics.

    Attributes:
        role: follower, pre-candidate, candidate or leader.
        first_index, last_index: What the log in memory holds.
        snapshot_index: The last entry of the newest snapshot; 0 if there is none.
        reads: The newest version of the messages that this member reads.
        level: Of a leader: what all members read. Nothing newer is sent or logged.
        peers: Of a leader, the others by name.
        refused: Messages that were dropped, by reason.
    """

    name: str
    role: str
    term: int
    leader: str | None
    commit: int
    first_index: int
    last_index: int
    snapshot_index: int
    configuration: Configuration
    reads: int
    level: int | None
    peers: Mapping[str, PeerStatus]
    refused: Mapping[str, int]


class RaftCore(Elections):
    """A member. See the module, and `novacron_agreement.LogCore` for its methods.

    Args:
        name: This member's.
        members: With whom the cluster begins, and their addresses; all members that begin with it
            must be given the same. Empty for a member that joins a cluster: it waits until a
            leader brings it what it needs. Not looked at if there are records.
        records: What `Save` has made durable, in order; empty for a new member.
        settings: How it behaves.
        rng: Its only source of chance; members must not share a seed.

    Raises:
        RecordsError: The records are not this member's, or damaged. Nothing was changed.
        ConfigurationError: ``members`` makes no sense.
    """

    def __init__(
        self,
        name: str,
        members: Mapping[str, str],
        records: Sequence[bytes],
        settings: RaftSettings,
        rng: random.Random,
    ) -> None:
        self._new = not records
        if records:
            recovered = recover(records, settings.cluster, name)
        else:
            recovered = begin(Configuration.of(members))
        super().__init__(name, recovered, settings, rng)

    @property
    def deadline_ms(self) -> int | None:
        """When `tick` wants to be called."""
        if self.role is Role.LEADER:
            due = self._heartbeat_due_ms  # and with it, whether a majority was heard
            return due if self._transfer is None else min(due, self._transfer.until_ms)
        return self._election_due_ms if self._may_stand() else None

    def start(self, now_ms: int) -> list[Effect]:
        """Begin. Called once, before anything else."""
        self._enter(now_ms)
        if self._new:
            self._save(*beginning_records(self.settings.cluster, self.name, self.log))
        elif self._snapshot is not None:
            self._effects.append(Restore(self._snapshot.index, self._snapshot.data))
        # A member that was restarted cannot know whom it heard before. A leader's lease may rely on
        # it, so it behaves as if it had heard one just now; one that is new has heard none.
        promised_ms = self.settings.election_ms if self.settings.lease and not self._new else 0
        self._heard_leader_ms = self._now_ms + promised_ms - self.settings.election_ms
        self._wait_for_leader()
        if self.configuration.deciders == {self.name} and not self.configuration.version:
            # There was never anybody else.
            self._stand(pre=False)
        return self._effects

    def tick(self, now_ms: int) -> list[Effect]:
        """The time has come, or it has not: then nothing happens."""
        self._enter(now_ms)
        if self.role is Role.LEADER:
            self._lead_on()
        elif self._may_stand() and self._now_ms >= self._election_due_ms:
            self._stand(pre=True)
        return self._effects

    def receive(self, now_ms: int, sender: str, message: bytes) -> list[Effect]:
        """A member's message. Anything that is no sound message is counted and dropped."""
        self._enter(now_ms)
        try:
            decoded = wire.decode(message, self.settings.cluster)
        except wire.MessageError as error:
            self._refuse("no sound message", f"{sender}: {error}")
            return self._effects
        if sender == self.name:
            self._refuse("a message of its own", sender)
        elif isinstance(decoded, wire.RequestVote) and self._promised(decoded):
            # Not even its term is looked at: a member that nobody hears may have a high one.
            pass
        elif decoded.term < self.term:
            self._on_old_term(sender, decoded)
        else:
            self._on_message(sender, decoded)
        return self._effects

    def _on_old_term(self, sender: str, message: wire.AnyMessage) -> None:
        """Tell a leader or candidate of the past what the term is, or it would never learn it."""
        cluster = self.settings.cluster
        match message:
            case wire.RequestVote():
                self._send(sender, wire.Vote(cluster, self.term, False, message.pre))
            case wire.Append() | wire.SnapshotChunk():
                # Its round is not answered: nothing of this term may count in that one.
                self._send(sender, wire.Appended(cluster, self.term, 0, 0, False))
            case _:
                pass

    def _on_message(self, sender: str, message: wire.AnyMessage) -> None:
        if message.term > self.term and not self._asks_only(message):
            leads = isinstance(message, wire.Append | wire.SnapshotChunk)
            self._become_follower(message.term, sender if leads else None)
        match message:
            case wire.Append():
                self._on_append(sender, message)
            case wire.Appended():
                self._on_appended(sender, message)
            case wire.RequestVote():
                self._on_request_vote(sender, message)
            case wire.Vote():
                self._on_vote(sender, message)
            case wire.SnapshotChunk():
                self._on_snapshot_chunk(sender, message)
            case wire.SnapshotProgress():
                self._on_snapshot_progress(sender, message)
            case wire.TimeoutNow():
                self._on_timeout_now(sender, message)

    @staticmethod
    def _asks_only(message: wire.AnyMessage) -> bool:
        """Whether a message's term is one that does not exist yet: of a pre-vote, or one that was
        granted."""
        if isinstance(message, wire.Vote):
            return message.pre and message.granted
        return isinstance(message, wire.RequestVote)

    @property
    def level(self) -> int:
        """The newest version of the messages that all members read, as far as a leader knows."""
        others = (progress.reads for progress in self._others.values())
        return min([wire.WIRE_VERSION, *others])

    def status(self, now_ms: int) -> Status:
        """What people and metrics want to know."""
        peers = {
            name: PeerStatus(
                match=progress.match,
                caught_up=progress.flow is Flow.STREAM and progress.match >= self.commit,
                silent_ms=max(0, now_ms - progress.heard_ms),
                reads=progress.reads,
                snapshot=None
                if progress.snapshot is None
                else (progress.taken, len(progress.snapshot.data)),
            )
            for name, progress in self._others.items()
        }
        return Status(
            name=self.name,
            role=str(self.role),
            term=self.term,
            leader=self.leader,
            commit=self.commit,
            first_index=self.log.base_index + 1,
            last_index=self.log.last_index,
            snapshot_index=self._snapshot.index if self._snapshot else 0,
            configuration=self.configuration,
            reads=wire.WIRE_VERSION,
            level=self.level if self.role is Role.LEADER else None,
            peers=peers,
            refused=dict(self.refused),
        )
