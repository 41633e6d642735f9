"""Bugs planted on purpose; the simulation must find each.

``known`` is a seed that finds it, where that is not the first one. A change of the core or of the
simulation may move it; then all seeds are tried again, and the run takes longer.
"""

from __future__ import annotations

from typing import Final

from novacron_testkit.mutants import Mutant

_HOME: Final = "novacron_consensus_state"


def _bug(name: str, module: str, before: str, after: str, *, known: int | None = None) -> Mutant:
    return Mutant(name, f"{_HOME}.{module}", before, after, core=f"{_HOME}._replica", known=known)


MUTANTS: Final[tuple[Mutant, ...]] = (
    _bug(
        "a merge keeps what the peer has seen taken away",
        "_entry",
        "if covers(theirs, dot) and (path, dot) not in there",
        "if False and covers(theirs, dot) and (path, dot) not in there",
    ),
    _bug(
        "a merge takes away what the peer has never seen",
        "_entry",
        "if covers(theirs, dot) and (path, dot) not in there",
        "if (path, dot) not in there",
    ),
    _bug(
        "a merge brings back what was taken away here",
        "_entry",
        "if covers(seen, dot) or (path, dot) in self.doomed:",
        "if (path, dot) in self.doomed:",
    ),
    _bug(
        "a row that was taken away before it came is written all the same",
        "_entry",
        "        if not covers(seen, dot):\n            self.doomed |= {(path, dot)}",
        "        if False:\n            self.doomed |= {(path, dot)}",
        known=1,
    ),
    _bug(
        "what is doomed is not remembered when it comes",
        "_entry",
        "            if (path, dot) in self.doomed:\n                self.doomed -=",
        "            if False:\n                self.doomed -=",
        known=1,
    ),
    _bug(
        "a second add of an element gets no dot of its own",
        "_kinds",
        'for element in _distinct(values):\n        made.replace((element,), b"", rows)',
        "for element in _distinct(values):\n"
        '        if (element,) not in rows:\n            made.replace((element,), b"", rows)',
        known=2,
    ),
    _bug(
        "the last writer is whoever has the last name",
        "_kinds",
        "key=lambda dot: (row[dot][:8], dot)",
        "key=lambda dot: dot",
        known=2,
    ),
    _bug(
        "a register keeps what its writer has replaced",
        "_kinds",
        "made.replace((), pack(values[0]), rows)",
        "made.adds.append(((), pack(values[0])))",
        known=1,
    ),
    _bug(
        "a counter forgets what it had counted",
        "_kinds",
        "up, down = up + before[0], down + before[1]",
        "pass",
    ),
    _bug(
        "an insertion goes to the beginning of the list",
        "_kinds",
        'low = places[index - 1][0] if index else b""',
        'low = b""',
        known=1,
    ),
    _bug(
        "elements that are inserted together get one position",
        "_positions",
        "first + _PAIR.pack(n * _STEP, tag)",
        "first + _PAIR.pack(_STEP, tag)",
        known=1,
    ),
    _bug(
        "an event is delivered before its causes",
        "_store",
        "            and at_least(self.vector, event.deps)\n",
        "",
    ),
    _bug(
        "an event is delivered before those of its origin before it",
        "_store",
        "self.vector.get(event.origin, 0) == event.number - 1",
        "self.vector.get(event.origin, 0) < event.number",
    ),
    _bug(
        "doomed rows stay after states were taken over",
        "_store",
        "            if entry.forgive(self.vector):",
        "            if False and entry.forgive(self.vector):",
        known=4,
    ),
    _bug(
        "events that were never seen here are said to be at hand",
        "_store",
        "        self.history.skipped(news)\n",
        "",
        known=23,
    ),
    _bug(
        "recent events are said to reach back further than they do",
        "_history",
        "self._floor.get(origin, 0) <= after.get(origin, 0)",
        "True or self._floor.get(origin, 0) <= after.get(origin, 0)",
    ),
    _bug(
        "a picture is called fresh before what it lacks has come",
        "_freshness",
        "        if at_least(seen, need):\n            one.at_ms = at_ms",
        "        if True:\n            one.at_ms = at_ms",
    ),
    _bug(
        "a relay's picture of others is taken for fresh",
        "_spread",
        "answer.stamp - age_ms",
        "answer.stamp",
    ),
    _bug(
        "an answer is taken for as fresh as its arrival",
        "_spread",
        "self.freshness.promised(sender, answer.stamp, answer.vector, self.store.vector)",
        "self.freshness.promised(sender, now_ms, answer.vector, self.store.vector)",
    ),
    _bug(
        "a range is called fresh while its keys are still to come",
        "_sync",
        "            left |= {leaf // BRANCHES for leaf in session.leaves}\n",
        "            left = set()\n",
        known=2,
    ),
    _bug(
        "nobody asks for what is missing",
        "_spread",
        "        self._lacking[origin] = (max(most, number), since)",
        "        pass",
    ),
    _bug(
        "the member that was asked to write counts twice for a majority",
        "_requests",
        "        def ready(now_ms: int) -> Answer | None:\n"
        "            if len(have()) + 1 < self.member.topology.majority:",
        "        def ready(now_ms: int) -> Answer | None:\n"
        "            if len(have()) + 2 < self.member.topology.majority:",
        known=5,
    ),
    _bug(
        "the member that was asked to read counts twice for a majority",
        "_requests",
        "            if len(from_whom) + 1 < self.member.topology.majority:",
        "            if len(from_whom) + 2 < self.member.topology.majority:",
        known=15,
    ),
    _bug(
        "a session's token is not looked at",
        "_requests",
        "        if at_least(self.store.vector, need):\n            begin(now_ms)\n            ret",
        "        if True:\n            begin(now_ms)\n            ret",
        known=7,
    ),
    _bug(
        "a strong read does not wait for what the log has decided",
        "_requests",
        "            if self.store.vector.get(LOG_ORIGIN, 0) < outcome.number:",
        "            if False:",
        known=2,
    ),
    _bug(
        "an event does not tell its causes",
        "_member",
        "if origin != self.origin and seen > self._said.get(origin, 0)",
        "if False and origin != self.origin and seen > self._said.get(origin, 0)",
    ),
    _bug(
        "an event is sent that is not durable",
        "_member",
        "            self.out.save(_records.EVENT + raw)\n",
        "            if event.origin != self.origin:\n"
        "                self.out.save(_records.EVENT + raw)\n",
    ),
    _bug(
        "states that were taken over are not durable",
        "_sync",
        "            self.out.save(_records.merged(message.vector, states))",
        "            pass",
    ),
    _bug(
        "a snapshot does not say what was seen",
        "_records",
        "    yield adopted(store.vector)",
        "    yield adopted({})",
        known=1,
    ),
    _bug(
        "a snapshot forgets doomed rows and large keys' ends",
        "_records",
        "            part.append(state)\n",
        "            part.append(state) if len(state.rows) < 3 else None\n",
        known=1,
    ),
    _bug(
        "a strong write that is asked for twice takes effect twice",
        "_strong",
        "            asked.client, 1, work,",
        '            "", 1, work,',
        known=4,
    ),
    _bug(
        "a strong write replaces only what its writer saw",
        "_strong",
        "change = _kinds.change(asked.kind, entry.rows, asked.operation, values, writer)",
        "change = _kinds.change(asked.kind, {}, asked.operation, values, writer)",
        known=18,
    ),
    _bug(
        "a strong read is served by whoever is asked",
        "_strong",
        "            self._answer(now_ms, ticket, self.machine.count)",
        "            self._answer(now_ms, ticket, 0)",
        known=2,
    ),
    _bug(
        "a branch's digest is not brought up to date",
        "_tree",
        "            self._branches[leaf // BRANCHES] = self._root = None",
        "            self._root = None",
    ),
    _bug(
        "states are adopted before all of them came",
        "_sync",
        "        if session.open:\n            return []",
        "        if False:\n            return []",
    ),
    _bug(
        "keys that the peer does not have any more stay",
        "_sync",
        "        states = [*message.states, *gone]",
        "        states = [*message.states]",
    ),
)
