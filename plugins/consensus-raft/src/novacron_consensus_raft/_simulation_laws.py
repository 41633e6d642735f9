"""The laws of raft, checked on what members make durable and hand out.

They are those of the paper's figure 3, named as there. Everything is looked at in the order in
which it becomes true outside of a core: a save when it is on the disk, a commit when it is applied.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Laws:
    """What all members together have shown so far."""

    def __init__(self) -> None:
        self.leaders: dict[int, str] = {}
        # Each entry ever saved, by index and term: its bytes, and the term of the one before it.
        self._entries: dict[tuple[int, int], tuple[bytes, int | None]] = {}
        # By member: the term of each entry it holds.
        self._logs: dict[str, dict[int, int]] = {}
        # What was applied first at each index, by whom, in which term of theirs.
        self._applied: dict[int, tuple[bytes, str, int]] = {}
        self.highest = 0

    def leads(self, node: str, core: Any) -> None:
        """A member believes that it was elected."""
        known = self.leaders.setdefault(core.term, node)
        assert known == node, f"election safety: {known} and {node} both lead in term {core.term}"
        for index, (command, _, term) in self._applied.items():
            if term >= core.term or index <= core.log.base_index:
                continue
            there = index <= core.log.last_index and core.log.entry(index).data == command
            assert there, (
                f"leader completeness: {node} leads in term {core.term} without entry {index}, "
                f"which was committed in term {term}"
            )

    def saved(self, node: str, records: tuple[bytes, ...], *, replaces: bool) -> None:
        """A member has made records durable."""
        log = self._logs.setdefault(node, {})
        if replaces:
            log.clear()
        for record in records:
            if record[:1] == b"s":
                snapshot = msgspec.msgpack.decode(record[1:])
                log[snapshot[0]] = snapshot[1]
            elif record[:1] == b"e":
                index, term = msgspec.msgpack.decode(record[1:])[:2]
                self._entry(node, log, index, term, record)

    def _entry(self, node: str, log: dict[int, int], index: int, term: int, record: bytes) -> None:
        last = index
        while last in log:
            del log[last]
            last += 1
        before = log.get(index - 1)
        log[index] = term
        known, previous = self._entries.setdefault((index, term), (record, before))
        same = known == record and (None in (before, previous) or before == previous)
        assert same, f"log matching: {node} has another entry {index} of term {term}, or before it"

    def recovered(self, node: str, records: list[bytes]) -> None:
        """A member begins anew with what is durable."""
        self._logs.pop(node, None)
        self.saved(node, tuple(records), replaces=True)

    def applied(self, node: str, term: int, index: int, command: bytes) -> None:
        """A member's state machine has got a command."""
        known, first, _ = self._applied.setdefault(index, (command, node, term))
        assert known == command, f"state machine safety: {first} and {node} differ at {index}"
        self.highest = max(self.highest, index)
