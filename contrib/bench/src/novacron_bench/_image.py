"""A guest's memory as a QEMU migration stream, made of what real files hold."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen
from novacron import ConfigError
from novacron_native_pages.synthetic import StreamWriter

PAGE: Final = 4096
SOURCES: Final = ("/usr/lib", "/usr/bin", "/usr/share")
# What memory holds less of than disks do: contents that were packed already.
_PACKED: Final = frozenset(
    {
        *{".gz", ".xz", ".zst", ".bz2", ".zip", ".whl", ".jar", ".deb", ".npz", ".pdf", ".mo"},
        *{".png", ".jpg", ".gif", ".ico", ".woff", ".woff2"},
    }
)
_ZERO_PAGE: Final = bytes(PAGE)
_READ_BYTES: Final = 1 << 20
_PART_PAGES: Final = 2048
_FILE_BYTES_MAX: Final = 32 << 20


@frozen(kw_only=True)
class Image:
    """A stream in a file.

    Attributes:
        path: Where.
        stream_bytes: Its length.
        guest_bytes: The memory that it moves: pages with content and zero pages.
        zero_percent: Of its pages.
    """

    path: Path
    stream_bytes: int
    guest_bytes: int
    zero_percent: float


def write_image(
    path: Path,
    guest_bytes: int,
    *,
    zero_percent: float = 21.0,
    sources: Sequence[str] = SOURCES,
    seed: int = 1,
) -> Image:
    """Write the stream of a guest whose memory holds files of this host.

    Raises: ConfigError if there are no files to take contents from.
    """
    total = guest_bytes // PAGE
    chance = random.Random(seed)
    contents = pages_of_files(sources, chance)
    writer = StreamWriter({"pc.ram": total * PAGE})
    writer.configuration()
    writer.start_ram()
    zeros = 0
    size = 0
    with path.open("wb") as file:
        for first in range(0, total, _PART_PAGES):
            writer.begin_part()
            index, last = first, min(first + _PART_PAGES, total)
            while index < last:
                # Free memory comes in runs, as a guest's allocator leaves it.
                run = min(last - index, chance.randrange(16, 128))
                zero = zeros * 100 < zero_percent * index
                for _ in range(run):
                    content = _ZERO_PAGE if zero else next(contents)
                    if content == _ZERO_PAGE:
                        writer.zero("pc.ram", index * PAGE)
                        zeros += 1
                    else:
                        writer.page("pc.ram", index * PAGE, content)
                    index += 1
            writer.end_part()
            size += file.write(writer.stream)
            writer.stream.clear()
        writer.begin_part(last=True)
        writer.end_part()
        writer.device("cpu", chance.randbytes(20_000))
        writer.end()
        size += file.write(writer.stream)
    return Image(
        path=path,
        stream_bytes=size,
        guest_bytes=total * PAGE,
        zero_percent=100 * zeros / max(total, 1),
    )


def pages_of_files(
    sources: Sequence[str], chance: random.Random, *, packed: bool = False
) -> Iterator[bytes]:
    """Pages of files, for ever; those that are zero in a file are left out.

    Args:
        packed: Take files too whose contents were packed already.
    """
    while True:
        found_any = False
        for source in sources:
            for file in _files(source, chance, packed):
                for page in _pages_of(file):
                    found_any = True
                    yield page
        if not found_any:
            raise ConfigError(
                f"no file in {', '.join(sources)} has a page of content", hint="name other folders"
            )


def _files(folder: str, chance: random.Random, packed: bool) -> Iterator[Path]:
    """The files below a folder, shuffled folder by folder: a whole system is long to list."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    chance.shuffle(found)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path, chance, packed)
        elif entry.is_file(follow_symlinks=False) and (
            packed or Path(entry.name).suffix not in _PACKED
        ):
            yield Path(entry.path)


def _pages_of(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            left = _FILE_BYTES_MAX
            while left > 0 and (block := file.read(_READ_BYTES)):
                left -= len(block)
                for start in range(0, len(block) - PAGE + 1, PAGE):
                    page = block[start : start + PAGE]
                    if page != _ZERO_PAGE:
                        yield page
    except OSError:
        return
