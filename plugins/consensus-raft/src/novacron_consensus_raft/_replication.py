"""Entries: how a leader sends them, a follower takes them, and both learn what is committed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from novacron_agreement import COMMAND_BYTES_MAX, Commit, Effect, Reason

from novacron_consensus_raft._messages import Append, Appended, Entry, EntryKind
from novacron_consensus_raft._progress import Flow, Progress
from novacron_consensus_raft._records import entry_record
from novacron_consensus_raft._state import Member, Role


class Replication(Member):
    """A member that replicates entries."""

    _round = 0  # see `_reads`

    # The leader's side.

    def propose(self, now_ms: int, ticket: int, command: bytes) -> list[Effect]:
        """Ask for a command to be committed. See `novacron_agreement.LogCore`."""
        return self.propose_all(now_ms, ((ticket, command),))

    def propose_all(self, now_ms: int, proposals: Iterable[tuple[int, bytes]]) -> list[Effect]:
        """The same for several tickets and commands, in their order, in as few messages as can be.

        A driver that gathers what comes while it syncs should use this.
        """
        self._enter(now_ms)
        entries: list[Entry] = []
        for ticket, command in proposals:
            refusal = self._unwilling(command)
            if refusal is not None:
                self._reject(ticket, refusal)
                continue
            entry = self._put(EntryKind.COMMAND, command)
            self._tickets[entry.index] = ticket
            entries.append(entry)
        if entries:
            self._replicate(entries)
        return self._effects

    def _unwilling(self, command: bytes) -> str | None:
        """Why a command is not taken."""
        if self.role is not Role.LEADER:
            return Reason.NOT_LEADER
        if len(command) > COMMAND_BYTES_MAX:
            return Reason.TOO_LARGE
        full = self._pending_bytes + len(command) > self.settings.pending_bytes
        if self._handing_over() or (full and self._pending_bytes):
            return Reason.BUSY
        return None

    def _put(self, kind: EntryKind, data: bytes = b"") -> Entry:
        """A new entry of this leader, in its log; `_replicate` is to follow."""
        entry = Entry(self.log.last_index + 1, self.term, kind, data)
        self.log.append(entry)
        self._pending_bytes += len(data)
        return entry

    def _replicate(self, entries: Iterable[Entry]) -> None:
        """Send new entries, then save them: the disks of all members work at the same time."""
        for name, progress in self._others.items():
            self._send_entries(name, progress)
        self._save(*map(entry_record, entries))
        # The save stands before all that follows, so this member has them now.
        self._advance()

    def _send_entries(self, name: str, progress: Progress) -> None:
        """All that the member lacks and the window allows."""
        settings = self.settings
        while progress.room(settings.inflight, settings.inflight_bytes):
            previous = progress.next - 1
            if previous == self.log.last_index:
                return
            term = self.log.term(previous)
            if term is None:
                self._offer_snapshot(name, progress)
                return
            entries = self.log.after(previous, settings.append_bytes)
            self._send_append(name, progress, previous, term, entries)
            size = sum(len(entry.data) for entry in entries)
            progress.sent_entries(entries[-1].index, size)

    def _send_append(
        self,
        name: str,
        progress: Progress,
        previous: int,
        previous_term: int,
        entries: tuple[Entry, ...] = (),
    ) -> None:
        self._send(
            name,
            Append(
                self.settings.cluster,
                self.term,
                self._round,
                previous,
                previous_term,
                self.commit,
                entries,
            ),
        )

    def _send_heartbeat(self, name: str, progress: Progress) -> None:
        """Without entries. It follows what was sent last, so a refusal tells what was lost."""
        progress.asked = False
        previous = progress.next - 1
        term = None if progress.flow is Flow.SNAPSHOT else self.log.term(previous)
        if term is None:
            # Nothing is known to be common but the beginning, and that always is.
            self._send_append(name, progress, 0, 0)
            self._repeat_snapshot(name, progress)
        else:
            self._send_append(name, progress, previous, term)

    def _on_appended(self, sender: str, message: Appended) -> None:
        progress = self._heard_of(sender, message.round)
        if progress is None:
            return
        progress.reads = message.reads
        if message.taken:
            self._on_taken(sender, progress, message)
        else:
            self._on_refused(sender, progress, message)
        self._confirm()

    def _heard_of(self, sender: str, answered: int) -> Progress | None:
        """A leader has an answer of a member in this term."""
        progress = self._others.get(sender) if self.role is Role.LEADER else None
        if progress is None:
            return None
        if answered > self._round:
            self._refuse("an answer to what was never sent", sender)
            return None
        progress.heard_ms = self._now_ms
        progress.round = max(progress.round, answered)
        return progress

    def _on_taken(self, sender: str, progress: Progress, message: Appended) -> None:
        if message.index > self.log.last_index:
            self._refuse("an acknowledgement of what does not exist", sender)
            return
        news = progress.accepted(message.index)
        if progress.snapshot is not None and progress.snapshot.index <= progress.match:
            progress.probe(progress.match + 1)
        # Once something is known to be common that this log still holds, entries can flow.
        if progress.flow is not Flow.STREAM and self.log.term(progress.match) is not None:
            progress.stream()
        if news:
            self._advance()
        if sender in self._others:  # it may have left by what was just committed
            self._send_entries(sender, progress)
            self._caught_up(sender, progress)

    def _on_refused(self, sender: str, progress: Progress, message: Appended) -> None:
        """The logs part before the place that was asked for."""
        asked = message.index
        stale = asked <= progress.match or progress.flow is Flow.SNAPSHOT
        if stale or (progress.flow is Flow.PROBE and asked != progress.next - 1):
            return
        common = min(message.hint_index, asked - 1)
        if common >= self.log.base_index:
            common, _ = self.log.common(common, message.hint_term)
        progress.probe(common + 1)
        self._send_entries(sender, progress)

    def _advance(self) -> None:
        """Commit what a majority has.

        Only an entry of its own term is committed by counting (section 5.4.2 of the paper): one of
        an earlier term may still be replaced although a majority has it. Those before come along.
        """
        index = self.configuration.reached(self._match)
        if index > self.commit and self.log.term(index) == self.term:
            self._commit_to(index)
            self._after_commit()

    def _match(self, name: str) -> int:
        if name == self.name:
            return self.log.last_index
        progress = self._others.get(name)
        return progress.match if progress is not None else 0

    # The follower's side.

    def _on_append(self, sender: str, message: Append) -> None:
        if self.role is Role.LEADER:
            self._refuse("a second leader in one term", sender)
            return
        self._heard_from(sender)
        previous = message.previous_index
        if previous < self.log.base_index:
            # All that was compacted is committed, so this leader has it too.
            self._answer(sender, message, self.commit)
        elif self.log.term(previous) != message.previous_term:
            self._answer_refusing(sender, message)
        else:
            self._take(sender, message)

    def _take(self, sender: str, message: Append) -> None:
        fresh = self.log.fresh(message.entries)
        if fresh and fresh[0].index <= self.commit:
            self._refuse("entries that contradict what is committed", sender)
            return
        if fresh:
            for entry in fresh:
                self.log.append(entry)
            self._save(*map(entry_record, fresh))
        # What stands beyond these entries here may be of an old leader's: it is not confirmed.
        last = message.previous_index + len(message.entries)
        self._commit_to(min(message.commit, last))
        self._answer(sender, message, last)

    def _answer(self, sender: str, message: Append, index: int) -> None:
        cluster = self.settings.cluster
        self._send(sender, Appended(cluster, self.term, message.round, index, True))

    def _answer_refusing(self, sender: str, message: Append) -> None:
        previous = message.previous_index
        index, term = self.log.common(previous, message.previous_term)
        cluster = self.settings.cluster
        answer = Appended(cluster, self.term, message.round, previous, False, index, term)
        self._send(sender, answer)

    # Both.

    def _commit_to(self, index: int) -> None:
        """Hand out what is committed now, each entry once and in order."""
        while self.commit < index:
            self.commit += 1
            entry = self.log.entry(self.commit)
            if self.role is Role.LEADER:
                self._pending_bytes -= len(entry.data)
            if entry.kind is EntryKind.COMMAND:
                ticket = self._tickets.pop(entry.index, None)
                self._effects.append(Commit(entry.index, entry.data, ticket))
            elif entry.kind is EntryKind.MEMBERS:
                self._configuration_committed(entry.index)

    # What the parts above this one do.

    @abstractmethod
    def _offer_snapshot(self, name: str, progress: Progress) -> None: ...

    @abstractmethod
    def _repeat_snapshot(self, name: str, progress: Progress) -> None: ...

    @abstractmethod
    def _confirm(self) -> None: ...

    @abstractmethod
    def _after_commit(self) -> None: ...

    @abstractmethod
    def _caught_up(self, name: str, progress: Progress) -> None: ...

    @abstractmethod
    def _handing_over(self) -> bool: ...
