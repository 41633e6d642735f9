"""The disk image that the guests' memory is filled from: pages of this host's files.

It is the same at every place where a guest runs, as an image store would have it.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from attrs import frozen

from novacron_bench._image import PAGE, SOURCES, pages_of_files

_BLOCK_PAGES: Final = 256
_MASK: Final = (1 << 64) - 1


@frozen(kw_only=True)
class Disk:
    """An image.

    Attributes:
        path: Where.
        size_bytes: Its length, whole MiB.
        sum: The weighted sum that the guest's agent makes of it (`weighted_sum`).
    """

    path: Path
    size_bytes: int
    sum: int


def cache_dir() -> Path:
    """Where images and compiled agents are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "novacron" / "bench"


def weighted_sum(blocks: Iterable[bytes]) -> int:
    """The sum of all 64-bit words, each times an odd number that tells its place, modulo 2^64."""
    total, words_before = 0, 0
    for block in blocks:
        words = np.frombuffer(block, dtype="<u8")
        weights = np.arange(words_before, words_before + len(words), dtype=np.uint64) * 2 + 1
        total += int((words * weights).sum(dtype=np.uint64))
        words_before += len(words)
    return total & _MASK


def disk(size_bytes: int, *, folder: Path | None = None, seed: int = 1) -> Disk:
    """The image of that size; made when it is first asked for.

    Raises: ConfigError if this host has no files to make it of.
    """
    folder = folder or cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"disk-{size_bytes >> 20}-{seed}.raw"
    note = path.with_suffix(".json")
    try:
        said = json.loads(note.read_text())
        if path.stat().st_size == size_bytes == said["size_bytes"]:
            return Disk(path=path, size_bytes=size_bytes, sum=said["sum"])
    except (OSError, ValueError, KeyError):
        pass  # not made yet, or not to its end
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            for block in _blocks(size_bytes, seed):
                file.write(block)
        with unfinished.open("rb") as file:
            total = weighted_sum(iter(lambda: file.read(1 << 20), b""))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    note.write_text(json.dumps({"size_bytes": size_bytes, "sum": total}))
    return Disk(path=path, size_bytes=size_bytes, sum=total)


def _blocks(size_bytes: int, seed: int) -> Iterator[bytes]:
    pages = islice(
        pages_of_files(SOURCES, random.Random(seed), packed=True), max(1, size_bytes // PAGE)
    )
    while block := b"".join(islice(pages, _BLOCK_PAGES)):
        yield block
