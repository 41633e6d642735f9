"""Small files that are either the old ones or the new ones, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from novacron.errors import ConfigError


def write(path: Path, content: bytes) -> None:
    """Replace a file. Durable when it returns.

    Raises: OSError (a full disk among others); the old file is as it was.
    """
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.rename(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """`write` of a value that msgspec can encode."""
    write(path, msgspec.json.format(msgspec.json.encode(value)))


def read_json(path: Path) -> dict[str, object]:
    """The table in a file of ours. Raises ConfigError if somebody else wrote there."""
    try:
        value = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path} is damaged: {error}", hint="restore it from a backup, or move it away"
        ) from error
    return value


def remove(path: Path) -> None:
    """Remove a file, durably; a file that is not there is removed already."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
