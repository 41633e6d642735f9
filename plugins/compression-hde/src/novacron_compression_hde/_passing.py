"""Pages of disks: they are looked for among what the destination holds, and pass by the page store.

A disk holds far more pages than memory does, and each of them is sent once; in the store they would
take the place of pages that are sent again and again. What the destination holds of a disk itself,
the machine's driver knows.
"""

from __future__ import annotations

import os
from typing import Final

from novacron import ADDRESS_BYTES, Batch
from novacron_native_ladder import Places, Store

PAGE: Final = 4096
# Addresses of disks' pages have this bit set, see novacron_qemu.blocks; no memory is so large.
_REGION: Final = 1 << 63
_PLACES: Final = Places(count_at=0, addresses_at=ADDRESS_BYTES, pages_at=PAGE)


def passes(batch: Batch) -> bool:
    """Whether a batch is of a disk's pages."""
    if not batch.page_count or len(batch.pages) != batch.page_count * PAGE:
        return False
    first = int.from_bytes(memoryview(batch.addresses)[:ADDRESS_BYTES], "little")
    return bool(first & _REGION)


class PassingStore:
    """A page store that keeps nothing; it needs a file all the same.

    Args:
        seed: Of the hashes by which pages are looked for.
    """

    def __init__(self, seed: int, *, by_content: bool) -> None:
        self._fd = os.memfd_create("novacron-passing", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, 2 * PAGE)
        self.store = Store(
            self._fd, _PLACES, page_size=PAGE, capacity=0, seed=seed, by_content=by_content
        )

    def __del__(self) -> None:
        os.close(self._fd)
