"""Catching up by comparing trees, when a peer's recent events do not reach back far enough.

One side asks and merges; the other only answers, and remembers nothing. Which is asked: digests of
all ranges, then of the leaves of those that differ, then the keys of the leaves that differ. What
the peer had seen when it first answered is the *target*: when all ranges are equal or merged,
everything up to the target is here, and it is adopted as seen. Until then, events up to the target
are not delivered (see `Store.held`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from attrs import define, field

from novacron_consensus_state import _records
from novacron_consensus_state._effects import Changed, Outbox
from novacron_consensus_state._freshness import Freshness
from novacron_consensus_state._messages import (
    BRANCHES,
    PAGE_BYTES_MAX,
    Compare,
    Digests,
    Event,
    State,
    States,
    Vector,
    Want,
    check_state,
)
from novacron_consensus_state._tree import Key, key_digest

if TYPE_CHECKING:
    import random

    from novacron_consensus_state._messages import After
    from novacron_consensus_state._store import Store

HAVE_MAX: Final = 2_000
WANTS_OPEN: Final = 4
TRIES_MAX: Final = 8
WAIT_LEAST_MS: Final = 300


@define
class _Session:
    """One catching up with one peer."""

    number: int
    peer: str
    began_ms: int
    wait_ms: int
    due_ms: int
    target: Vector | None = None
    tries: int = 0
    branches: set[int] = field(factory=set)  # whose leaves are asked for
    leaves: list[int] = field(factory=list)  # whose keys are still to be asked for
    open: dict[tuple[int, ...], After | None] = field(factory=dict)  # leaves that were asked for
    dirty: set[int] = field(factory=set)  # branches with a leaf that is not merged yet


class TreeSync:
    """See the module."""

    def __init__(
        self,
        store: Store,
        freshness: Freshness,
        out: Outbox,
        rng: random.Random,
        leaves_per_want: int,
    ) -> None:
        self.store = store
        self.freshness = freshness
        self.out = out
        self.rng = rng
        self.leaves_per_want = leaves_per_want
        self.session: _Session | None = None
        self.finished = 0
        self.given_up = 0

    # The side that asks.

    def begin(self, now_ms: int, peer: str, rtt_ms: float) -> None:
        """Catch up with a peer, if nothing of the kind is going on."""
        if self.session is not None:
            return
        wait_ms = int(2 * rtt_ms) + WAIT_LEAST_MS
        number = self.rng.getrandbits(52)
        self.session = _Session(number, peer, now_ms, wait_ms, now_ms + wait_ms)
        self.out.send(peer, Compare(number, []))

    def deadline_ms(self) -> int | None:
        return self.session.due_ms if self.session else None

    def tick(self, now_ms: int) -> list[tuple[Event, bytes]]:
        """Ask again for what has not come. Gives up in the end; returns what need not wait then."""
        session = self.session
        if session is None or now_ms < session.due_ms:
            return []
        session.tries += 1
        if session.tries > TRIES_MAX:
            self.out.note("sync-given-up", f"{session.peer} does not answer")
            return self.give_up()
        session.due_ms = now_ms + session.wait_ms
        if session.target is None:
            self.out.send(session.peer, Compare(session.number, []))
        elif session.branches:
            self.out.send(session.peer, Compare(session.number, sorted(session.branches)))
        else:
            for leaves, after in session.open.items():
                self._want(session, leaves, after)
        return []

    def give_up(self) -> list[tuple[Event, bytes]]:
        """End the session where it is: what was merged stays, the target is not adopted."""
        self.session = None
        self.given_up += 1
        self.store.held = {}
        return self.store.deliver_waiting()

    def compared(self, now_ms: int, sender: str, message: Digests) -> list[tuple[Event, bytes]]:
        """The peer's digests. Returns what could be delivered, if this was the end."""
        session = self._of(sender, message.session)
        if session is None:
            return []
        if session.target is None and -1 in message.digests:
            session.target = message.vector
            self.store.held = message.vector
            theirs, ours = message.digests[-1], self.store.tree.branches()
            differing = {b for b in range(BRANCHES) if theirs[b] != ours[b]}
            equal = set(range(BRANCHES)) - differing
            self.freshness.compared(session.peer, equal, session.began_ms)
            session.branches = differing
            if differing:
                self.out.send(sender, Compare(session.number, sorted(differing)))
        for branch in sorted(session.branches & set(message.digests)):
            session.branches.discard(branch)
            ours = self.store.tree.leaves(branch)
            for at, digest in enumerate(message.digests[branch]):
                if digest != ours[at]:
                    session.leaves.append(branch * BRANCHES + at)
                    session.dirty.add(branch)
            if branch not in session.dirty:
                self.freshness.compared(session.peer, [branch], session.began_ms)
        self._progress(now_ms, session)
        return self._go_on(session)

    def merged(self, now_ms: int, sender: str, message: States) -> list[tuple[Event, bytes]]:
        """Keys of the peer. Returns what could be delivered, if this was the end."""
        session = self._of(sender, message.session)
        leaves = tuple(message.leaves)
        if session is None or leaves not in session.open:
            return []
        for state in message.states:
            check_state(state)
        absent = set(message.absent)
        here = self.store.tree.keys(leaves)
        gone = [State(n, k, None, None, [], []) for n, k in here if key_digest((n, k)) in absent]
        states = [*message.states, *gone]
        if states:
            self.out.save(_records.merged(message.vector, states))
        for state in states:
            if self.store.merge(state, message.vector):
                self.out.effects.append(Changed(state.name, state.kind))
        if message.after is not None:
            session.open[leaves] = message.after
            self._want(session, leaves, message.after)
        else:
            del session.open[leaves]
            left = {leaf // BRANCHES for group in session.open for leaf in group}
            left |= {leaf // BRANCHES for leaf in session.leaves}
            self.freshness.compared(session.peer, session.dirty - left, session.began_ms)
            session.dirty &= left
        self._progress(now_ms, session)
        return self._go_on(session)

    def _of(self, sender: str, number: int) -> _Session | None:
        session = self.session
        return session if session and (session.peer, session.number) == (sender, number) else None

    def _progress(self, now_ms: int, session: _Session) -> None:
        session.tries = 0
        session.due_ms = now_ms + session.wait_ms

    def _go_on(self, session: _Session) -> list[tuple[Event, bytes]]:
        if session.branches or session.target is None:
            return []
        while session.leaves and len(session.open) < WANTS_OPEN:
            group: list[int] = []
            keys = 0
            while session.leaves and len(group) < self.leaves_per_want:
                keys += len(self.store.tree.keys(session.leaves[:1]))
                if group and keys > HAVE_MAX:
                    break
                group.append(session.leaves.pop(0))
            session.open[tuple(group)] = None
            self._want(session, group, None)
        if session.open:
            return []
        self.session = None
        self.finished += 1
        self.out.save(_records.adopted(session.target))
        return self.store.adopt(session.target)

    def _want(self, session: _Session, leaves: Iterable[int], after: After | None) -> None:
        leaves = list(leaves)
        here = self.store.tree.keys(leaves)
        have = {key_digest(key): digest for key, digest in here.items()}
        self.out.send(session.peer, Want(session.number, leaves, have, after))

    # The side that answers.

    def asked(self, sender: str, message: Compare) -> None:
        """A peer wants digests."""
        tree = self.store.tree
        if message.branches:
            found = {b: tree.leaves(b) for b in message.branches if b < BRANCHES}
        else:
            found = {-1: tree.branches()}
        self.out.send(sender, Digests(message.session, dict(self.store.vector), found))

    def wanted(self, sender: str, message: Want) -> None:
        """A peer wants the keys in which it differs."""
        keys = self.store.tree.keys(message.leaves)
        absent: list[bytes] = []
        if message.after is None:
            absent = sorted(set(message.have) - {key_digest(key) for key in keys})
        differing = [key for key, d in keys.items() if message.have.get(key_digest(key)) != d]
        states: list[State] = []
        size = 0
        after: After | None = None
        for state in self._pages(differing, message.after):
            states.append(state)
            size += 64 + sum(48 + sum(map(len, path)) + len(v) for path, _, v in state.rows)
            if size > PAGE_BYTES_MAX:
                after = (state.name, state.kind, state.high)
                break
        self.out.send(
            sender,
            States(message.session, dict(self.store.vector), message.leaves, states, absent, after),
        )

    def _pages(self, keys: Iterable[Key], after: After | None) -> Iterator[State]:
        for key in keys:
            if after is None or key > (after[0], after[1]):
                yield from self.store.pages(key)
            elif key == (after[0], after[1]) and after[2] is not None:
                yield from self.store.pages(key, after[2])
