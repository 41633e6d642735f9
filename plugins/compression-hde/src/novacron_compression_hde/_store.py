"""What a node keeps of machines that came and went, and of images: references for later moves.

Two folders: ``sessions`` with the files that are being written, ``references`` with those that are
kept. A file is locked while it is used; one in ``sessions`` that is not locked was left behind by a
process that ended, and becomes a reference of the kind ``partial``.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import evolve, frozen
from novacron import CodecSession, NotFound

from novacron_compression_hde._pagefile import SUFFIX, About, Kind, PageFile, PageFileError

log = logging.getLogger("novacron.compression.hde")

FOLDER: Final = "compression-hde"
STORE_BYTES_MAX: Final = 20 << 30
_DISK_SHARE: Final = 10
# Left free on the disk, whatever a session would like to keep.
_DISK_RESERVE_BYTES: Final = 256 << 20


# Of a machine's pages some are not its memory: firmware, video memory.
_SLACK_BYTES: Final = 64 << 20


def whole_bytes(session: CodecSession) -> int:
    """All that a machine can send of pages with different addresses, generously."""
    return session.memory_bytes + _SLACK_BYTES


def about_session(session: CodecSession) -> About:
    """The description of the file of a session that is at work."""
    return About(
        kind="session",
        machine=session.machine,
        tenant=session.tenant,
        driver=session.driver,
        session=session.session,
        peer=session.peer,
    )


@frozen(kw_only=True)
class Entry:
    """A file of the store, for people and for eviction.

    Attributes:
        id: What to call it.
        used: When it was used last, in seconds since 1970.
        allocated_bytes: What it takes of the disk.
        superseded: A newer checkpoint of the same machine is there.
    """

    id: str
    path: Path
    about: About
    pages: int
    page_size: int
    used: float
    allocated_bytes: int
    superseded: bool = False


class ReferenceStore:
    """The page files of a node.

    Args:
        root: Its folder, made when first needed.
        budget_bytes: What is kept may take so much of the disk; None for the default.
    """

    def __init__(self, root: Path, budget_bytes: int | None = None) -> None:
        self._root = root
        self._budget = budget_bytes
        self.sessions = root / "sessions"
        self.references = root / "references"

    @property
    def budget_bytes(self) -> int:
        if self._budget is not None:
            return self._budget
        folder = self._root if self._root.exists() else self._root.parent
        return min(STORE_BYTES_MAX, shutil.disk_usage(folder).total // _DISK_SHARE)

    def free_bytes(self) -> int:
        """What a new session may take of the disk."""
        self._make()
        return max(0, shutil.disk_usage(self._root).free - _DISK_RESERVE_BYTES)

    def session_bytes_max(self, session: CodecSession, wanted: int | None) -> int:
        """How much of a machine a session's file may keep: all, or what was ``wanted``, or what
        the disk has room for where it does not go on in the machine's last checkpoint."""
        whole = whole_bytes(session)
        whose = session.machine, session.tenant
        taken = (
            entry.allocated_bytes
            for entry in self.entries()
            if (entry.about.machine, entry.about.tenant) == whose
            and entry.about.kind == "checkpoint"
        )
        room = self.free_bytes() + max(taken, default=0)
        return min(whole, room, whole if wanted is None else wanted)

    @property
    def folder(self) -> Path:
        """Where it all is; it exists."""
        self._make()
        return self._root

    def begin(self, about: About, page_size: int, capacity: int) -> PageFile:
        """A new file for a session, locked. Raises OSError."""
        with self._alone():
            path = self.sessions / f"{secrets.token_hex(6)}{SUFFIX}"
            return PageFile.create(path, page_size, capacity, about)

    def take(self, file: PageFile, about: About) -> None:
        """Let a session go on in a reference that is locked exclusively. Raises OSError."""
        with self._alone():
            file.move(self.sessions)
            file.describe(evolve(about, created=time.time()))

    def put_back(self, file: PageFile, about: About) -> None:
        """Undo `take` of a file in which nothing was changed, and close it. Raises OSError."""
        with self._alone():
            file.describe(about)
            file.move(self.references)
        file.close()

    def keep(self, file: PageFile, kind: Kind) -> None:
        """A session's file becomes a reference, and is closed. Raises OSError."""
        try:
            file.refresh()
            if not file.count:
                file.remove()
                return
            about = evolve(file.about, kind=kind, digest="")
            if kind == "checkpoint":
                (hashes,) = file.hashes(file.checking_seed)
                about = evolve(about, digest=file.digest(hashes))
            with self._alone():
                file.describe(about)
                file.touch()
                file.move(self.references)
            file.close()
        except OSError:
            file.remove()
            raise
        if kind == "checkpoint":
            self._remove_partials(about)
        self.prune()

    def adopt(self) -> list[str]:
        """What sessions left behind when their process ended becomes a reference. Their ids."""
        if not self._root.exists():
            return []
        found = []
        with self._alone():
            for path in sorted(self.sessions.glob(f"*{SUFFIX}")):
                file = self._open(path)
                if file is None or not file.lock():
                    continue
                if file.count:
                    file.describe(evolve(file.about, kind="partial", digest=""))
                    file.move(self.references)
                    found.append(path.stem)
                else:
                    path.unlink(missing_ok=True)
                file.close()
        return found

    def entries(self) -> list[Entry]:
        """All references, used last first."""
        found = []
        for path in sorted(self.references.glob(f"*{SUFFIX}")):
            file = self._open(path)
            if file is None:
                continue
            with contextlib.closing(file):
                status = os.fstat(file.fd)
            found.append(
                Entry(
                    id=path.stem,
                    path=path,
                    about=file.about,
                    pages=file.count,
                    page_size=file.page_size,
                    used=status.st_mtime,
                    allocated_bytes=status.st_blocks * 512,
                )
            )
        found.sort(key=lambda entry: entry.used, reverse=True)
        newest: set[tuple[str, str]] = set()
        for index, entry in enumerate(found):
            whose = entry.about.tenant, entry.about.machine
            if entry.about.kind == "image":
                continue
            if whose in newest:
                found[index] = evolve(entry, superseded=True)
            elif entry.about.kind == "checkpoint":
                newest.add(whose)
        return found

    def useful(self, session: CodecSession, share: str) -> list[Entry]:
        """What a destination may say that it holds, the most promising first.

        Contents of another tenant's machine only if ``share`` is ``all``.
        """

        def rank(entry: Entry) -> int | None:
            about = entry.about
            mine = about.tenant == session.tenant
            if about.kind == "image":
                return 3 if mine or not about.tenant or share == "all" else None
            if mine and about.machine == session.machine:
                return 0 if about.kind == "checkpoint" and not entry.superseded else 1
            if share == "all" or (share == "tenant" and mine):
                return 2 if about.kind == "checkpoint" else 4
            return None

        ranked = [(rank(entry), entry) for entry in self.entries()]
        chosen = [(place, entry) for place, entry in ranked if place is not None]
        chosen.sort(key=lambda pair: pair[0])  # equal ones stay in order of last use
        return [entry for _, entry in chosen]

    def checkpoint(self, session: CodecSession, digest: str = "") -> PageFile | None:
        """This machine's checkpoint with this digest, or else the newest that the peer should have
        too, locked exclusively; None if there is none."""
        for entry in self.entries():
            about = entry.about
            mine = (about.machine, about.tenant) == (session.machine, session.tenant)
            wanted = about.digest == digest if digest else about.peer == session.peer
            if mine and wanted and about.kind == "checkpoint":
                file = self._open(entry.path)
                if file is not None and file.lock():
                    return file
        return None

    def open(self, entry: Entry) -> PageFile | None:
        """None if it is gone or damaged."""
        return self._open(entry.path)

    def prune(self, budget_bytes: int | None = None) -> list[Entry]:
        """Remove what is over the budget: superseded ones first, then by last use. What went."""
        budget = self.budget_bytes if budget_bytes is None else budget_bytes
        if not self._root.exists():
            return []
        removed = []
        with self._alone():
            entries = self.entries()
            total = sum(entry.allocated_bytes for entry in entries)
            for entry in sorted(entries, key=lambda entry: (not entry.superseded, entry.used)):
                if total <= budget:
                    break
                if self._remove(entry):
                    total -= entry.allocated_bytes
                    removed.append(entry)
        return removed

    def remove(self, name: str) -> Entry:
        """Remove the reference with this id. Raises NotFound; also if it is in use."""
        with self._alone():
            for entry in self.entries():
                if entry.id == name:
                    if self._remove(entry):
                        return entry
                    raise NotFound(
                        f"the reference {name!r} is in use by a migration", hint="try again later"
                    )
        raise NotFound(f"there is no reference {name!r}", hint="`novacron store list` shows all")

    def _remove(self, entry: Entry) -> bool:
        file = self._open(entry.path)
        if file is None:
            return True
        with contextlib.closing(file):
            if not file.lock():
                return False
            entry.path.unlink(missing_ok=True)
        return True

    def _remove_partials(self, about: About) -> None:
        """What a machine's failed moves left is in the checkpoint of the one that succeeded."""
        whose = about.tenant, about.machine
        with self._alone():
            for entry in self.entries():
                mine = (entry.about.tenant, entry.about.machine) == whose
                if mine and entry.about.kind == "partial":
                    self._remove(entry)

    def _broken(self, path: Path, error: Exception) -> None:
        log.warning("removing a reference: %s", error)
        path.unlink(missing_ok=True)

    def _open(self, path: Path) -> PageFile | None:
        try:
            return PageFile.open(path)
        except FileNotFoundError:
            return None
        except PageFileError as error:
            self._broken(path, error)
            return None

    def _make(self) -> None:
        for folder in (self._root, self.sessions, self.references):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else, in this process or another, adds or removes files meanwhile."""
        self._make()
        fd = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
