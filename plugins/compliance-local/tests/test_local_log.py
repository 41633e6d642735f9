"""The operation log's own tests: the chain, crashes, full disks, the lock and the commands."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from novacron import Conflict, LogEntry, NodeFacts, NotFound, Refused
from novacron_compliance_local import LocalLog, LocalSettings, LogError, novacron_register_commands

T = TypeVar("T")
ZEROS = "0" * 64


def opened(tmp_path: Path) -> LocalLog:
    return LocalLog(LocalSettings(), NodeFacts(name="alpha", state_dir=tmp_path / "state"))


def with_log(tmp_path: Path, use: Callable[[LocalLog], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        log = opened(tmp_path)
        try:
            return await use(log)
        finally:
            await log.close()

    return asyncio.run(run())


def filled(tmp_path: Path, count: int = 5) -> Path:
    async def fill(log: LocalLog) -> Path:
        for number in range(count):
            await log.append(f"op-{number}", "requested", {"kind": "migrate", "try": number})
        return log.path

    return with_log(tmp_path, fill)


def entries(tmp_path: Path) -> list[LogEntry]:
    async def read(log: LocalLog) -> list[LogEntry]:
        log.verify()
        return list(log.entries())

    return with_log(tmp_path, read)


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def offline(tmp_path: Path, *arguments: str) -> Any:
    """What a command of ``novacron log`` prints; what it raises is raised."""
    (group,) = novacron_register_commands()
    done = CliRunner().invoke(
        group, [*arguments, "--state", str(tmp_path / "state")], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.output


def test_entries_are_chained_and_are_what_append_returned(tmp_path: Path) -> None:
    async def use(log: LocalLog) -> None:
        first = await log.append("op-1", "requested", {"kind": "create", "sizes": (1, 2)})
        second = await log.append("op-1", "succeeded", {})
        assert (first.sequence, first.node, first.previous) == (1, "alpha", ZEROS)
        assert first.detail == {"kind": "create", "sizes": [1, 2]}
        assert second.previous == first.digest
        assert list(log.entries()) == [first, second]
        assert list(log.entries(after=1)) == [second]
        assert log.verify() == 2

    with_log(tmp_path, use)


def test_the_chain_goes_on_after_the_log_is_opened_again(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    filled(tmp_path, 2)
    assert [entry.sequence for entry in entries(tmp_path)] == [1, 2, 3, 4]


def test_an_empty_log_is_sound_and_its_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    assert entries(tmp_path) == []
    folder = tmp_path / "state" / "compliance-local"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_appends_at_once_become_one_chain_in_the_order_they_were_asked_for(tmp_path: Path) -> None:
    async def use(log: LocalLog) -> None:
        made = await asyncio.gather(*(log.append(f"op-{n}", "requested", {}) for n in range(40)))
        assert [entry.operation for entry in log.entries()] == [f"op-{n}" for n in range(40)]
        assert list(log.entries()) == list(made)
        assert log.verify() == 40

    with_log(tmp_path, use)


@pytest.mark.parametrize(
    "detail",
    [
        {"a": object()},
        {"a": Path("/x")},
        {"a": "x" * (1 << 20)},
        {"a": "\ud800"},
    ],
)
def test_a_detail_that_cannot_be_kept_is_refused_and_the_log_goes_on(
    tmp_path: Path, detail: dict[str, Any]
) -> None:
    async def use(log: LocalLog) -> None:
        with pytest.raises(ValueError, match="log entry"):
            await log.append("op-1", "requested", detail)
        await log.append("op-2", "requested", {})
        assert log.verify() == 1

    with_log(tmp_path, use)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), min_size=1, max_size=3))
def test_whatever_json_is_logged_is_read_back_and_verified(
    tmp_path: Path, details: list[dict[str, Any]]
) -> None:
    async def use(log: LocalLog) -> None:
        start = log.verify()
        made = [await log.append("op", "requested", detail) for detail in details]
        assert list(log.entries(after=start)) == made
        assert log.verify() == start + len(made)

    with_log(tmp_path, use)


def test_a_second_writer_is_told_who_is_in_the_way_and_the_first_goes_on(tmp_path: Path) -> None:
    async def use(log: LocalLog) -> None:
        with pytest.raises(Conflict, match="another process") as caught:
            opened(tmp_path)
        assert caught.value.hint
        await log.append("op-1", "requested", {})
        assert log.verify() == 1

    with_log(tmp_path, use)
    assert len(entries(tmp_path)) == 1  # the lock is free again


def test_a_closed_log_says_so_and_closing_twice_is_once(tmp_path: Path) -> None:
    async def use(log: LocalLog) -> None:
        await log.close()
        with pytest.raises(RuntimeError, match="closed"):
            await log.append("op-1", "requested", {})

    with_log(tmp_path, use)


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = filled(tmp_path)
    sound = path.read_bytes()
    chance = random.Random(7)
    ends = [index for index, byte in enumerate(sound) if byte == 0x0A]
    for position in [0, *ends[:-1], *chance.sample(range(len(sound) - 1), 300)]:
        changed = bytearray(sound)
        changed[position] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(Refused) as caught:
            offline(tmp_path, "verify")
        assert caught.value.facts["sequence"] == sound[:position].count(b"\n") + 1
    path.write_bytes(sound)
    assert "5 entries, all sound" in offline(tmp_path, "verify")


@pytest.mark.parametrize(
    ("edit", "first", "says"),
    [
        (lambda kept: kept[:1] + kept[2:], 2, "missing"),
        (lambda kept: kept[1:], 1, "missing"),
        (lambda kept: kept[:-1], 5, "missing"),
        (lambda kept: [], 1, "missing"),
        (lambda kept: [kept[0], kept[2], kept[1], *kept[3:]], 2, "missing"),
        (lambda kept: [*kept[:3], kept[1], *kept[3:]], 4, "out of order"),
        (lambda kept: [*kept[:2], kept[2].replace(b"op-2", b"op-9"), *kept[3:]], 3, "digest"),
        (lambda kept: [*kept[:2], kept[2].replace(b":", b": ", 1), *kept[3:]], 3, "written"),
        (lambda kept: [*kept[:2], b"{}\n", *kept[2:]], 3, "not a log entry"),
        (lambda kept: [b"[" * 100_000 + b"\n", *kept], 1, "not a log entry"),
        (lambda kept: [b"x" * (3 << 20) + b"\n", *kept], 1, "damaged"),
    ],
)
def test_an_edited_log_is_refused_at_the_first_entry_that_is_wrong(
    tmp_path: Path, edit: Callable[[list[bytes]], list[bytes]], first: int, says: str
) -> None:
    path = filled(tmp_path)
    path.write_bytes(b"".join(edit(lines(path))))
    with pytest.raises(Refused, match=says) as caught:
        offline(tmp_path, "verify")
    assert caught.value.facts["sequence"] == first


def test_an_entry_that_was_rewritten_with_a_right_digest_breaks_the_chain(tmp_path: Path) -> None:
    path = filled(tmp_path)
    kept = lines(path)
    other = tmp_path / "other"
    filled(other)  # the same entries at another time
    foreign = lines(other / "state" / "compliance-local" / "operations.jsonl")
    path.write_bytes(b"".join([*kept[:2], foreign[2], *kept[3:]]))
    with pytest.raises(Refused, match="entry 3 does not follow"):
        offline(tmp_path, "verify")
    path.write_bytes(b"".join(foreign))  # a whole chain, but not the one that was acknowledged
    with pytest.raises(Refused, match="entry 5 was changed"):
        offline(tmp_path, "verify")


def test_a_last_line_torn_at_any_byte_is_kept_aside_recorded_and_cut(tmp_path: Path) -> None:
    path = filled(tmp_path, 2)
    sound = path.read_bytes()
    head = path.with_name("head").read_bytes()
    line = lines(path)[-1].replace(b'"sequence":2', b'"sequence":3')
    for cut in range(1, len(line), 7):
        torn = line[:cut]
        path.write_bytes(sound + torn)
        path.with_name("head").write_bytes(head)
        assert "2 entries" in offline(tmp_path, "verify")
        found = entries(tmp_path)
        assert [entry.event for entry in found] == ["requested", "requested", "repaired"]
        assert found[2].detail["bytes"] == cut
        assert path.with_name(found[2].detail["kept_in"]).read_bytes() == torn
        assert entries(tmp_path) == found  # repaired once is repaired
        assert not list(path.parent.glob("*.pending"))


def test_a_last_line_whose_middle_was_lost_is_repaired_like_a_torn_one(tmp_path: Path) -> None:
    path = filled(tmp_path, 2)
    sound = path.read_bytes()
    path.write_bytes(sound + bytes(300) + b"\n")
    found = entries(tmp_path)
    assert [entry.event for entry in found] == ["requested", "requested", "repaired"]
    assert path.with_name(found[2].detail["kept_in"]).read_bytes() == bytes(300) + b"\n"


def test_a_log_that_is_one_torn_line_begins_anew_and_says_so(tmp_path: Path) -> None:
    path = filled(tmp_path, 0)
    path.write_bytes(b'{"sequence":1,"ti')
    assert [entry.event for entry in entries(tmp_path)] == ["repaired"]


@pytest.mark.parametrize("done", ["moved aside", "cut", "recorded"])
def test_a_crash_in_the_middle_of_the_repair_only_repeats_it(tmp_path: Path, done: str) -> None:
    path = filled(tmp_path, 2)
    sound, head = path.read_bytes(), path.with_name("head").read_bytes()
    path.write_bytes(sound + b'{"torn')
    found = entries(tmp_path)
    aside = path.with_name(found[2].detail["kept_in"])
    aside.rename(aside.with_name(aside.name + ".pending"))
    if done != "recorded":
        path.write_bytes(sound + (b'{"torn' if done == "moved aside" else b""))
        path.with_name("head").write_bytes(head)
    again = entries(tmp_path)
    assert [entry.event for entry in again] == ["requested", "requested", "repaired"]
    assert again[2].detail == found[2].detail
    assert aside.read_bytes() == b'{"torn'


def test_acknowledged_entries_that_vanished_from_the_end_are_recorded_as_missing(
    tmp_path: Path,
) -> None:
    path = filled(tmp_path, 5)
    lost = json.loads(lines(path)[-1])
    path.write_bytes(b"".join(lines(path)[:3]))
    found = entries(tmp_path)
    assert [entry.sequence for entry in found] == [1, 2, 3, 4]
    assert found[3].event == "repaired"
    assert found[3].detail["acknowledged_sequence"] == 5
    assert found[3].detail["acknowledged_digest"] == lost["digest"]


@pytest.mark.parametrize("tail", [b"x\ny\n", b"x\n" * 3 + b"y"])
@pytest.mark.parametrize("count", [0, 1])
def test_a_log_with_more_damage_than_a_crash_makes_is_not_opened_and_left_as_it_is(
    tmp_path: Path, tail: bytes, count: int
) -> None:
    path = filled(tmp_path, count)
    damaged = path.read_bytes() + tail
    path.write_bytes(damaged)
    with pytest.raises(Refused, match="both damaged") as caught:
        opened(tmp_path)
    assert caught.value.hint
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("what", ["longer", "shorter", "replaced", "removed"])
def test_a_log_that_somebody_else_touches_while_it_is_open_takes_no_entry(
    tmp_path: Path, what: str
) -> None:
    async def use(log: LocalLog) -> None:
        await log.append("op-1", "requested", {})
        sound = log.path.read_bytes()
        if what == "longer":
            log.path.write_bytes(sound + b"x")
        elif what == "shorter":
            os.truncate(log.path, 3)
        else:
            log.path.rename(log.path.with_name("away"))
            if what == "replaced":
                log.path.write_bytes(sound)
        with pytest.raises(LogError, match="while this node used it") as caught:
            await log.append("op-2", "requested", {})
        assert isinstance(caught.value, OSError)
        if what == "shorter":
            with pytest.raises(Refused):
                log.verify()

    with_log(tmp_path, use)


FULL = """
import asyncio, resource, sys
from pathlib import Path
from novacron import NodeFacts
from novacron_compliance_local import LocalLog, LocalSettings, LogError
async def main():
    log = LocalLog(LocalSettings(), NodeFacts(name="alpha", state_dir=Path(sys.argv[1])))
    first = await log.append("op-1", "requested", {})
    sound = log.path.read_bytes()
    for room in range(0, len(sound), 13):
        limit = (len(sound) + room, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        try:
            await log.append("op-2", "requested", {})
        except OSError as error:
            assert isinstance(error, LogError) and error.hint, error
        else:
            raise SystemExit("a full disk took an entry")
        assert log.path.read_bytes() == sound
        assert log.verify() == 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    second = await log.append("op-2", "requested", {})
    assert second.previous == first.digest
    assert log.verify() == 2
asyncio.run(main())
"""

ENDLESS = """
import asyncio, os, sys
from pathlib import Path
from novacron import NodeFacts
from novacron_compliance_local import LocalLog, LocalSettings
async def main():
    log = LocalLog(LocalSettings(), NodeFacts(name="alpha", state_dir=Path(sys.argv[1])))
    while True:
        entry = await log.append("op", "requested", {"filler": "x" * 20000})
        os.write(1, f"{entry.sequence}\\n".encode())
asyncio.run(main())
"""


def test_a_full_disk_adds_nothing_at_whatever_byte_it_strikes(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_after_kill_9_every_acknowledged_entry_is_there_and_the_chain_holds(tmp_path: Path) -> None:
    seed = 99
    chance = random.Random(seed)
    for turn in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(tmp_path / "state")], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        known = 0
        for _ in range(chance.randrange(1, 20)):
            known = int(process.stdout.readline())
        for _ in range(chance.randrange(0, 20_000)):
            pass  # so that the kill meets every step of an append
        os.kill(process.pid, signal.SIGKILL)
        for line in process.stdout.read().split():
            known = int(line)
        process.stdout.close()
        assert process.wait(10) == -signal.SIGKILL
        found = [entry for entry in entries(tmp_path) if entry.event == "requested"]
        assert found[-1].sequence in (known, known + 1), f"seed={seed} turn={turn}"


def test_the_commands_read_the_log_of_a_state_folder(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    listed = json.loads(offline(tmp_path, "list", "--json", "--after", "1"))
    assert [entry["sequence"] for entry in listed] == [2, 3]
    assert listed[0]["detail"] == {"kind": "migrate", "try": 1}
    text = offline(tmp_path, "list").splitlines()
    assert len(text) == 3
    assert "op-2" in text[2]
    verified = json.loads(offline(tmp_path, "verify", "--json"))
    assert verified["entries"] == 3
    assert verified["digest"] == listed[-1]["digest"]
    assert json.loads(offline(tmp_path, "list", "--json", "--after", "9")) == []


def test_the_commands_read_while_a_node_writes(tmp_path: Path) -> None:
    async def use(log: LocalLog) -> None:
        await log.append("op-1", "requested", {})
        assert "1 entries" in await asyncio.to_thread(offline, tmp_path, "verify")

    with_log(tmp_path, use)


@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_folder_without_a_log_is_named(tmp_path: Path, command: str) -> None:
    with pytest.raises(NotFound, match=r"operations\.jsonl"):
        offline(tmp_path, command)


def test_a_state_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    with pytest.raises(LogError) as caught:
        opened(tmp_path)
    assert caught.value.hint
