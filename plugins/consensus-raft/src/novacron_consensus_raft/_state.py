"""What a member is at a moment, durable and not, and the moves between its roles.

The classes of a core build on each other: `_state` (what a member is), `_replication` (entries),
`_snapshots`, `_reads`, `_membership`, `_election`, and `_core`, which is the whole.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from novacron_agreement import Effect, Note, Reason, Rejected, Save, Send

from novacron_consensus_raft._configuration import Configuration
from novacron_consensus_raft._log import Log
from novacron_consensus_raft._messages import Message, encode
from novacron_consensus_raft._progress import Progress
from novacron_consensus_raft._records import Recovered, Snapshot, term_record
from novacron_consensus_raft._settings import RaftSettings

# By what share of election_ms one member may wait longer than another before it stands.
SPREAD: Final = 0.5


class Role(StrEnum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"  # asks whether it would be elected; changes nobody's term
    CANDIDATE = "candidate"
    LEADER = "leader"


class Member(ABC):
    """The state of a member, and what all its parts use.

    Attributes:
        name: This member's.
        term: The newest term that it knows; terms only rise.
        vote: Whom it gave its vote in this term.
        role: What it is in this term.
        leader: Who leads in this term, if it knows.
        log: Its entries.
        commit: Everything up to this index is committed, and was handed out.
        refused: How many messages were dropped, by reason.
    """

    def __init__(
        self, name: str, recovered: Recovered, settings: RaftSettings, rng: random.Random
    ) -> None:
        self.name = name
        self.settings = settings
        self.term = recovered.term
        self.vote = recovered.vote
        self.log: Log = recovered.log
        self.commit = recovered.log.base_index
        self.role = Role.FOLLOWER
        self.leader: str | None = None
        self.refused: Counter[str] = Counter()
        self._rng = rng
        self._now_ms = 0
        self._effects: list[Effect] = []
        self._snapshot: Snapshot | None = recovered.snapshot
        self._heard_leader_ms = 0
        self._election_due_ms = 0
        # Of a candidate: who answered, and how.
        self._votes: dict[str, bool] = {}
        # Of a leader.
        self._others: dict[str, Progress] = {}
        self._tickets: dict[int, int] = {}  # by index
        self._pending_bytes = 0
        self._first_of_term = 0  # the index of its own first entry

    @property
    def configuration(self) -> Configuration:
        """The newest one in the log: it counts from there on, committed or not."""
        return self.log.configuration

    @property
    def members(self) -> Mapping[str, str]:
        """All that this member may have to speak to, itself included, with their addresses."""
        known = self.configuration
        everybody = known.members.union(self._others)
        return {name: known.addresses.get(name, "") for name in sorted(everybody)}

    # Effects.

    def _enter(self, now_ms: int) -> None:
        """A call begins. Time that seems to go back stands still."""
        self._now_ms = max(self._now_ms, now_ms)
        self._effects = []

    def _send(self, to: str, message: Message) -> None:
        self._effects.append(Send(to, encode(message)))

    def _save(self, *records: bytes) -> None:
        """Saves that follow each other become one, so that one sync is enough."""
        if self._effects and isinstance(last := self._effects[-1], Save):
            self._effects[-1] = Save(last.records + records, last.replaces)
        else:
            self._effects.append(Save(records))

    def _save_term(self) -> None:
        self._save(term_record(self.term, self.vote))

    def _note(self, kind: str, detail: str) -> None:
        self._effects.append(Note(kind, detail))

    def _reject(self, ticket: int, reason: str) -> None:
        self._effects.append(Rejected(ticket, reason, self.leader))

    # Roles.

    def _become_follower(self, term: int, leader: str | None) -> None:
        """Follow in a term, this one or a newer one; whoever led or stood before does no more."""
        if term > self.term:
            self.term, self.vote = term, None
            self._save_term()
        was, self.role = self.role, Role.FOLLOWER
        if leader is not None and leader != self.leader:
            self._note("follower", f"{leader} leads in term {term}")
        self.leader = leader
        if was is Role.LEADER:
            self._note("resigned", f"{self.name} leads no more; the term is {self.term}")
            self._resign()
        if was is not Role.FOLLOWER:
            self._wait_for_leader()

    def _resign(self) -> None:
        """What a leader had promised comes to nothing here; it may still be kept by another."""
        for ticket in self._tickets.values():
            self._reject(ticket, Reason.UNCERTAIN)
        self._tickets.clear()
        self._others.clear()
        self._pending_bytes = 0

    def _heard_from(self, leader: str) -> None:
        """This term's leader has said something."""
        if self.role is not Role.FOLLOWER or self.leader != leader:
            self._become_follower(self.term, leader)
        self._heard_leader_ms = self._now_ms
        self._wait_for_leader()

    def _wait_for_leader(self) -> None:
        """Stand for election if nothing is heard for a time that differs between members."""
        patience = self.settings.election_ms * (1 + SPREAD * self._rng.random())
        self._election_due_ms = self._now_ms + int(patience)

    def _refuse(self, why: str, sender: str) -> None:
        """A message that the rules forbid, or that means nothing here, is counted and dropped."""
        self.refused[why] += 1
        if self.refused[why] == 1:
            self._note("refused", f"{why}, from {sender}")

    # What the parts above this one do.

    @abstractmethod
    def _configuration_committed(self, index: int) -> None: ...
