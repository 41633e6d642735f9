"""A backup: the register's whole state at one moment, in one file that says what it is."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

import msgspec
from novacron import ConfigError

FORMAT: Final = "novacron-raft-backup-1"
BACKUP_BYTES_MAX: Final = 1 << 30


class Backup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A backup.

    Attributes:
        cluster: Whose it is.
        taken: When, ISO 8601 in UTC.
        state: What the state machine gave.
        digest: SHA-256 of the state.
    """

    cluster: str
    taken: str
    state: bytes
    digest: bytes
    format: str = FORMAT

    @classmethod
    def of(cls, cluster: str, taken: str, state: bytes) -> Backup:
        return cls(cluster, taken, state, hashlib.sha256(state).digest())

    def write(self, path: Path) -> None:
        """Write it durably under a name that nobody has. Raises: OSError, also if it is there."""
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(msgspec.msgpack.encode(self))
                stream.flush()
                os.fsync(stream.fileno())
            os.link(fresh, path)  # unlike a rename, this replaces nothing
        finally:
            fresh.unlink()

    @classmethod
    def read(cls, path: Path) -> Backup:
        """Raises: OSError; ConfigError if the file is no sound backup."""
        if path.stat().st_size > BACKUP_BYTES_MAX:
            raise ConfigError(f"{path} is too large for a backup")
        try:
            found = msgspec.msgpack.decode(path.read_bytes(), type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no backup: {error}", hint="give another one") from error
        sound = hashlib.sha256(found.state).digest() == found.digest
        if found.format != FORMAT or not sound:
            raise ConfigError(
                f"{path} is {'damaged' if not sound else 'of another format'}",
                hint="give another one",
            )
        return found
