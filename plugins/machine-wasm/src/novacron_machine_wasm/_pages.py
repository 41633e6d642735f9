"""What is done to many pages at once: compare, gather, scatter, tag. No Python per page.

Imports numpy, which takes long: only a process whose machine moves imports this.
"""

from __future__ import annotations

import secrets
from typing import Final

import numpy as np
from blake3 import blake3
from novacron import Buffer, PeerProtocolError
from novacron_native_pages import changed_pages
from numpy.typing import NDArray

from novacron_machine_wasm import _wire as wire
from novacron_machine_wasm._digests import ChunkDigests
from novacron_machine_wasm._wire import PAGE

BATCH_PAGES: Final = 256

Bytes = NDArray[np.uint8]
Indices = NDArray[np.int64]
Tags = NDArray[np.uint64]


def as_array(memory: Buffer) -> Bytes:
    """The same memory as numpy sees it."""
    return np.frombuffer(memory, np.uint8)


def chunks_of(pages: Indices) -> list[int]:
    """The chunks of `ChunkDigests` that the pages lie in."""
    numbers: list[int] = np.unique(pages // (ChunkDigests.CHUNK // PAGE)).tolist()
    return numbers


def page_numbers(addresses: Buffer, memory_bytes: int) -> Indices:
    """The pages that a batch names. Raises PeerProtocolError; the input is hostile."""
    places = np.frombuffer(addresses, "<u8")
    if (places % PAGE).any() or (places > memory_bytes - PAGE).any():
        raise PeerProtocolError("a page lies outside the machine's memory")
    numbers = (places // PAGE).astype(np.int64)
    if len(np.unique(numbers)) != len(places):
        raise PeerProtocolError("a batch holds a page twice")
    return numbers


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


def pack_have(memory: Bytes) -> bytes:
    """What a destination holds already, a tag per page, for the source to compare with."""
    seed = secrets.randbits(64)
    tags = Tagger(seed).tags(memory)
    return wire.have_header(seed, len(tags)) + tags.astype("<u8").tobytes()


def unpack_have(have: Buffer, memory_bytes: int) -> tuple[int, Tags]:
    """The seed and the tags. Raises PeerProtocolError; the input is hostile."""
    seed = wire.check_have(have, memory_bytes)
    return seed, np.frombuffer(have, "<u8", offset=wire.HAVE.size).astype(np.uint64)
