"""A small file is the old one or the new one, whatever happens in between."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from novacron import ConfigError, durable


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_a_process(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Limits and signals belong to a process of their own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(folder / "file")],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_file_is_written_and_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write(path, b"old")
    durable.write(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert files(tmp_path) == ["file"]


def test_a_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    durable.write(tmp_path / "file", b"secret")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_what_an_interrupted_write_left_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".file.new").write_bytes(b"a much longer piece of an interrupted write")
    durable.write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert files(tmp_path) == ["file"]


def test_a_write_that_finds_no_room_keeps_the_old_file_and_clears_up(tmp_path: Path) -> None:
    durable.write(tmp_path / "file", b"old")
    done = in_a_process(
        tmp_path,
        """
        import resource, signal, sys
        from pathlib import Path
        from novacron import durable
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            durable.write(Path(sys.argv[1]), b"n" * 10_000)
        except OSError as error:
            print("refused", error.errno)
        """,
    )
    assert done.stdout.startswith("refused"), done.stderr
    assert (tmp_path / "file").read_bytes() == b"old"
    assert files(tmp_path) == ["file"]


def test_a_writer_killed_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    durable.write(tmp_path / "file", b"old")
    done = in_a_process(
        tmp_path,
        """
        import os, signal, sys
        from pathlib import Path
        from novacron import durable
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        durable.write(Path(sys.argv[1]), b"new")
        """,
    )
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_bytes() == b"old"


def test_the_content_is_durable_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("sync folder" if is_folder else "sync file")
        fsync(descriptor)

    def noted_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    durable.write(tmp_path / "file", b"new")
    assert steps == ["sync file", "rename", "sync folder"]


def test_a_file_in_a_folder_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        durable.write(tmp_path / "absent" / "file", b"new")


def test_a_value_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    durable.write_json(path, {"a": [1, 2.5, None], "ü": {"b": True}})
    assert durable.read_json(path) == {"a": [1, 2.5, None], "ü": {"b": True}}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b'{"a": ', b"\xff\xfe", b'{"a": 1} x', b"[" * 100_000]
)  # fmt: skip
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"value\.json is damaged") as error:
        durable.read_json(path)
    assert "backup" in error.value.hint


def test_removing_twice_is_once(tmp_path: Path) -> None:
    durable.write(tmp_path / "file", b"x")
    durable.remove(tmp_path / "file")
    durable.remove(tmp_path / "file")
    assert files(tmp_path) == []
