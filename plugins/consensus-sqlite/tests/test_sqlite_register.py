"""The ownership register's own tests: durability, fencing between processes, damage."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from novacron import Fenced, NodeFacts, Ownership
from novacron_consensus_sqlite import RegisterError, SqliteRegister, SqliteSettings

T = TypeVar("T")
VM = "vm1"


def register(tmp_path: Path, **settings: Any) -> SqliteRegister:
    return SqliteRegister(
        SqliteSettings(**settings), NodeFacts(name="alpha", state_dir=tmp_path / "state")
    )


def with_register(
    tmp_path: Path, use: Callable[[SqliteRegister], Coroutine[Any, Any, T]], **settings: Any
) -> T:
    async def run() -> T:
        opened = register(tmp_path, **settings)
        try:
            return await use(opened)
        finally:
            await opened.close()

    return asyncio.run(run())


def owned(epoch: int, owner: str = "alpha", machine: str = VM, session: str = "") -> Ownership:
    return Ownership(machine=machine, owner=owner, epoch=epoch, session=session)


def made(tmp_path: Path, *records: Ownership) -> Path:
    """A register with these records, closed; its path."""

    async def fill(opened: SqliteRegister) -> Path:
        for record in records:
            await opened.advance(record, expected_epoch=None)
        return opened.path

    return with_register(tmp_path, fill)


def change(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement, values)
    connection.commit()
    connection.close()


def test_a_record_is_there_after_the_register_is_opened_again(tmp_path: Path) -> None:
    made(tmp_path, owned(1), owned(2, "beta", session="s1"), owned(1, machine="vm2"))

    async def look(opened: SqliteRegister) -> Any:
        return await opened.read(VM), await opened.owned_by("alpha"), await opened.read("none")

    assert with_register(tmp_path, look) == (
        owned(2, "beta", session="s1"),
        [owned(1, machine="vm2")],
        None,
    )


def test_the_file_and_its_folder_are_for_the_owner_alone_and_nothing_lies_beside_it(
    tmp_path: Path,
) -> None:
    path = made(tmp_path, owned(1))
    assert path == tmp_path / "state" / "consensus-sqlite" / "ownership.db"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["ownership.db"]


def test_a_relative_path_is_below_the_state_folder_and_an_absolute_one_is_itself(
    tmp_path: Path,
) -> None:
    async def path_of(opened: SqliteRegister) -> Path:
        return opened.path

    assert with_register(tmp_path, path_of, path="x/y.db") == tmp_path / "state" / "x" / "y.db"
    assert with_register(tmp_path, path_of, path=str(tmp_path / "z.db")) == tmp_path / "z.db"


def test_an_older_equal_or_unexpected_epoch_is_fenced_and_the_owner_is_told(tmp_path: Path) -> None:
    async def contend(opened: SqliteRegister) -> None:
        await opened.advance(owned(3), expected_epoch=0)
        for record, expected in (
            (owned(2, "beta"), None),
            (owned(3, "beta"), None),
            (owned(4, "beta"), 2),
            (owned(4, "beta"), 0),
            (owned(3, "beta"), 3),
        ):
            with pytest.raises(Fenced) as caught:
                await opened.advance(record, expected_epoch=expected)
            assert caught.value.facts == {"machine": VM, "epoch": 3, "owner": "alpha"}
            assert caught.value.hint
        assert await opened.read(VM) == owned(3)
        await opened.advance(owned(3), expected_epoch=0)  # what holds already may be written again
        await opened.advance(owned(9, "beta"), expected_epoch=3)
        assert await opened.read(VM) == owned(9, "beta")

    with_register(tmp_path, contend)


def test_only_the_epoch_that_holds_can_be_forgotten_and_twice_is_once(tmp_path: Path) -> None:
    async def forget(opened: SqliteRegister) -> None:
        await opened.advance(owned(2), expected_epoch=0)
        with pytest.raises(Fenced):
            await opened.forget(VM, epoch=1)
        await opened.forget(VM, epoch=2)
        await opened.forget(VM, epoch=2)
        assert await opened.read(VM) is None
        await opened.advance(owned(1, "beta"), expected_epoch=0)

    with_register(tmp_path, forget)


@pytest.mark.parametrize(
    "record",
    [
        owned(0),
        owned(-1),
        owned(2**63),
        owned(1, ""),
        owned(1, "a\0b"),
        owned(1, machine="x" * 256),
        owned(1, session="line\nbreak"),
    ],
)
def test_a_record_that_cannot_be_one_is_refused_before_it_is_written(
    tmp_path: Path, record: Ownership
) -> None:
    async def write(opened: SqliteRegister) -> None:
        with pytest.raises(ValueError, match=r"is not|cannot be"):
            await opened.advance(record, expected_epoch=None)
        assert await opened.owned_by(record.owner) == []

    with_register(tmp_path, write)


def test_a_closed_register_says_so_and_closing_twice_is_once(tmp_path: Path) -> None:
    async def close(opened: SqliteRegister) -> None:
        await opened.close()
        with pytest.raises(RuntimeError, match="closed"):
            await opened.read(VM)

    with_register(tmp_path, close)


def test_many_calls_at_once_are_done_in_their_order(tmp_path: Path) -> None:
    async def many(opened: SqliteRegister) -> Ownership | None:
        await asyncio.gather(
            *(opened.advance(owned(n), expected_epoch=n - 1) for n in range(1, 31))
        )
        return await opened.read(VM)

    assert with_register(tmp_path, many) == owned(30)


def test_the_event_loop_goes_on_while_another_process_holds_the_file_and_then_a_clear_error_comes(
    tmp_path: Path,
) -> None:
    path = made(tmp_path, owned(1))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def wait(opened: SqliteRegister) -> int:
        turns = 0
        task = asyncio.ensure_future(opened.advance(owned(2), expected_epoch=1))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        with pytest.raises(RegisterError, match=r"more than 0\.2 s"):
            await task
        other.execute("ROLLBACK")
        assert await opened.read(VM) == owned(1)
        await opened.advance(owned(2), expected_epoch=1)
        return turns

    try:
        assert with_register(tmp_path, wait, busy_timeout_s=0.2) > 100
    finally:
        other.close()


RIVAL = """
import asyncio, os, sys
from pathlib import Path
from novacron import Fenced, NodeFacts, Ownership
from novacron_consensus_sqlite import SqliteRegister, SqliteSettings
state, me, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
async def main():
    register = SqliteRegister(SqliteSettings(), NodeFacts(name=me, state_dir=state))
    while True:
        present = await register.read("vm1")
        epoch = present.epoch if present else 0
        if epoch >= last:
            break
        try:
            new = Ownership(machine="vm1", owner=me, epoch=epoch + 1)
            await register.advance(new, expected_epoch=epoch)
        except Fenced:
            continue
        os.write(1, f"{epoch + 1}\\n".encode())
    await register.close()
