"""Unix sockets: who is at the other end, and paths of any length."""

from __future__ import annotations

import os
import pwd
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from novacron import ConfigError, Conflict

# sun_path holds 108 bytes, the ending zero included.
PATH_BYTES_MAX: Final = 107
_CREDENTIALS: Final = struct.Struct("3i")
BACKLOG: Final = 128


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name for ``path`` that a socket address can hold.

    A path that is too long is named through a descriptor of its folder, so that a deep state
    folder needs neither another place for the socket nor a setting.
    """
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{folder}/{path.name}"
        if len(os.fsencode(short)) > PATH_BYTES_MAX:
            raise ConfigError(
                f"the socket's file name {path.name!r} is too long", hint="use a shorter name"
            )
        yield short
    finally:
        os.close(folder)


def connect(path: Path, timeout_s: float | None) -> socket.socket:
    """A connection to whoever listens at ``path``. Raises OSError if nobody does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout_s)
        with _reachable(path) as name:
            sock.connect(name)
    except OSError:
        sock.close()
        raise
    return sock


def listen(path: Path) -> socket.socket:
    """Listen at ``path``, for its owner alone; what a dead node left there is replaced.

    Raises: Conflict if somebody listens there already, ConfigError if it cannot be had.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with _reachable(path) as name:
                sock.bind(name)
                # Nobody can connect before listen(), so there is no moment with a wider mode.
                Path(name).chmod(0o600)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"the API cannot listen at {path}: {error.strerror or error}",
            hint="name another place: [service.api] socket",
        ) from error
    return sock


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            f"{path} is no socket", hint="name another place ([service.api] socket) or remove it"
        )
    try:
        connect(path, timeout_s=2.0).close()
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    else:
        raise Conflict(
            f"another node listens at {path}",
            hint="stop it with `novacron node stop`, or give this one a state_dir of its own",
        )


def peer_subject(
    sock: socket.socket | None, look_up: Callable[[int], pwd.struct_passwd] = pwd.getpwuid
) -> tuple[str, int]:
    """Who is at the other end of a unix socket: ``local:<user>`` and the process id."""
    if sock is None or sock.family != socket.AF_UNIX:
        return "local", 0
    try:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return "local", 0
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    try:
        return f"local:{look_up(uid).pw_name}", pid
    except KeyError:
        return f"local:{uid}", pid
