"""Bugs planted in the core on purpose: each breaks one rule that a law depends on.

``known`` is a seed that finds it, where that is not the first one. A change of the core or of the
simulation may move it; then all seeds are tried again, and the run takes longer.
"""

from __future__ import annotations

from typing import Final

from novacron_testkit.mutants import Mutant

_PACKAGE: Final = "novacron_consensus_acp"


def _in(module: str, name: str, before: str, after: str, *, known: int | None = None) -> Mutant:
    return Mutant(
        name, f"{_PACKAGE}.{module}", before, after, core=f"{_PACKAGE}._core", known=known
    )


MUTANTS: Final = (
    # What a switch must keep.
    _in(
        "_generations",
        "counts what the old engine says after its seal",
        "            present = generation == self.ledger.generation\n            match effect:",
        "            present = True\n            match effect:",
    ),
    _in(
        "_ledger",
        "forgets in a switch what was done",
        "        self.generation += 1\n",
        "        self.generation += 1\n        self._numbers = Numbers()\n",
        known=11,
    ),
    _in(
        "_ledger",
        "does again what was done",
        "if self._numbers.execute(*entry.key) is not Verdict.DO:",
        "if self._numbers.execute(*entry.key) is Verdict.REFUSE:",
        known=2,
    ),
    _in(
        "_ledger",
        "forgets in a snapshot what was done",
        "Numbers(state.rows)",
        "Numbers(msgspec.structs.replace(row, floor=0, above=()) for row in state.rows)",
        known=5,
    ),
    _in(
        "_ledger",
        "forgets in a snapshot what was wished",
        "        made.wishes = {name: (engine, place, why) for name, engine, place, why in "
        "state.wishes}\n",
        "",
        known=10,
    ),
    _in(
        "_generations",
        "drops in a switch what was under way",
        "        for pending in self._pending.values():\n",
        "        self._pending.clear()\n        for pending in self._pending.values():\n",
    ),
    _in(
        "_generations",
        "drops in a switch who wants to read",
        "            self._read_by_marker(list(reads.values()))",
        "            pass",
        known=3,
    ),
    _in(
        "_generations",
        "switches at one member's wish",
        "if self.ledger.wished_by(*wanted) >= self.quorum():",
        "if self.ledger.wished_by(*wanted) >= 1:",
    ),
    _in(
        "_generations",
        "counts wishes by what it believes itself",
        "if self.ledger.wished_by(*wanted) >= self.quorum():",
        "if self.ledger.wished_by(*wanted) >= 2 + len(self._olds) % 2:",
        known=11,
    ),
    _in(
        "_generations",
        "stops the old engine at the seal",
        "        self._olds[old] = self.inner\n",
        "",
    ),
    _in(
        "_core",
        "lets old engines rest while a member is behind",
        "            if self.measured.behind(generation + 1)",
        "            if generation < 0",
        known=46,
    ),
    _in(
        "_generations",
        "drops old generations that others need",
        "        if older and not self.measured.unsettled(self._settled):",
        "        if older:",
        known=3,
    ),
    _in(
        "_generations",
        "begins with the newest generation, wherever its state is",
        "first = max(settled, default=min(self._opened))",
        "first = max(self._opened)",
    ),
    _in(
        "_generations",
        "begins the new engine with the old one's records",
        "records=tuple(self._kept.get(generation, ())),",
        "records=tuple(self._kept.get(max(generation - 1, 0), ())),",
    ),
    _in(
        "_generations",
        "keeps what an engine wrote under another generation",
        "Save(tuple(encode(Inner(generation, data)) for data in records))",
        "Save(tuple(encode(Inner(max(generation - 1, 0), data)) for data in records))",
    ),
    _in(
        "_generations",
        "writes down nothing of what an engine rewrites",
        "for data in self._kept.get(number, ())]",
        "for data in ()]",
        known=1,
    ),
    # Snapshots.
    _in(
        "_generations",
        "puts the newest ledger into an older snapshot",
        "state = State(ledger.generation, self._first_ledger, snapshot)",
        "state = State(ledger.generation, self.ledger.encode(), snapshot + b'')",
        known=7,
    ),
    _in(
        "_generations",
        "keeps the ledger as it was when a snapshot came",
        "        self.ledger = Ledger.decode(state.ledger)\n        self._first",
        "        self._first",
        known=1,
    ),
    _in(
        "_generations",
        "leaves unanswered what a snapshot brought",
        "            if not self.ledger.is_new(pending.entry.key):\n",
        "            if False:\n",
        known=24,
    ),
    # Entries.
    _in(
        "_generations",
        "counts entries that their origin has not signed",
        "if key is None or not self.verifier.verify(key, said, entry.signature):",
        "if key is None:",
        known=3,
    ),
    _in(
        "_core",
        "numbers its entries anew in the same epoch",
        "        self._new_epoch(self.epoch + 1)\n",
        "        self._new_epoch(1)\n",
    ),
    _in(
        "_core",
        "does not try again what got nowhere",
        "self.settings.retry_ms\n            self._offer_all()",
        "self.settings.retry_ms",
    ),
    _in(
        "_core",
        "keeps to itself what only the leader can take",
        "Send(leader, encode(Forward(self.ledger.generation, entry)))",
        "Send(leader, encode(Forward(self.ledger.generation + 1, entry)))",
    ),
    _in(
        "_core",
        "takes what was forwarded and drops it",
        "        effects = self.inner.propose(self._now, self._inner_ticket, data)\n",
        "        effects: list[Effect] = []\n",
    ),
    _in(
        "_core",
        "serves reads from what it has",
        "        effects = self.inner.read(now_ms, self._inner_ticket)\n",
        "        from novacron_agreement import Readable\n"
        "        effects = [Readable(self._inner_ticket, 0)]\n",
    ),
    _in(
        "_core",
        "gives up reads that the engine refuses",
        "            self._read_by_marker([self._reads.pop(ticket)])\n",
        "            self._reads.pop(ticket)\n",
    ),
    _in(
        "_core",
        "never wishes for what is right",
        "        if wanted and len(self._olds) < OLD_MAX:",
        "        if False:",
    ),
)
