"""A checkpoint that a source would like to begin with, read while the destination reads its own."""

from __future__ import annotations

import secrets
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from novacron_compression_hde._pagefile import PageFile

Hashes = npt.NDArray[np.uint64]


class Checkpoint:
    """A locked file of the store, and what its pages hash to.

    Attributes:
        seed: Of the hashes, until another one is asked for.
    """

    def __init__(self, file: PageFile) -> None:
        self.file = file
        self.seed = secrets.randbits(64)
        self._read = _in_a_thread(file, self.seed)

    @property
    def digest(self) -> str:
        """What the file says of itself; `is_sound` tells whether that is so."""
        return self.file.about.digest

    def is_sound(self) -> bool:
        """Whether the pages are what they were when the file was described. Raises OSError."""
        return self._read.result()[0] == self.digest

    def hashes(self, seed: int) -> Hashes:
        """XXH64 of the contents, by that seed. Raises OSError."""
        if seed == self.seed:
            return self._read.result()[1]
        (hashes,) = self.file.hashes(seed)
        return hashes

    def close(self) -> None:
        """Give the file back to the store. Blocks while it is still being read."""
        self._read.exception()
        self.file.close()


def _in_a_thread(file: PageFile, seed: int) -> Future[tuple[str, Hashes]]:
    def read() -> tuple[str, Hashes]:
        checked, hashes = file.hashes(file.checking_seed, seed)
        return file.digest(checked), hashes

    reader = ThreadPoolExecutor(1, thread_name_prefix="hde-checkpoint")
    reading = reader.submit(read)
    reader.shutdown(wait=False)
    return reading
