"""One key's state, and how two replicas' states of it become one.

Every data type is kept in the same shape: rows, found by a path, each with the dot of the event
that wrote it. A register has one path (), a set one per element, a map one per field and what is
below it, a list one per position. A row that is there was written and not taken away; a row whose
event has been seen and that is not there was taken away. So a removal leaves nothing behind: no
tombstones, as in the optimised OR-Set (Bieniusa et al., 2012) and the causal delta CRDTs of
Almeida, Shoker and Baquero ("Delta State Replicated Data Types", 2018).

There is one exception. A row may be taken away by an event that arrives *before* the one that wrote
it: events of the replicated log wait for nobody, and a state may be merged ahead of its events. The
dot is then *doomed* until its event arrives. That is the only tombstone here, and it goes as soon
as the event is seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from novacron_consensus_state._vector import Dot, covers

Path = tuple[bytes, ...]
Row = tuple[Path, Dot, bytes]
Rows = dict[Path, dict[Dot, bytes]]
Adds = Sequence[tuple[Path, bytes]]
Drops = Sequence[tuple[Path, Sequence[Dot]]]
# Hardly any key ever has a doomed dot, so they all share the set of none.
_NONE: Final[frozenset[tuple[Path, Dot]]] = frozenset()


class Entry:
    """The state of one key.

    Attributes:
        rows: What is there: values by the dots of the events that wrote them, by path.
        doomed: Dots that were taken away before their events were seen.
    """

    __slots__ = ("doomed", "rows")

    def __init__(self) -> None:
        self.rows: Rows = {}
        self.doomed = _NONE

    @property
    def empty(self) -> bool:
        return not self.rows and not self.doomed

    def apply(self, dot: Dot, adds: Adds, drops: Drops, seen: Mapping[str, int]) -> None:
        """What one event changes.

        Args:
            dot: The event's.
            seen: What this replica had seen before it.
        """
        for path, dots in drops:
            for gone in dots:
                self._drop(path, gone, seen)
        for path, value in adds:
            if (path, dot) in self.doomed:
                self.doomed -= {(path, dot)}
            else:
                self.rows.setdefault(path, {})[dot] = value

    def merge(
        self,
        rows: Iterable[Row],
        doomed: Iterable[tuple[Path, Dot]],
        theirs: Mapping[str, int],
        seen: Mapping[str, int],
        low: Path | None = None,
        high: Path | None = None,
    ) -> bool:
        """Take in another replica's state of this key, or the part with low < path <= high.

        Args:
            theirs: What that replica had seen.
            seen: What this one has seen.
        Returns: whether anything changed.
        """
        before = len(self.doomed)
        there = {(path, dot): value for path, dot, value in rows}
        # What they have seen and do not have, they have seen taken away.
        gone = [
            (path, dot)
            for path, row in self.rows.items()
            if (low is None or path > low) and (high is None or path <= high)
            for dot in row
            if covers(theirs, dot) and (path, dot) not in there
        ]
        for path, dot in gone:
            self._drop(path, dot, seen)
        changed = bool(gone)
        for path, dot in doomed:
            changed = self._drop(path, dot, seen) or changed
        for (path, dot), value in there.items():
            if covers(seen, dot) or (path, dot) in self.doomed:
                continue  # it is here already, or was taken away here
            row = self.rows.setdefault(path, {})
            changed = changed or dot not in row
            row[dot] = value
        return changed or len(self.doomed) != before

    def forgive(self, seen: Mapping[str, int]) -> bool:
        """Forget doomed dots whose events have been seen; whether there were any."""
        before = len(self.doomed)
        self.doomed = frozenset(one for one in self.doomed if not covers(seen, one[1]))
        return len(self.doomed) != before

    def _drop(self, path: Path, dot: Dot, seen: Mapping[str, int]) -> bool:
        row = self.rows.get(path)
        found = row is not None and row.pop(dot, None) is not None
        if row is not None and not row:
            del self.rows[path]
        if not covers(seen, dot):
            self.doomed |= {(path, dot)}
        return found

    def sorted_rows(self) -> list[Row]:
        return [
            (path, dot, row[dot]) for path, row in sorted(self.rows.items()) for dot in sorted(row)
        ]
