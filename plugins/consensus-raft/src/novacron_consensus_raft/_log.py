"""A member's log in memory: entries after a base, and the configurations that they set.

What is here is also durable, or becomes so before anything depends on it; see `_records`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from novacron_consensus_raft._configuration import Configuration
from novacron_consensus_raft._messages import Entry, EntryKind

# What an entry takes in a message beside its data, at the most.
ENTRY_BYTES: Final = 32


class Log:
    """Entries ``base_index`` + 1 to ``last_index``.

    Attributes:
        base_index, base_term: The entry before the first one held; 0 and 0 at the beginning.
    """

    __slots__ = ("_configurations", "_entries", "base_index", "base_term")

    def __init__(self, base_index: int, base_term: int, configuration: Configuration) -> None:
        self.base_index = base_index
        self.base_term = base_term
        self._entries: list[Entry] = []
        # By the index of the entry that set it; the first one holds as of the base.
        self._configurations: list[tuple[int, Configuration]] = [(base_index, configuration)]

    @property
    def last_index(self) -> int:
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.base_term

    @property
    def configuration(self) -> Configuration:
        """The newest one, committed or not: it counts as soon as it is in the log."""
        return self._configurations[-1][1]

    @property
    def configuration_index(self) -> int:
        """The index of the entry that set it."""
        return self._configurations[-1][0]

    def configuration_at(self, index: int) -> Configuration:
        """The configuration that held when that entry was the last one."""
        return next(known for at, known in reversed(self._configurations) if at <= index)

    def term(self, index: int) -> int | None:
        """The term of an entry; None if it is not held any more, or not yet."""
        place = index - self.base_index
        if place == 0:
            return self.base_term
        if place < 0 or place > len(self._entries):
            return None
        return self._entries[place - 1].term

    def entry(self, index: int) -> Entry:
        return self._entries[index - self.base_index - 1]

    def after(self, index: int, size: int) -> tuple[Entry, ...]:
        """The entries after an index, up to that many bytes but at least one if there is any."""
        entries = self._entries
        first = place = index - self.base_index
        end = len(entries)
        while place < end:
            size -= len(entries[place].data) + ENTRY_BYTES
            if size < 0 and place > first:
                break
            place += 1
        return tuple(entries[first:place])

    def append(self, entry: Entry) -> None:
        """Put an entry at its place; if one was there, it and all after it are gone."""
        if entry.index <= self.last_index:
            self._cut(entry.index)
        self._entries.append(entry)
        if entry.kind is EntryKind.MEMBERS:
            self._configurations.append((entry.index, Configuration.decode(entry.data)))

    def fresh(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Of entries that follow a common one, those from the first that is not held already."""
        for place, entry in enumerate(entries):
            if entry.index > self.base_index and self.term(entry.index) != entry.term:
                return entries[place:]
        return ()

    def common(self, index: int, term: int) -> tuple[int, int]:
        """The last entry up to ``index`` whose term is not above ``term``: index and term.

        Neither side's entries between can be common, so one exchange skips a whole term.
        """
        index = min(index, self.last_index)
        while index > self.base_index and self._entries[index - self.base_index - 1].term > term:
            index -= 1
        if self.base_term > term and index == self.base_index:
            index -= 1  # not held any more
        return index, self.term(index) or 0

    def covered_by(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends there has everything that may be committed of this one."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def compact(self, index: int) -> None:
        """Forget the entries up to an index."""
        if index <= self.base_index:
            return
        term = self.term(index)
        assert term is not None, f"the log ends at {self.last_index}, before {index}"
        configuration = self.configuration_at(index)
        del self._entries[: index - self.base_index]
        self.base_index, self.base_term = index, term
        later = [(at, known) for at, known in self._configurations if at > index]
        self._configurations = [(index, configuration), *later]

    def _cut(self, index: int) -> None:
        del self._entries[index - self.base_index - 1 :]
        while self._configurations[-1][0] >= index and len(self._configurations) > 1:
            self._configurations.pop()
