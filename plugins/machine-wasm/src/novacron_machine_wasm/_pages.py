"""What is done to many pages at once: compare, gather, scatter, tag. No Python per page."""

from __future__ import annotations

import secrets
import struct
from typing import Final

import numpy as np
from blake3 import blake3
from novacron import Buffer, PeerProtocolError
from novacron_native_pages import changed_pages, implementation
from numpy.typing import NDArray

PAGE: Final = 4096
BATCH_PAGES: Final = 256
KERNELS: Final = implementation()

Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]
Tags = NDArray[np.uint64]


def changed(current: Bytes, shadow: Bytes) -> Indices:
    """The numbers of the pages that differ. Both are whole pages of the same length."""
    return changed_pages(shadow.data, current.data, PAGE).astype(np.int64)


def gather(memory: Bytes, pages: Indices) -> Bytes:
    """Copies of the pages, one after the other."""
    return memory.reshape(-1, PAGE).take(pages, axis=0).reshape(-1)


def scatter(memory: Bytes, pages: Indices, contents: Bytes) -> None:
    """Write the contents of the pages to their places."""
    memory.reshape(-1, PAGE)[pages] = contents.reshape(-1, PAGE)


class Tagger:
    """Tags of 64 bits that tell pages apart, from a seed that the guest cannot know.

    Two different pages get the same tag with probability 2**-64 (two multilinear hashes with
    random keys, the upper half of each). A tag finds, it does not prove: the digest of the whole
    memory does.
    """

    def __init__(self, seed: int) -> None:
        keys = blake3(b"novacron page tags" + seed.to_bytes(8, "little")).digest(
            length=2 * 8 * PAGE // 4
        )
        self._keys = np.frombuffer(keys, "<u8").reshape(-1, 2)

    def tags(self, memory: Bytes) -> Tags:
        """One tag per page."""
        tags = np.empty(len(memory) // PAGE, np.uint64)
        step = 256 * PAGE
        for start in range(0, len(memory), step):
            words = memory[start : start + step].view("<u4").reshape(-1, PAGE // 4)
            halves = (words.astype(np.uint64) @ self._keys) >> np.uint64(32)
            first = start // PAGE
            tags[first : first + len(halves)] = (halves[:, 0] << np.uint64(32)) | halves[:, 1]
        return tags


_HAVE = struct.Struct("<8sQQ")
_MAGIC: Final = b"NCWASM\x00\x01"


def pack_have(memory: Bytes) -> bytes:
    """What a destination holds already, a tag per page, for the source to compare with."""
    seed = secrets.randbits(64)
    tags = Tagger(seed).tags(memory)
    return _HAVE.pack(_MAGIC, seed, len(tags)) + tags.astype("<u8").tobytes()


def unpack_have(have: Buffer, memory_bytes: int) -> tuple[int, Tags]:
    """The seed and the tags. Raises PeerProtocolError; the input is hostile."""
    count = memory_bytes // PAGE
    if len(have) != _HAVE.size + 8 * count:
        raise PeerProtocolError(
            f"the destination's list of pages is {len(have)} bytes long, not "
            f"{_HAVE.size + 8 * count}"
        )
    magic, seed, claimed = _HAVE.unpack_from(have)
    if magic != _MAGIC or claimed != count:
        raise PeerProtocolError("the destination's list of pages is of a kind not known here")
    return seed, np.frombuffer(have, "<u8", offset=_HAVE.size).astype(np.uint64)


class ChunkDigests:
    """BLAKE3 over the BLAKE3 of each MiB: after a change only what changed is hashed again.

    It begins as the digests of zeroed memory.
    """

    CHUNK: Final = 1 << 20
    _PAGES: Final = CHUNK // PAGE

    def __init__(self, memory_bytes: int) -> None:
        whole, rest = divmod(memory_bytes, self.CHUNK)
        self._digests = [blake3(bytes(self.CHUNK)).digest()] * whole
        if rest:
            self._digests.append(blake3(bytes(rest)).digest())
        self._stale = np.zeros(len(self._digests), bool)

    @property
    def stale_bytes(self) -> int:
        return int(self._stale.sum()) * self.CHUNK

    def touch(self, pages: Indices) -> None:
        """These pages were written."""
        self._stale[pages // self._PAGES] = True

    def touch_all(self) -> None:
        self._stale[:] = True

    def refresh(self, memory: Bytes) -> None:
        """Hash again what was touched."""
        for chunk in np.flatnonzero(self._stale).tolist():
            start = chunk * self.CHUNK
            self._digests[chunk] = blake3(memory[start : start + self.CHUNK].data).digest()
        self._stale[:] = False

    def root(self) -> bytes:
        """The digest of all; `refresh` first."""
        return blake3(b"".join(self._digests)).digest()


def fill_pattern(nbytes: int, seed: bytes) -> Bytes:
    """Bytes such as a busy machine holds: five eighths words, the rest noise. Same for a seed."""
    words = np.frombuffer(blake3(b"words" + seed).digest(length=256 * 8), "<u8")
    rows = -(-nbytes // 64)
    raw = np.frombuffer(blake3(b"noise" + seed).digest(length=rows * 32), np.uint8)
    block = np.empty((rows, 8), np.uint64)
    block[:, :5] = words[raw.reshape(rows, 32)[:, :5]]
    block[:, 5:] = raw.view(np.uint64).reshape(rows, 4)[:, 1:]
    return block.view(np.uint8).reshape(-1)[:nbytes]
