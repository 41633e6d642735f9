"""The provider: one SQLite file, one thread, one transaction per change."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from attrs import field, frozen, validators
from novacron import NodeFacts, NovacronError, Ownership, check_record, fenced

# "NOVR": tells our file from any other SQLite file.
APPLICATION_ID: Final = 0x4E4F5652
SCHEMA_VERSION: Final = 1

# Compared literally with what the file holds: a file with another table, an index or a trigger is
# not ours, whatever its header says.
_SCHEMA: Final = (
    "CREATE TABLE ownership ("
    "machine TEXT NOT NULL PRIMARY KEY, owner TEXT NOT NULL, epoch INTEGER NOT NULL, "
    "session TEXT NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID"
)
_COLUMNS: Final = "machine, owner, epoch, session, digest"
_RESTORE: Final = (
    "stop every node that uses this file and restore it from a backup; without one, make sure on "
    "each node which machines run there before you move the file aside"
)

_T = TypeVar("_T")


class RegisterError(NovacronError):
    """The register's file cannot be read or written as it must be.

    No record was changed, unless the message says that this is in doubt.
    """

    code = "register"


@frozen(kw_only=True)
class SqliteSettings:
    """The section ``[consensus.sqlite]``.

    Attributes:
        path: The register's file; a relative path is below the node's state folder. Several node
            processes of one host may share it. Empty means ``consensus-sqlite/ownership.db``.
        busy_timeout_s: How long to wait for another process that writes at this moment.
    """

    path: str = field(default="", validator=validators.instance_of(str))
    busy_timeout_s: float = field(
        default=5.0, converter=float, validator=[validators.gt(0), validators.le(60)]
    )


class SqliteRegister:
    """Ownership in one SQLite file, durable by a rollback journal with ``synchronous=EXTRA``."""

    name: ClassVar[str] = "sqlite"
    Settings: ClassVar[type] = SqliteSettings

    def __init__(self, settings: SqliteSettings, node: NodeFacts) -> None:
        folder = node.state_dir / "consensus-sqlite"
        self.path = node.state_dir / settings.path if settings.path else folder / "ownership.db"
        self._busy_timeout_s = settings.busy_timeout_s
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._closed = False
        self._guarded(self._open)
        # One thread: calls are done in their order, and the connection is never used by two.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="novacron-register")

    async def read(self, machine: str) -> Ownership | None:
        return await self._run(lambda: self._read(self._open(), machine))

    async def advance(self, record: Ownership, *, expected_epoch: int | None) -> None:
        check_record(record, expected_epoch)
        await self._run(lambda: self._change(lambda c: self._advance(c, record, expected_epoch)))

    async def owned_by(self, node: str) -> Sequence[Ownership]:
        def owned() -> list[Ownership]:
            rows = self._open().execute(f"SELECT {_COLUMNS} FROM ownership ORDER BY machine")
            # All rows are checked: a damaged one may be the one that says "not yours any more".
            return [record for record in map(self._record, rows) if record.owner == node]

        return await self._run(owned)

    async def forget(self, machine: str, *, epoch: int) -> None:
        await self._run(lambda: self._change(lambda c: self._forget(c, machine, epoch)))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._worker, self._drop)
        self._worker.shutdown(wait=False)

    # What follows runs in the worker thread.

    async def _run(self, work: Callable[[], _T]) -> _T:
        if self._closed:
            raise RuntimeError("the register is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._guarded, work)

    def _guarded(self, work: Callable[[], _T]) -> _T:
        """Do the work; turn what SQLite and the system raise into an error that says what to do."""
        try:
            return work()
        except sqlite3.Error as error:
            raise self._explained(error) from error
        except OSError as error:
            self._drop()
            raise RegisterError(
                f"the ownership register {self.path} cannot be used: {error.strerror or error}",
                hint="check that the folder exists, is writable for this user and has space",
                path=str(self.path),
            ) from error

    def _explained(self, error: sqlite3.Error) -> RegisterError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code != sqlite3.SQLITE_BUSY:
            # After any other failure the connection's idea of the file is in doubt. The next call
            # opens anew, and SQLite then rolls back what a journal says was not finished.
            self._drop()
        facts = {"path": str(self.path), "sqlite": getattr(error, "sqlite_errorname", "")}
        if code == sqlite3.SQLITE_BUSY:
            return RegisterError(
                f"another process has held the ownership register {self.path} for more than "
                f"{self._busy_timeout_s:g} s",
                hint="look for a process that hangs with this file open, then try again",
                truth="no record was changed",
                **facts,
            )
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return RegisterError(
                f"the ownership register {self.path} is damaged: {error}", hint=_RESTORE, **facts
            )
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            return RegisterError(
                f"the ownership register {self.path} could not be written or read: {error}",
                hint="the disk is full, over quota or failing: make room or look at the kernel "
                "log, then try again",
                truth="whether the record was made is known after reading it again",
                **facts,
            )
        return RegisterError(
            f"the ownership register {self.path} failed: {error}",
            hint="check that this user may write the file and its folder",
            **facts,
        )

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            # A file that was replaced or removed under us would let two registers live.
            if _identity(self.path) != self._identity:
                raise self._wrong("was replaced or removed while it was in use")
            return self._connection
        if not self.path.exists():
            self._create()
        identity = _identity(self.path)
        if self._identity not in ((0, 0), identity):
            raise self._wrong("was replaced or removed while it was in use")
        if self.path.stat().st_size == 0:
            raise self._wrong("is empty, and a register never is")
        connection = self._connect(self.path)
        try:
            self._inspect(connection)
        except BaseException:
            connection.close()
            raise
        self._connection, self._identity = connection, identity
        return connection

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("PRAGMA synchronous = EXTRA")
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self) -> None:
        """Make the file under another name and link it when it is whole and on the disk."""
        journal = self.path.with_name(self.path.name + "-journal")
        if journal.exists():
            raise self._wrong(f"is gone, but its journal {journal.name} is there")
        _make_folder(self.path.parent)
        new = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}.new")
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        try:
            connection = self._connect(new)
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(_SCHEMA)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                connection.execute("COMMIT")
            finally:
                connection.close()
            # If another process was faster, its file is as good as ours.
            with contextlib.suppress(FileExistsError):
                os.link(new, self.path)
        finally:
            new.unlink(missing_ok=True)
        _sync_folder(self.path.parent)

    def _inspect(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            raise self._wrong("is an SQLite file, but not an ownership register")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != SCHEMA_VERSION:
            raise RegisterError(
                f"the ownership register {self.path} has schema version {version}; this release "
                f"knows {SCHEMA_VERSION}",
                hint="use the release of novacron-consensus-sqlite that made the file",
                path=str(self.path),
                version=version,
            )
        schema = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
        if schema != [("table", "ownership", _SCHEMA)]:
            raise self._wrong("does not have the tables of an ownership register")
        (journal,) = connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        if journal != "delete":
            raise self._wrong(f"is kept in journal mode {journal!r}, which this provider refuses")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise self._wrong(f"is damaged ({verdict})")

    def _change(self, change: Callable[[sqlite3.Connection], None]) -> None:
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            change(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _advance(
        self, connection: sqlite3.Connection, new: Ownership, expected: int | None
    ) -> None:
        present = self._read(connection, new.machine)
        if present == new:
            return
        epoch = present.epoch if present else 0
        if (expected is not None and expected != epoch) or new.epoch <= epoch:
            raise fenced(new.machine, present, f"to write epoch {new.epoch}", expected)
        connection.execute(
            f"INSERT OR REPLACE INTO ownership ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)",
            (new.machine, new.owner, new.epoch, new.session, _digest(new)),
        )

    def _forget(self, connection: sqlite3.Connection, machine: str, epoch: int) -> None:
        present = self._read(connection, machine)
        if present is None:
            return  # forgotten already: a call may be repeated after a doubt
        if present.epoch != epoch:
            raise fenced(machine, present, f"to forget epoch {epoch}")
        connection.execute("DELETE FROM ownership WHERE machine = ?", (machine,))

    def _read(self, connection: sqlite3.Connection, machine: str) -> Ownership | None:
        query = f"SELECT {_COLUMNS} FROM ownership WHERE machine = ?"
        row = connection.execute(query, (machine,)).fetchone()
        return None if row is None else self._record(row)

    def _record(self, row: tuple[Any, ...]) -> Ownership:
        machine, owner, epoch, session, digest = row
        try:
            record = Ownership(machine=machine, owner=owner, epoch=epoch, session=session)
            check_record(record)
        except ValueError as error:
            raise self._damaged(machine, str(error)) from error
        if digest != _digest(record):
            raise self._damaged(machine, "its digest does not match")
        return record

    def _damaged(self, machine: Any, why: str) -> RegisterError:
        return RegisterError(
            f"the record of machine {machine!r} in {self.path} is damaged: {why}",
            hint=_RESTORE,
            path=str(self.path),
            machine=str(machine),
        )

    def _wrong(self, what: str) -> RegisterError:
        return RegisterError(
            f"the ownership register {self.path} {what}", hint=_RESTORE, path=str(self.path)
        )


def _digest(record: Ownership) -> str:
    # SQLite has no checksums of its own, and a flipped bit in an owner would run a machine twice.
    fields = [record.machine, record.owner, record.epoch, record.session]
    return hashlib.blake2b(json.dumps(fields).encode(), digest_size=16).hexdigest()


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
