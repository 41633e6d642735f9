"""A member's key on the disk, and public keys as text in the configuration.

The key file holds one line: a word that says what it is, the scheme, and the secret seed in base64.
Beside it, ``<key file>.used`` says that a member has begun a log with this key. A key that was used
and has no log any more must not be used again: its member may have voted for what it has forgotten.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from novacron import ConfigError, Conflict

from novacron_consensus_bft._signing import SEED_BYTES, SIGNERS, Signer, parse_public_key

_WORD: Final = "novacron-consensus-key"
# A key file is one short line; what is longer is something else.
_FILE_BYTES_MAX: Final = 4096
_NEW: Final = "make one with `novacron consensus keys new`"


def as_text(public_key: bytes) -> str:
    """A public key as it stands in the configuration: ``ed25519:<base64>``."""
    scheme, _, raw = public_key.partition(b":")
    return f"{scheme.decode()}:{base64.b64encode(raw).decode()}"


def from_text(text: str) -> bytes:
    """The other way. Raises: ValueError that says what is wrong."""
    scheme, _, encoded = text.partition(":")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{text:.40} is no public key: behind its scheme stands base64") from None
    public_key = scheme.encode() + b":" + raw
    try:
        parse_public_key(public_key)
    except ValueError as error:
        known = " or ".join(SIGNERS)
        raise ValueError(
            f"{text:.40} is no public key ({error}); it begins with {known} and a colon"
        ) from None
    return public_key


def make_key(path: Path, scheme: str) -> Signer:
    """Make a new key and write its file, mode 0600.

    Raises: Conflict if there is a file; OSError. No key was made then.
    """
    seed = secrets.token_bytes(SEED_BYTES)
    signer: Signer = SIGNERS[scheme].from_seed(seed)
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    line = f"{_WORD} {scheme} {base64.b64encode(seed).decode()}\n"
    try:
        _write_new(path, line.encode())
    except FileExistsError:
        raise Conflict(
            f"there is a key at {path} already",
            hint="`novacron consensus keys show` shows its public part; a new member has a new "
            "name, too",
        ) from None
    return signer


def load_key(path: Path) -> Signer:
    """The key in a file. Raises: ConfigError if there is none, or others can read it; OSError."""
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            line = file.read(_FILE_BYTES_MAX)
    except FileNotFoundError:
        raise ConfigError(f"there is no key at {path}", hint=_NEW) from None
    if mode & 0o077:
        raise ConfigError(
            f"the key at {path} can be read by others (mode {mode:04o})",
            hint=f"chmod 600 {path}; if somebody may have read it, this member needs a new key "
            "and a new name",
        )
    try:
        word, scheme, encoded = line.decode("ascii").split()
        if word != _WORD:
            raise ValueError("another kind of file")
        signer: Signer = SIGNERS[scheme].from_seed(base64.b64decode(encoded, validate=True))
    except (ValueError, KeyError):  # UnicodeDecodeError and binascii.Error are ValueErrors
        raise ConfigError(
            f"{path} holds no key",
            hint="restore it from where it was kept; without it this member is lost, and needs a "
            "new key and a new name",
        ) from None
    return signer


def used(path: Path) -> bool:
    """Whether a member has begun a log with the key in this file."""
    return _mark_of(path).exists()


def mark_used(path: Path) -> None:
    """Say, durably, that a log is begun with the key in this file. Raises: OSError."""
    _write_new(_mark_of(path), b"a log was begun with this key\n")


def _mark_of(path: Path) -> Path:
    return path.with_name(path.name + ".used")


def _write_new(path: Path, data: bytes) -> None:
    """A new file, durable under its name when this returns."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, data)
        os.fsync(file)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
