"""What a destination says that it holds, before the copy.

    1 byte version, 8 bytes seed, 4 bytes page size, 8 bytes capacity, 4 bytes number of pages of
    the baseline, 4 bytes number of all pages, 32 bytes digest of the baseline (zeros for none),
    then for each page 8 bytes: XXH64 of its content with the seed

All numbers are little-endian. The seed is made anew for each session, so that nobody can have made
two pages with one hash. The first pages are those of the baseline.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import numpy.typing as npt
from attrs import frozen
from novacron import PeerProtocolError
from novacron_native_ladder import PAGE_SIZE_MAX, PAGE_SIZE_MIN

_VERSION: Final = 1
_HEADER: Final = struct.Struct("<BQIQII32s")
HEADER_BYTES: Final = _HEADER.size
HASH_BYTES: Final = 8
DIGEST_BYTES: Final = 32
# As the kernel allows it: this much in all, and this share of the machine's memory.
OFFER_BYTES_MAX: Final = 12 << 20
MEMORY_SHARE: Final = 100


@frozen(kw_only=True)
class Offer:
    """What a destination holds.

    Attributes:
        seed: Of the hashes.
        page_size: Of what it holds; 0 if that is nothing.
        capacity_bytes: How much of the machine it will keep at most.
        baseline: The digest of a checkpoint of this very machine; empty for none. Hex.
        baseline_pages: How many of the hashes, from the first, are of its pages.
        hashes: Of pages.
    """

    seed: int
    page_size: int
    capacity_bytes: int
    baseline: str
    baseline_pages: int
    hashes: npt.NDArray[np.uint64]

    def pack(self) -> bytes:
        digest = bytes.fromhex(self.baseline) if self.baseline else bytes(32)
        header = _HEADER.pack(
            *(_VERSION, self.seed, self.page_size, self.capacity_bytes),
            *(self.baseline_pages, len(self.hashes), digest),
        )
        return header + self.hashes.astype("<u8").tobytes()

    @classmethod
    def unpack(cls, data: bytes) -> Offer:
        """Raises PeerProtocolError."""
        if not HEADER_BYTES <= len(data) <= OFFER_BYTES_MAX:
            raise PeerProtocolError(f"the destination's offer has {len(data)} bytes")
        version, seed, page_size, capacity, of_baseline, count, digest = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise PeerProtocolError(
                f"the destination's offer has version {version}; only {_VERSION} is known",
                hint="both nodes need compatible versions of novacron-compression-hde",
            )
        sound = page_size == 0 or (
            PAGE_SIZE_MIN <= page_size <= PAGE_SIZE_MAX and page_size % 64 == 0
        )
        if not sound or len(data) != HEADER_BYTES + count * HASH_BYTES or of_baseline > count:
            raise PeerProtocolError("the destination's offer contradicts itself")
        return cls(
            seed=seed,
            page_size=page_size,
            capacity_bytes=capacity,
            baseline=digest.hex() if any(digest) else "",
            baseline_pages=of_baseline,
            hashes=np.frombuffer(data, "<u8", offset=HEADER_BYTES).astype(np.uint64),
        )
