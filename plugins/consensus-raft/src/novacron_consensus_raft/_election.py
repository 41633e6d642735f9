"""Elections: who leads in a term, and how long a leader may believe that it does."""

from __future__ import annotations

from novacron_consensus_raft._membership import Membership
from novacron_consensus_raft._messages import EntryKind, RequestVote, TimeoutNow, Vote
from novacron_consensus_raft._progress import Progress
from novacron_consensus_raft._state import SPREAD, Role


class Elections(Membership):
    """A member that votes and stands for election."""

    _heartbeat_due_ms = 0

    def _may_stand(self) -> bool:
        return self.role is not Role.LEADER and self.name in self.configuration.deciders

    def _stand(self, *, pre: bool, transfer: bool = False) -> None:
        """Ask everybody for their vote; with ``pre`` only whether they would give it.

        The question first keeps a member that was cut off from disturbing the others with terms
        that rose while nobody heard it.
        """
        self.leader = None
        self._votes = {self.name: True}
        term = self.term + 1
        if pre:
            self.role = Role.PRE_CANDIDATE
        else:
            self.role = Role.CANDIDATE
            self.term, self.vote = term, self.name
            self._save_term()
        # Whoever fails tries again sooner than a follower would: nobody leads now.
        patience = self.settings.election_ms * SPREAD * (1 + self._rng.random())
        self._election_due_ms = self._now_ms + max(1, int(patience))
        log, cluster = self.log, self.settings.cluster
        question = RequestVote(cluster, term, log.last_index, log.last_term, pre, transfer)
        for name in sorted(self.configuration.deciders - {self.name}):
            self._send(name, question)
        self._count()

    def _on_request_vote(self, sender: str, message: RequestVote) -> None:
        """Vote at most once in a term, and for nobody who lacks what may be committed."""
        term_before = self.term
        if message.term > self.term and not message.pre:
            self._become_follower(message.term, None)
        complete = self.log.covered_by(message.last_index, message.last_term)
        if message.pre:
            granted = complete and message.term > term_before
        else:
            granted = complete and message.term == self.term and self.vote in (None, sender)
        if granted and not message.pre:
            if self.vote is None:
                self.vote = sender
                self._save_term()
            self._wait_for_leader()
        # A pre-vote that is granted answers in the term that was asked about.
        term = message.term if granted else self.term
        self._send(sender, Vote(self.settings.cluster, term, granted, message.pre))

    def _promised(self, message: RequestVote) -> bool:
        """Whether a leader was heard so lately that nobody else may be elected: it may be serving
        reads by its lease. The leader itself may have asked for this election."""
        if message.transfer:
            return False
        if self.role is Role.LEADER:
            return True
        return self._now_ms < self._heard_leader_ms + self.settings.election_ms

    def _on_vote(self, sender: str, message: Vote) -> None:
        asked = Role.PRE_CANDIDATE if message.pre else Role.CANDIDATE
        if self.role is not asked:
            return
        if message.pre and message.granted and message.term != self.term + 1:
            return
        self._votes[sender] = message.granted
        self._count()

    def _count(self) -> None:
        """See whether the election is decided, either way."""
        known = self.configuration
        if known.decided({name for name, granted in self._votes.items() if granted}):
            if self.role is Role.PRE_CANDIDATE:
                self._stand(pre=False)
            else:
                self._become_leader()
            return
        refused = {name for name, granted in self._votes.items() if not granted}
        if not known.decided(known.deciders - refused):
            self._become_follower(self.term, None)

    def _become_leader(self) -> None:
        self.role = Role.LEADER
        self.leader = self.name
        self._note("leader", f"{self.name} leads in term {self.term}")
        following = self.log.last_index + 1
        self._others = {
            name: Progress(next=following, heard_ms=self._now_ms)
            for name in sorted(self.configuration.members - {self.name})
        }
        later = range(self.commit + 1, following)
        self._pending_bytes = sum(len(self.log.entry(index).data) for index in later)
        self._lead_reads()
        self._begin_round()
        self._heartbeat_due_ms = self._now_ms + self.settings.heartbeat_ms
        # An entry of its own term, by which it commits what earlier leaders left.
        self._first_of_term = following
        self._replicate((self._put(EntryKind.NOTHING),))

    def _on_timeout_now(self, sender: str, message: TimeoutNow) -> None:
        if sender == self.leader and self.role is Role.FOLLOWER and self._may_stand():
            self._stand(pre=False, transfer=True)

    # What a leader does as time passes.

    def _lead_on(self) -> None:
        if self._now_ms >= self._quorum_due_ms():
            # A majority may follow another leader by now.
            self._note("quorum-lost", "a majority was not heard for election_ms")
            self._become_follower(self.term, None)
            return
        self._give_transfer_up()
        if self._now_ms >= self._heartbeat_due_ms:
            self._heartbeat_due_ms = self._now_ms + self.settings.heartbeat_ms
            self._begin_round()
            for name, progress in self._others.items():
                self._send_heartbeat(name, progress)

    def _quorum_due_ms(self) -> int:
        """When this leader has to give up, unless a majority is heard before."""
        return self.configuration.reached(self._heard_ms) + self.settings.election_ms

    def _heard_ms(self, name: str) -> int:
        if name == self.name:
            return self._now_ms
        progress = self._others.get(name)
        return progress.heard_ms if progress is not None else 0
