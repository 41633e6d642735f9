"""Digests over all keys, by ranges of their hashes, so that two replicas find what differs.

4096 leaves below 64 branches below one root (a Merkle tree, as anti-entropy in Dynamo has it:
DeCandia et al., SOSP 2007). A key's place is the upper bits of its hash. A leaf is the sum of its
keys' digests, so one key's change costs one key's work; digests are brought up to date only when
somebody asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from novacron_consensus_state._messages import BRANCHES, DIGEST_BYTES, LEAVES

Key = tuple[str, str]  # name and type
_MASK: Final = (1 << (8 * DIGEST_BYTES)) - 1


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


@lru_cache(1 << 16)
def key_digest(key: Key) -> bytes:
    """What names a key to a peer that may not have it."""
    return _hash(f"{key[1]}\0{key[0]}".encode())


def leaf_of(key: Key) -> int:
    """The leaf that a key is in."""
    return int.from_bytes(key_digest(key)[:2], "big") >> 4


def range_of(key: Key) -> int:
    """The range (branch) that a key is in, for which staleness is measured."""
    return leaf_of(key) // BRANCHES


class DigestTree:
    """See the module.

    Args:
        state_of: A key's state in canonical bytes; empty if there is none.
    """

    __slots__ = ("_branches", "_dirty", "_leaves", "_root", "_state_of", "_sums")

    def __init__(self, state_of: Callable[[Key], bytes]) -> None:
        self._state_of = state_of
        self._leaves: dict[int, dict[Key, bytes]] = {}
        self._sums = [0] * LEAVES
        self._branches: list[bytes | None] = [None] * BRANCHES
        self._dirty: set[Key] = set()
        self._root: bytes | None = None

    def touch(self, key: Key) -> None:
        """This key's state has changed."""
        self._dirty.add(key)

    def root(self) -> bytes:
        if self._dirty or self._root is None:
            self._root = _hash(b"".join(self.branches()))
        return self._root

    def branches(self) -> list[bytes]:
        """The digests of all branches."""
        self._refresh()
        found = []
        for branch in range(BRANCHES):
            digest = self._branches[branch]
            if digest is None:
                digest = self._branches[branch] = _hash(b"".join(self._leaf_digests(branch)))
            found.append(digest)
        return found

    def leaves(self, branch: int) -> list[bytes]:
        """The digests of a branch's leaves."""
        self._refresh()
        return self._leaf_digests(branch)

    def keys(self, leaves: Iterable[int]) -> dict[Key, bytes]:
        """The keys of these leaves, sorted, with their states' digests."""
        self._refresh()
        found: dict[Key, bytes] = {}
        for leaf in leaves:
            found.update(self._leaves.get(leaf, ()))
        return dict(sorted(found.items()))

    def _leaf_digests(self, branch: int) -> list[bytes]:
        first = branch * BRANCHES
        return [
            total.to_bytes(DIGEST_BYTES, "big") for total in self._sums[first : first + BRANCHES]
        ]

    def _refresh(self) -> None:
        for key in self._dirty:
            leaf = leaf_of(key)
            keys = self._leaves.setdefault(leaf, {})
            old = keys.pop(key, None)
            state = self._state_of(key)
            total = self._sums[leaf] - (int.from_bytes(old, "big") if old else 0)
            if state:
                digest = _hash(key_digest(key) + state)
                keys[key] = digest
                total += int.from_bytes(digest, "big")
            self._sums[leaf] = total & _MASK
            self._branches[leaf // BRANCHES] = self._root = None
        self._dirty.clear()
