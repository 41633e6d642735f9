"""The digest of a memory that changes little at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from blake3 import blake3
from novacron import Buffer


class ChunkDigests:
    """BLAKE3 over the BLAKE3 of each MiB: after a change only what changed is hashed again.

    It begins as the digests of zeroed memory.
    """

    CHUNK: Final = 1 << 20

    def __init__(self, memory_bytes: int) -> None:
        whole, rest = divmod(memory_bytes, self.CHUNK)
        self._digests = [blake3(bytes(self.CHUNK)).digest()] * whole
        if rest:
            self._digests.append(blake3(bytes(rest)).digest())
        self._stale: set[int] = set()

    @property
    def stale_bytes(self) -> int:
        return len(self._stale) * self.CHUNK

    def touch(self, chunks: Iterable[int]) -> None:
        """Something in these chunks was written."""
        self._stale.update(chunks)

    def touch_all(self) -> None:
        self._stale.update(range(len(self._digests)))

    def refresh(self, memory: Buffer) -> None:
        """Hash again what was touched."""
        view = memoryview(memory)
        for chunk in sorted(self._stale):
            start = chunk * self.CHUNK
            self._digests[chunk] = blake3(view[start : start + self.CHUNK]).digest()
        self._stale.clear()

    def root(self) -> bytes:
        """The digest of all; `refresh` first."""
        return blake3(b"".join(self._digests)).digest()
