"""Where a machine's sockets lie. Imports nothing heavy: clients use it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

# What a unix socket's address can hold, without its closing zero.
SOCKET_PATH_MAX: Final = 107
CONTROL_SOCKET: Final = "control.sock"
SERVICE_SOCKET: Final = "service.sock"
CONSOLE_SOCKET: Final = "console.sock"
_LONGEST_NAME: Final = max(len(CONTROL_SOCKET), len(SERVICE_SOCKET), len(CONSOLE_SOCKET))


def sockets_dir(home: Path) -> Path:
    """Where the sockets of the machine in ``home`` lie: there, or where their paths are short."""
    if len(os.fsencode(home)) + 1 + _LONGEST_NAME <= SOCKET_PATH_MAX:
        return home
    import hashlib
    import tempfile

    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    root = Path(runtime if runtime and Path(runtime).is_dir() else tempfile.gettempdir())
    name = hashlib.sha256(os.fsencode(home.absolute())).hexdigest()[:16]
    return root / f"novacron-{os.geteuid()}" / name


def service_path(home: Path) -> Path:
    """The socket on which the machine in ``home`` serves requests, for `KvClient`."""
    return sockets_dir(home) / SERVICE_SOCKET
