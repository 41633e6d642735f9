"""Bugs that the simulation of raft has to find, each by breaking one rule of the core.

``known`` is a seed that finds it. A change of the core or of the simulation may move it; then the
search begins anew, and `novacron simulate raft --mutants` shows the new one.
"""

from __future__ import annotations

from typing import Final

from novacron_testkit.mutants import Mutant

_PACKAGE: Final = "novacron_consensus_raft"


def _bug(name: str, module: str, before: str, after: str, *, known: int) -> Mutant:
    return Mutant(name, f"{_PACKAGE}.{module}", before, after, f"{_PACKAGE}._core", known)


_ELECTIONS: Final = (
    _bug(
        "votes twice in a term",
        "_election",
        "message.term == self.term and self.vote in (None, sender)",
        "message.term == self.term",
        known=1,
    ),
    _bug(
        "forgets its vote when it is restarted",
        "_election",
        "                self.vote = sender\n                self._save_term()",
        "                self.vote = sender",
        known=177,
    ),
    _bug(
        "forgets its own candidacy when it is restarted",
        "_election",
        "            self.term, self.vote = term, self.name\n            self._save_term()",
        "            self.term, self.vote = term, self.name",
        known=55,
    ),
    _bug(
        "votes for a candidate that lacks entries",
        "_election",
        "complete = self.log.covered_by(message.last_index, message.last_term)",
        "complete = True",
        known=2,
    ),
    _bug(
        "compares logs by their length alone",
        "_log",
        "return (last_term, last_index) >= (self.last_term, self.last_index)",
        "return last_index >= self.last_index",
        known=36,
    ),
    _bug(
        "takes half for a majority",
        "_configuration",
        "return values[len(group) // 2]",
        "return values[(len(group) - 1) // 2]",
        known=9,
    ),
    _bug(
        "follows a leader of the past",
        "_core",
        "elif decoded.term < self.term:",
        "elif decoded.term < self.term and not isinstance(decoded, wire.Append):",
        known=209,
    ),
)

_REPLICATION: Final = (
    _bug(
        "commits entries of earlier terms by counting",
        "_replication",
        "if index > self.commit and self.log.term(index) == self.term:",
        "if index > self.commit:",
        known=134,
    ),
    _bug(
        "takes what was sent for what has arrived",
        "_progress",
        "            self.next = last_index + 1\n",
        "            self.next = last_index + 1\n            self.match = last_index\n",
        known=1,
    ),
    _bug(
        "commits what it has not compared",
        "_replication",
        "self._commit_to(min(message.commit, last))",
        "self._commit_to(min(message.commit, self.log.last_index))",
        known=1,
    ),
    _bug(
        "confirms what it has not compared",
        "_replication",
        "        self._answer(sender, message, last)\n",
        "        self._answer(sender, message, self.log.last_index)\n",
        known=1,
    ),
    _bug(
        "does not save the entries that it takes",
        "_replication",
        "            self._save(*map(entry_record, fresh))\n",
        "",
        known=1,
    ),
    _bug(
        "answers before it has saved",
        "_replication",
        "        if fresh:\n            for entry in fresh:",
        "        if fresh:\n            self._answer(sender, message, fresh[-1].index)\n"
        "            for entry in fresh:",
        known=62,
    ),
    _bug(
        "keeps its own entries where the leader's differ",
        "_log",
        "if entry.index > self.base_index and self.term(entry.index) != entry.term:",
        "if entry.index > self.last_index:",
        known=0,
    ),
    _bug(
        "lets an old message cut off newer entries",
        "_log",
        "if entry.index > self.base_index and self.term(entry.index) != entry.term:",
        "if entry.index > self.base_index:",
        known=167,
    ),
    _bug(
        "does not compare the term of the entry before",
        "_replication",
        "elif self.log.term(previous) != message.previous_term:",
        "elif self.log.term(previous) is None:",
        known=0,
    ),
    _bug(
        "answers proposals of an office that it lost",
        "_state",
        "            self._reject(ticket, Reason.UNCERTAIN)\n        self._tickets.clear()\n",
        "            pass\n",
        known=0,
    ),
)

_READS: Final = (
    _bug(
        "serves a read before a majority has answered",
        "_reads",
        "while self._asked and self._asked[0][2] <= answered:",
        "while self._asked:",
        known=0,
    ),
    _bug(
        "takes an answer to an earlier round for an answer to the read",
        "_reads",
        "            self._begin_round()\n            self._asked",
        "            self._asked",
        known=28,
    ),
    _bug(
        "serves reads before it has committed an entry of its own term",
        "_reads",
        "if not self._unasked or self.commit < self._first_of_term:",
        "if not self._unasked:",
        known=4,
    ),
    _bug(
        "votes in spite of its promise to the leader",
        "_election",
        "return self._now_ms < self._heard_leader_ms + self.settings.election_ms",
        "return False",
        known=116,
    ),
    _bug(
        "keeps its lease while it hands its office over",
        "_membership",
        "self._lease_given_up = True",
        "self._lease_given_up = False",
        known=38,
    ),
    _bug(
        "trusts its lease for too long",
        "_reads",
        "self.configuration.reached(self._answered_ms) + self.settings.lease_ms > self._now_ms",
        "self.configuration.reached(self._answered_ms) + 2000 > self._now_ms",
        known=28,
    ),
)

_SNAPSHOTS: Final = (
    _bug(
        "forgets its term when it compacts",
        "_snapshots",
        "term = term_record(self.term, self.vote)",
        "term = term_record(1, None)",
        known=10,
    ),
    _bug(
        "forgets what follows the snapshot when it compacts",
        "_snapshots",
        "replacement(header, term, snapshot, later)",
        "replacement(header, term, snapshot, ())",
        known=2,
    ),
    _bug(
        "keeps entries that contradict the snapshot it installs",
        "_snapshots",
        "if self.log.term(snapshot.index) == snapshot.term:",
        "if self.log.term(snapshot.index) is not None:",
        known=5,
    ),
    _bug(
        "installs a snapshot that is older than what it has",
        "_snapshots",
        "if message.index <= self.commit:",
        "if message.index <= 0:",
        known=5,
    ),
    _bug(
        "puts the configuration of the log's beginning into a snapshot",
        "_log",
        "return next(known for at, known in reversed(self._configurations) if at <= index)",
        "return self._configurations[0][1]",
        known=2,
    ),
)

_MEMBERS: Final = (
    _bug(
        "lets one of two majorities decide while members change",
        "_configuration",
        "return min(_median(group, value)",
        "return max(_median(group, value)",
        known=72,
    ),
    _bug(
        "changes members in one step",
        "_configuration",
        "outgoing = () if same else self.voters",
        "outgoing = ()",
        known=72,
    ),
    _bug(
        "lets the outgoing voters go before both majorities agreed",
        "_membership",
        "        if self.commit < max(self.log.configuration_index, self._first_of_term):\n"
        "            return\n        if self.configuration.joint:",
        "        if self.configuration.joint:",
        known=72,
    ),
    _bug(
        "counts learners",
        "_configuration",
        "for group in (self.voters, self.outgoing) if group",
        "for group in (self.voters + self.learners, self.outgoing) if group",
        known=115,
    ),
)

MUTANTS: Final = (*_ELECTIONS, *_REPLICATION, *_READS, *_SNAPSHOTS, *_MEMBERS)
