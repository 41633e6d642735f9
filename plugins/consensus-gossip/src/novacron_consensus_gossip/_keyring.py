"""The cluster's keys in a file that only its owner can read.

One key per line, 32 bytes in base64; what follows ``#`` is ignored. The first one seals, all of
them open. So a key is changed without a pause: add the new one on every node, then put it first on
every node, then remove the old one.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from novacron import ConfigError

from novacron_consensus_gossip._seal import KEY_BYTES, Key

KEYS_MAX: Final = 16
FILE_BYTES_MAX: Final = 4_096


def new_key() -> Key:
    return Key(secrets.token_bytes(KEY_BYTES))


def read(path: Path) -> tuple[Key, ...]:
    """The keys. Raises ConfigError if they cannot be had, or others can read them."""
    try:
        with open(path, "rb") as file:
            about = os.fstat(file.fileno())
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"the gossip keys cannot be read: {error}",
            hint=f"`novacron gossip keys new --file {path}` makes the cluster's first key; copy "
            "the file of a member to join its cluster",
        ) from error
    if not stat.S_ISREG(about.st_mode):
        raise ConfigError(f"{path} is no file", hint="name the file that holds the keys")
    if stat.S_IMODE(about.st_mode) & 0o077:
        raise ConfigError(
            f"others than its owner can read {path}",
            hint=f"chmod 600 {path}; if others may have read it, change the key",
            path=str(path),
        )
    if about.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path} belongs to user {about.st_uid}", hint="chown it to this user")
    if len(text) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} is no file of keys: it is too long", hint="restore it")
    return parse(text, str(path))


def parse(text: bytes, where: str) -> tuple[Key, ...]:
    """Raises ConfigError; its message shows no key."""
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition(b"#")[0].strip()
        if not line:
            continue
        try:
            secret = base64.b64decode(line, validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if len(secret) != KEY_BYTES:
            raise ConfigError(
                f"{where}, line {number}: no key of {KEY_BYTES} bytes in base64",
                hint="`novacron gossip keys add` makes one",
                line=number,
            )
        keys.append(Key(secret))
    if not keys:
        raise ConfigError(f"{where} holds no key", hint="`novacron gossip keys new` makes one")
    if len(keys) > KEYS_MAX:
        raise ConfigError(
            f"{where} holds {len(keys)} keys; {KEYS_MAX} are the most",
            hint="`novacron gossip keys remove` removes old ones",
        )
    if len({key.id for key in keys}) < len(keys):
        raise ConfigError(f"{where} holds a key twice", hint="remove one of them")
    return tuple(keys)


def write(path: Path, keys: tuple[Key, ...], *, fresh: bool = False) -> None:
    """Replace the file, or make it; mode 0600, and either the old one or the new one.

    Raises: OSError; FileExistsError if it is to be a fresh one and is there.
    """
    text = b"# the first key seals, all of them open\n"
    text += b"".join(base64.b64encode(key.secret) + b"\n" for key in keys)
    if fresh and path.exists():
        raise FileExistsError(f"{path} is there already")
    write_durably(path, text)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file. Durable when it returns; raises OSError, and the old one is as it was."""
    made = path.with_name(f".{path.name}.new")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.fchmod(descriptor, 0o600)
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        made.rename(path)
    except OSError:
        made.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
