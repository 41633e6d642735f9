"""Images as references: their distinct pages that are not zero, as a page file."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from novacron import ConfigError, NotFound
from novacron_native_ladder import hash_file, hash_pages

from novacron_compression_hde._pagefile import About, PageFile
from novacron_compression_hde._store import ReferenceStore

PAGE_SIZE: Final = 4096
_QCOW2: Final = b"QFI\xfb"
_CHUNK_PAGES: Final = 1024
# Of what is hashed only to find equal pages in one image. Two different pages with one hash cost
# nothing but a page that is not kept.
_SEED: Final = 0


def add_image(
    store: ReferenceStore,
    image: Path,
    *,
    name: str,
    tenant: str,
    progress: Callable[[int, int], None],
) -> str:
    """Keep an image's pages. Returns the reference's id.

    Args:
        image: A raw disk image, or any file; a qcow2 image if ``qemu-img`` is there.
        tenant: Whose machines may use it; empty for everybody's.
        progress: Told bytes done and bytes in all.

    Raises: NotFound, ConfigError, OSError.
    """
    if not image.is_file():
        raise NotFound(f"there is no file {image}", hint="name a disk image")
    with _raw(store, image) as source, open(source, "rb") as file:
        return _add(store, file.fileno(), About(kind="image", name=name, tenant=tenant), progress)


def _add(store: ReferenceStore, fd: int, about: About, progress: Callable[[int, int], None]) -> str:
    count = os.fstat(fd).st_size // PAGE_SIZE
    total = 2 * count * PAGE_SIZE
    hashes = np.empty(count, np.uint64)
    for start in range(0, count, _CHUNK_PAGES):
        some = min(_CHUNK_PAGES, count - start)
        (found,) = hash_file(fd, start * PAGE_SIZE, some, PAGE_SIZE, [_SEED])
        hashes[start : start + some] = found
        progress((start + some) * PAGE_SIZE, total)
    first = np.sort(np.unique(hashes, return_index=True)[1])
    zero = hash_pages(bytes(PAGE_SIZE), PAGE_SIZE, _SEED)[0]
    chosen = first[hashes[first] != zero]
    if not len(chosen):
        raise ConfigError(
            "the image holds no page that is not zero", hint="add an image with contents"
        )
    file = store.begin(about, PAGE_SIZE, len(chosen))
    try:
        _copy(fd, file, chosen, lambda done: progress(count * PAGE_SIZE + done, total))
        store.keep(file, "image")
    except BaseException:
        file.remove()
        raise
    return file.path.stem


def _copy(
    fd: int,
    file: PageFile,
    chosen: np.ndarray[tuple[int], np.dtype[np.int64]],
    progress: Callable[[int], None],
) -> None:
    places = file.places
    done = 0
    while done < len(chosen):
        start = int(chosen[done])
        # Those of the next chunk of the image, picked out of it at once.
        end = int(np.searchsorted(chosen, start + _CHUNK_PAGES))
        data = os.pread(fd, _CHUNK_PAGES * PAGE_SIZE, start * PAGE_SIZE)
        whole = len(data) // PAGE_SIZE
        pages = np.frombuffer(data, np.uint8, whole * PAGE_SIZE).reshape(whole, PAGE_SIZE)
        picked = pages[chosen[done:end] - start]
        _write(file.fd, picked.tobytes(), places.pages_at + done * PAGE_SIZE)
        addresses = chosen[done:end].astype("<u8") * np.uint64(PAGE_SIZE)
        _write(file.fd, addresses.tobytes(), places.addresses_at + 8 * done)
        done = end
        progress((start + whole) * PAGE_SIZE)
    _write(file.fd, done.to_bytes(8, "little"), places.count_at)


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


@contextlib.contextmanager
def _raw(store: ReferenceStore, image: Path) -> Iterator[Path]:
    """The image as raw bytes: itself, or for the time being a copy next to the store."""
    with open(image, "rb") as file:
        if file.read(len(_QCOW2)) != _QCOW2:
            yield image
            return
    convert = shutil.which("qemu-img")
    if convert is None:
        raise ConfigError(
            f"{image} is a qcow2 image, and qemu-img, which reads those, is not installed",
            hint="install qemu-utils, or add a raw image",
        )
    with tempfile.TemporaryDirectory(dir=store.folder) as folder:
        raw = Path(folder, "image.raw")
        # Its sparse parts stay holes, and a backing file is read with it.
        done = subprocess.run(
            [convert, "convert", "-O", "raw", "--", str(image), str(raw)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ConfigError(
                f"qemu-img cannot read {image}: {done.stderr.strip()}",
                hint="check the image with `qemu-img check`",
            )
        yield raw
