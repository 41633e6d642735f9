"""Linearizable reads without a log entry: by asking a majority, or by a lease.

A read must not be served by a leader that has been replaced without knowing it. So it either waits
until a majority has answered a message that was sent after the read came (read index), or relies on
a majority having answered so lately that none of them would vote for another yet (lease). Members
keep that promise in `_election`. Sections 6.4 of Ongaro's dissertation (2014) describe both.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from novacron_agreement import Effect, Readable, Reason

from novacron_consensus_raft._snapshots import Snapshots
from novacron_consensus_raft._state import Role

READS_MAX: Final = 1 << 16
_NEVER: Final = -(10**15)


class Reads(Snapshots):
    """A member that answers when a read may be served.

    Each of a leader's messages carries the number of the round it belongs to, and so does its
    answer. Rounds begin with heartbeats and with reads.
    """

    # When each round began, for as long as it may count.
    _rounds: dict[int, int]
    # Reads that no round was begun for yet, and those that wait for one: ticket, index, round.
    _unasked: list[int]
    _asked: deque[tuple[int, int, int]]
    # Whether somebody may be elected in spite of the promise: see `_membership`.
    _lease_given_up = False

    def read(self, now_ms: int, ticket: int) -> list[Effect]:
        """Ask when a linearizable read may be served. See `novacron_agreement.LogCore`."""
        self._enter(now_ms)
        if self.role is not Role.LEADER:
            self._reject(ticket, Reason.NOT_LEADER)
        elif len(self._unasked) + len(self._asked) >= READS_MAX:
            self._reject(ticket, Reason.BUSY)
        else:
            self._unasked.append(ticket)
            self._serve_reads()
        return self._effects

    def _lead_reads(self) -> None:
        """This member has become the leader: nobody has answered it yet."""
        self._round = 0
        self._rounds = {}
        self._unasked = []
        self._asked = deque()
        self._lease_given_up = False

    def _resign(self) -> None:
        for ticket in [*self._unasked, *(ticket for ticket, _, _ in self._asked)]:
            self._reject(ticket, Reason.NOT_LEADER)
        self._unasked = []
        self._asked.clear()
        super()._resign()

    def _begin_round(self) -> None:
        """What is sent from now on is answered by members that still follow now."""
        self._round += 1
        self._rounds[self._round] = self._now_ms
        oldest = self._now_ms - self.settings.election_ms
        while len(self._rounds) > 1 and self._rounds[first := next(iter(self._rounds))] < oldest:
            del self._rounds[first]

    def _serve_reads(self) -> None:
        """Serve what can be served, and ask for the rest unless a question is under way."""
        # A leader knows what is committed only once an entry of its own term is.
        if not self._unasked or self.commit < self._first_of_term:
            return
        if self._leased():
            for ticket in self._unasked:
                self._effects.append(Readable(ticket, self.commit))
            self._unasked = []
        elif not self._asked:
            self._begin_round()
            self._asked.extend((ticket, self.commit, self._round) for ticket in self._unasked)
            self._unasked = []
            for name, progress in self._others.items():
                self._send_heartbeat(name, progress)
            self._confirm()

    def _leased(self) -> bool:
        """Whether nobody else can have been elected until now."""
        if not self.settings.lease or self._lease_given_up:
            return False
        return self.configuration.reached(self._answered_ms) + self.settings.lease_ms > self._now_ms

    def _answered_ms(self, name: str) -> int:
        """When the newest round began that a member has answered."""
        if name == self.name:
            return self._now_ms
        progress = self._others.get(name)
        return self._rounds.get(progress.round, _NEVER) if progress is not None else _NEVER

    def _confirm(self) -> None:
        """An answer has come: serve the reads whose round a majority has answered."""
        if self.role is not Role.LEADER or not (self._asked or self._unasked):
            return
        answered = self.configuration.reached(self._answered)
        while self._asked and self._asked[0][2] <= answered:
            ticket, index, _ = self._asked.popleft()
            self._effects.append(Readable(ticket, index))
        if self._unasked:
            self._serve_reads()

    def _answered(self, name: str) -> int:
        if name == self.name:
            return self._round
        progress = self._others.get(name)
        return progress.round if progress is not None else 0
