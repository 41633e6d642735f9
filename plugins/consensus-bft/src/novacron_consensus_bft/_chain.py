"""The blocks a member holds: the committed ones in order, and the tree of those that may follow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from attrs import frozen

from novacron_consensus_bft._wire import Block, Header, sha256


@frozen
class Held:
    """A block with the bytes it came in and its leader's signature."""

    raw: bytes
    block: Block
    signature: bytes
    digest: bytes

    @classmethod
    def of(cls, raw: bytes, block: Block, signature: bytes) -> Held:
        return cls(raw, block, signature, sha256(raw))

    def header(self) -> Header:
        b = self.block
        return Header(b.era, b.view, b.height, self.digest, self.signature)


class Chain:
    """See the module.

    Attributes:
        head: Digest of the newest committed block, or of the present era's root.
        position: Of the newest committed block.
        committed: The committed blocks that are still held, oldest first.
        tree: Blocks that build on the head and are not committed, by digest.
    """

    def __init__(self, head: bytes, position: int = 0) -> None:
        self.head = head
        self.position = position
        self.committed: deque[Held] = deque()
        self.tree: dict[bytes, Held] = {}
        self._places: dict[tuple[int, int], list[bytes]] = {}

    def get(self, digest: bytes) -> Held | None:
        """An uncommitted block, or the newest committed one."""
        held = self.tree.get(digest)
        if held is None and digest == self.head and self.committed:
            newest = self.committed[-1]
            return newest if newest.digest == digest else None
        return held

    def joins(self, block: Block) -> bool:
        """Whether what the block builds on is here."""
        return block.parent == self.head or block.parent in self.tree

    def at(self, view: int, height: int) -> list[Held]:
        return [self.tree[digest] for digest in self._places.get((view, height), ())]

    def add(self, held: Held) -> None:
        self.tree[held.digest] = held
        self._places.setdefault(held.block.rank, []).append(held.digest)

    def drop(self, held: Held) -> None:
        """Forget an uncommitted block, and what builds on it."""
        gone = [held]
        while gone:
            one = gone.pop()
            if self.tree.pop(one.digest, None) is not None:
                self._places[one.block.rank].remove(one.digest)
                gone += [other for other in self.tree.values() if other.block.parent == one.digest]

    def path(self, digest: bytes) -> list[Held]:
        """The uncommitted blocks up to and with that one, oldest first; empty if it is none."""
        found: list[Held] = []
        held = self.tree.get(digest)
        while held is not None:
            found.append(held)
            held = self.tree.get(held.block.parent)
        found.reverse()
        return found

    def ancestor(self, held: Held, rank: tuple[int, int]) -> bytes | None:
        """The digest of the block at that rank on the way from the head to ``held``."""
        below: Held | None = held
        while below is not None and below.block.rank > rank:
            below = self.get(below.block.parent)
        return below.digest if below is not None and below.block.rank == rank else None

    def advance(self, held: Held) -> None:
        """Commit one block that follows the head."""
        self.tree.pop(held.digest, None)
        self.committed.append(held)
        self.head = held.digest
        self.position = held.block.position

    def prune(self) -> None:
        """Forget the blocks that do not build on the head."""
        keep: dict[bytes, Held] = {}
        for held in sorted(self.tree.values(), key=lambda one: one.block.position):
            if held.block.parent == self.head or held.block.parent in keep:
                keep[held.digest] = held
        self._replace(keep)

    def begin_era(self, root: bytes) -> None:
        """Nothing of the old era that is not committed counts any more."""
        self.head = root
        self._replace({})

    def forget_before(self, position: int) -> None:
        """Let go of committed blocks below a position; never of the newest."""
        while len(self.committed) > 1 and self.committed[0].block.position < position:
            self.committed.popleft()

    def after(self, position: int) -> Iterator[Held]:
        """Committed blocks above a position."""
        return (held for held in self.committed if held.block.position > position)

    @property
    def oldest(self) -> int:
        """Position of the oldest committed block that is held; one more than the newest if none."""
        return self.committed[0].block.position if self.committed else self.position + 1

    def _replace(self, tree: dict[bytes, Held]) -> None:
        self.tree = tree
        self._places = {}
        for held in tree.values():
            self._places.setdefault(held.block.rank, []).append(held.digest)
