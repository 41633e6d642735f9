"""A file of pages that describes itself.

    0      "NOVAPAGE", version, page size, capacity (4 bytes each), 4 bytes zero
    24     8 bytes: how many slots are in use
    32     4 bytes length, and JSON: whose pages these are (`About`)
    4096   the address of each slot, 8 bytes each, for `capacity` slots
    then, from a multiple of 64 KiB on, the contents of the slots

All numbers are little-endian. The file has holes: it takes the disk space of what was written.
Nothing is forced to the disk: after a power failure a file may hold anything, which is why nothing
in it is believed without being hashed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import time
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from attrs import asdict, define, evolve, frozen
from blake3 import blake3
from novacron_native_ladder import PAGE_SIZE_MAX, PAGE_SIZE_MIN, Places, hash_file

Kind = Literal["session", "checkpoint", "partial", "image"]
KINDS: Final = ("session", "checkpoint", "partial", "image")
CAPACITY_MAX: Final = 1 << 30
SUFFIX: Final = ".pages"

_MAGIC: Final = b"NOVAPAGE"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIIIIQ")
_COUNT_AT: Final = 24
_LENGTH: Final = struct.Struct("<I")
_ABOUT_AT: Final = 32
_ADDRESSES_AT: Final = 4096
_ABOUT_MAX: Final = _ADDRESSES_AT - _ABOUT_AT - _LENGTH.size
_ALIGNMENT: Final = 1 << 16


class PageFileError(OSError):
    """A file is no page file, or is damaged: as good as one that cannot be read."""


@frozen(kw_only=True)
class About:
    """Whose pages a file holds.

    Attributes:
        kind: ``session`` while one is at work; ``checkpoint``, what both sides held when a machine
            had moved; ``partial``, what is left of a move that failed; ``image``.
        machine, tenant, driver, session, peer: As the session had them; empty for an image.
        name: Of an image.
        created: Seconds since 1970.
        digest: Of a checkpoint: see `PageFile.digest`; in hex.
    """

    kind: Kind
    machine: str = ""
    tenant: str = ""
    driver: str = ""
    session: str = ""
    peer: str = ""
    name: str = ""
    created: float = 0.0
    digest: str = ""

    @classmethod
    def read(cls, data: bytes) -> About:
        """Raises PageFileError."""
        try:
            values: Any = json.loads(data)
            about = cls(**values)
        except (ValueError, TypeError) as error:
            raise PageFileError(f"the description is damaged: {error}") from error
        texts = (about.machine, about.tenant, about.driver, about.session, about.peer)
        if about.kind not in KINDS or not isinstance(about.created, (int, float)):
            raise PageFileError(f"the description says {about.kind!r}, {about.created!r}")
        if not all(isinstance(text, str) for text in (*texts, about.name, about.digest)):
            raise PageFileError("the description holds what is no text")
        return about


@define(eq=False)
class PageFile:
    """An open page file. It is locked as long as it is open, if `lock` was called.

    Attributes:
        path: Where it is now.
        count: Slots in use when it was opened or `refresh`ed.
    """

    path: Path
    fd: int
    page_size: int
    capacity: int
    count: int
    about: About

    @classmethod
    def create(cls, path: Path, page_size: int, capacity: int, about: About) -> PageFile:
        """Make a new one, locked. Raises OSError."""
        about = evolve(about, created=about.created or time.time())
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        made = cls(path, fd, page_size, capacity, 0, about)
        try:
            made.lock()
            os.ftruncate(fd, made.places.pages_at + capacity * page_size)
            os.pwrite(fd, _HEADER.pack(_MAGIC, _VERSION, page_size, capacity, 0, 0), 0)
            made.describe(about)
        except BaseException:
            made.close()
            path.unlink(missing_ok=True)
            raise
        return made

    @classmethod
    def open(cls, path: Path) -> PageFile:
        """Raises OSError, PageFileError."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            header = os.pread(fd, _ADDRESSES_AT, 0)
            if len(header) < _ADDRESSES_AT:
                raise PageFileError(f"{path} is too short for a page file")
            magic, version, page_size, capacity, _, count = _HEADER.unpack_from(header)
            if magic != _MAGIC or version != _VERSION:
                raise PageFileError(f"{path} is no page file of version {_VERSION}")
            if not PAGE_SIZE_MIN <= page_size <= PAGE_SIZE_MAX or page_size % 64:
                raise PageFileError(f"{path} says that its pages have {page_size} bytes")
            if capacity > CAPACITY_MAX or count > capacity:
                raise PageFileError(f"{path} says that {count} of {capacity} slots are in use")
            (length,) = _LENGTH.unpack_from(header, _ABOUT_AT)
            if length > _ABOUT_MAX:
                raise PageFileError(f"{path} has a description of {length} bytes")
            start = _ABOUT_AT + _LENGTH.size
            about = About.read(header[start : start + length])
            opened = cls(path, fd, page_size, capacity, count, about)
            if os.fstat(fd).st_size < opened.places.pages_at + capacity * page_size:
                raise PageFileError(f"{path} was cut short")
        except BaseException:
            os.close(fd)
            raise
        return opened

    @property
    def places(self) -> Places:
        end = _ADDRESSES_AT + 8 * self.capacity
        return Places(_COUNT_AT, _ADDRESSES_AT, -(-end // _ALIGNMENT) * _ALIGNMENT)

    @property
    def allocated_bytes(self) -> int:
        """What it takes of the disk."""
        return os.fstat(self.fd).st_blocks * 512

    def refresh(self) -> None:
        """Read again how many slots are in use."""
        self.count = min(self.capacity, int.from_bytes(os.pread(self.fd, 8, _COUNT_AT), "little"))

    def describe(self, about: About) -> None:
        """Write whose pages these are."""
        data = json.dumps(asdict(about)).encode()
        if len(data) > _ABOUT_MAX:
            raise PageFileError(f"a description of {len(data)} bytes is longer than {_ABOUT_MAX}")
        os.pwrite(self.fd, _LENGTH.pack(len(data)) + data, _ABOUT_AT)
        self.about = about

    def lock(self, *, exclusive: bool = True) -> bool:
        """Keep others from changing it, or (exclusive) from using it. False if they do already."""
        how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(self.fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def touch(self) -> None:
        """Note that it was used now."""
        with contextlib.suppress(OSError):
            os.utime(self.fd)

    def move(self, folder: Path) -> None:
        to = folder / self.path.name
        self.path.rename(to)
        self.path = to

    def remove(self) -> None:
        """Remove and close it."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def hashes(self, *seeds: int, count: int | None = None) -> list[npt.NDArray[np.uint64]]:
        """XXH64 of the pages in use, by one seed or two. Raises OSError."""
        some = self.count if count is None else min(count, self.count)
        return hash_file(self.fd, self.places.pages_at, some, self.page_size, seeds)

    def digest(self, hashes: npt.NDArray[np.uint64]) -> str:
        """Of addresses and contents, the contents by their hashes by `checking_seed`; in hex.

        Two files with the same digest hold the same, unless somebody who can write to the store
        wants it otherwise; the digest of each batch on arrival shows that.
        """
        hasher = blake3(struct.pack("<IQ", self.page_size, self.count))
        hasher.update(self.about.session.encode())
        size = 8 * self.count
        at = _ADDRESSES_AT
        while size:
            part = os.pread(self.fd, min(size, 1 << 20), at)
            if not part:
                raise PageFileError(f"{self.path} was cut short")
            hasher.update(part)
            size -= len(part)
            at += len(part)
        hasher.update(hashes.astype("<u8").tobytes())
        return hasher.hexdigest()

    @property
    def checking_seed(self) -> int:
        """The seed of the hashes that make up the digest; the same on both sides."""
        return int.from_bytes(blake3(self.about.session.encode()).digest()[:8], "little")

    def __del__(self) -> None:
        self.close()
