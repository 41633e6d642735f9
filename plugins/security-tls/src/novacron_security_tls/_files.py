"""Files that hold keys and trust: bounded when read, whole or not there when written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from novacron import ConfigError, NotFound

# A node's trust, in its state folder.
FOLDER: Final = "security-tls"
# A revocation list of 100,000 entries is about 4 MiB.
FILE_BYTES_MAX: Final = 8 << 20


def make_private_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"the folder {folder} cannot be made: {error.strerror}",
            hint="choose a folder that you may write to",
        ) from error


def is_there(path: Path) -> bool:
    """Whether the file exists. Raises ConfigError if we may not know."""
    try:
        return path.exists()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be looked at: {error.strerror}",
            hint="run this as the user who owns the folder",
        ) from error


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold off who changes the folder's files, also in other processes; ``shared``: and only them.

    Raises: ConfigError.
    """
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the files in {folder} cannot be locked: {error.strerror}",
            hint="run this as the user who owns the folder",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(path: Path) -> bytes:
    """The file's contents. Raises NotFound or ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {FILE_BYTES_MAX} bytes")
    return data


def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace the file at once, and durably. Raises ConfigError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}",
            hint="check the folder's owner, its mode and the disk's free space",
        ) from error