asyncio.run(main())
"""


def rival(state: Path, me: str, last: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", RIVAL, str(state), me, str(last)], stdout=subprocess.PIPE
    )


def test_of_three_processes_exactly_one_wins_each_epoch(tmp_path: Path) -> None:
    state = tmp_path / "state"
    rivals = [rival(state, f"node{n}", 90) for n in range(3)]
    won: list[int] = []
    for process in rivals:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        won += map(int, output.split())
    assert sorted(won) == list(range(1, 91))


def test_after_kill_9_the_epoch_is_the_last_acknowledged_or_the_one_in_flight(
    tmp_path: Path,
) -> None:
    seed = 20240607
    chance = random.Random(seed)
    state = tmp_path / "state"
    known = 0
    for turn in range(12):
        process = rival(state, f"node{turn}", 10**9)
        assert process.stdout is not None
        for _ in range(chance.randrange(1, 25)):
            known = int(process.stdout.readline())
        # A few more microseconds, so that the kill meets every step of a transaction.
        for _ in range(chance.randrange(0, 20_000)):
            pass
        os.kill(process.pid, signal.SIGKILL)
        for line in process.stdout.read().split():
            known = int(line)
        process.stdout.close()
        assert process.wait(10) == -signal.SIGKILL

        async def epoch(opened: SqliteRegister) -> int:
            record = await opened.read(VM)
            assert record is not None
            return record.epoch

        found = with_register(tmp_path, epoch)
        assert found in (known, known + 1), f"seed={seed} turn={turn}"
        known = found


FULL = """
import asyncio, resource, sys
from pathlib import Path
from novacron import NodeFacts, Ownership
from novacron_consensus_sqlite import RegisterError, SqliteRegister, SqliteSettings
async def main():
    node = NodeFacts(name="alpha", state_dir=Path(sys.argv[1]))
    register = SqliteRegister(SqliteSettings(), node)
    old = await register.read("vm1")
    new = Ownership(machine="vm1", owner="beta", epoch=old.epoch + 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
        await register.advance(new, expected_epoch=old.epoch)
    except RegisterError as error:
        assert "could not be written" in str(error) and "full" in error.hint, error
        refused = True
    else:
        refused = False
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert await register.read("vm1") == (old if refused else new)
    await register.advance(new, expected_epoch=None)
    assert await register.read("vm1") == new
    print("refused" if refused else "written")
asyncio.run(main())
"""


@pytest.mark.parametrize("room", [0, 100, 512, 600, 4096, 4700, 8192, 1 << 20])
def test_a_full_disk_refuses_the_record_and_changes_nothing(tmp_path: Path, room: int) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    made(tmp_path, owned(1))
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "state"), str(room)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == ("written" if room == 1 << 20 else "refused")


def test_a_full_disk_leaves_no_half_made_register(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; from novacron import NodeFacts\n"
        "from novacron_consensus_sqlite import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))\n"
        "try: SqliteRegister(SqliteSettings(), NodeFacts(name='a', state_dir=Path(sys.argv[1])))\n"
        "except RegisterError as error: print(error.hint)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "full" in ran.stdout
    assert list((tmp_path / "state" / "consensus-sqlite").iterdir()) == []
    made(tmp_path, owned(1))


def truncated_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def truncated_in_the_middle(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwritten_by_text(path: Path) -> None:
    path.write_text("not a database, but long enough to have a header " * 20)


def zeroed_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(4096)
    path.write_bytes(data)


def flipped_owner(path: Path) -> None:
    data = path.read_bytes()
    assert data.count(b"alpha") == 1
    path.write_bytes(data.replace(b"alpha", b"alphb"))


def changed_epoch(path: Path) -> None:
    change(path, "UPDATE ownership SET epoch = 7")


def epoch_of_another_type(path: Path) -> None:
    change(path, "UPDATE ownership SET epoch = 'seven'")


def another_applications_file(path: Path) -> None:
    change(path, "PRAGMA application_id = 1")


def newer_schema(path: Path) -> None:
    change(path, "PRAGMA user_version = 2")


def with_a_trigger(path: Path) -> None:
    change(
        path,
        "CREATE TRIGGER t AFTER INSERT ON ownership BEGIN DELETE FROM ownership; END",
    )


def removed_beside_its_journal(path: Path) -> None:
    path.rename(path.with_name("ownership.db-journal"))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        truncated_to_nothing,
        truncated_in_the_middle,
        overwritten_by_text,
        zeroed_page,
        flipped_owner,
        changed_epoch,
        epoch_of_another_type,
        another_applications_file,
        newer_schema,
        with_a_trigger,
        removed_beside_its_journal,
        a_folder,
    ],
)
def test_a_damaged_or_foreign_file_is_refused_with_a_hint_and_left_as_it_is(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = made(tmp_path, owned(1))
    damage(path)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}

    async def use(opened: SqliteRegister) -> None:
        with pytest.raises(RegisterError):
            await opened.read(VM)
        with pytest.raises(RegisterError):
            await opened.advance(owned(2), expected_epoch=None)
        await opened.owned_by("alpha")

    with pytest.raises(RegisterError) as caught:
        with_register(tmp_path, use)
    assert caught.value.hint
    assert str(path) in str(caught.value)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()} == before


def test_a_file_that_is_replaced_under_a_running_register_is_noticed(tmp_path: Path) -> None:
    path = made(tmp_path, owned(5))

    async def replace(opened: SqliteRegister) -> None:
        assert await opened.read(VM) == owned(5)
        copy = path.with_name("copy.db")
        shutil.copy(path, copy)
        os.replace(copy, path)
        with pytest.raises(RegisterError, match="replaced"):
            await opened.advance(owned(6), expected_epoch=5)
        path.unlink()
        with pytest.raises(RegisterError, match="removed"):
            await opened.read(VM)

    with_register(tmp_path, replace)
    assert not path.exists()


def test_a_state_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    with pytest.raises(RegisterError, match=r"cannot be used|failed") as caught:
        register(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("settings", [{"busy_timeout_s": 0}, {"busy_timeout_s": 61}, {"path": 3}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        SqliteSettings(**settings)
