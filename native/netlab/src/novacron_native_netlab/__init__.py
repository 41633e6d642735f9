"""The link emulator ``netlab``: its sources, and where it is when it has been compiled.

The program is compiled when it is first asked for, which takes a second or two, and kept in the
user's cache under the hash of its sources. A wheel of it would be bound to one architecture and C
library; the machine that it is for has a compiler, or can be given the finished program.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["CannotCompile", "program"]

SOURCES: Final = Path(__file__).parent / "c"
OVERRIDE: Final = "NOVACRON_NETLAB"
_FLAGS: Final = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
_LIBRARIES: Final = ("-lpthread", "-lm")


class CannotCompile(Exception):
    """There is no ``netlab``, and none could be made; the message says what to do."""


def program() -> Path:
    """The emulator, compiled if this is the first time.

    Set ``NOVACRON_NETLAB`` to a finished program to use that one.

    Raises: CannotCompile if there is no compiler, or if it failed.
    """
    if given := os.environ.get(OVERRIDE):
        if not os.access(given, os.X_OK):
            raise CannotCompile(f"{OVERRIDE} is {given}, which is no program that can be run")
        return Path(given)
    kept = _cache() / f"netlab-{_fingerprint()}"
    if kept.exists():
        _must_be_ours(kept)
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Compiled aside: whoever looks meanwhile finds a whole program or none.
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        fresh = Path(folder) / "netlab"
        _compile(fresh)
        fresh.chmod(0o755)
        fresh.rename(kept)
    return kept


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "novacron"


def _fingerprint() -> str:
    digest = hashlib.sha256(repr((_FLAGS, _LIBRARIES, os.uname().machine)).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(f"\0{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _must_be_ours(path: Path) -> None:
    """Root must not run what another user put into a cache that root happens to use."""
    about = path.stat()
    if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o022:
        raise CannotCompile(f"{path} can be changed by another user; remove it and try again")


def _compile(target: Path) -> None:
    asked = shlex.split(os.environ.get("CC", ""))
    compiler = asked or [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
    if not compiler:
        raise CannotCompile(
            "no C compiler (cc, gcc or clang) is installed; "
            f"install one (Debian: apt install gcc libc6-dev), or set {OVERRIDE} to the program "
            "as compiled on a machine like this one"
        )
    sources = sorted(map(str, SOURCES.glob("*.c")))
    command = [*compiler, *_FLAGS, "-o", str(target), *sources, *_LIBRARIES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise CannotCompile(f"{compiler[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise CannotCompile(
            f"{' '.join(compiler)} failed to compile {SOURCES}: "
            f"{next((line for line in said if 'error' in line), 'it gave no reason')}"
        )
