"""A journal that cannot be written refuses the move before its commit; the machine runs on."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, assert_never_two_ran, move


@contextlib.contextmanager
def tiny_filesystem(folder: Path) -> Iterator[None]:
    """A file system of 16 KiB at a folder, for as long as the context lasts."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tiny file system needs root: run as root")
    folder.mkdir(parents=True, mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, timeout=20).returncode:
        pytest.skip("this host lets nobody mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["a", "b"])
def test_a_full_disk_refuses_the_move_and_a_retry_works_once_there_is_room(
    tmp_path: Path, side: str
) -> None:
    cluster = Cluster(tmp_path)
    sessions = cluster.nodes[side].state_dir / "sessions"
    with tiny_filesystem(sessions), cluster:
        cluster.create("vm", guest="counter", tick_ms=10)
        ballast = sessions / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as filling:
            while True:
                filling.write(bytes(4096))
        ended = cluster.a.client.wait(cluster.a.client.migrate("vm", "b")["id"])
        assert ended["state"] == "failed"
        assert "No space left" in ended["error"]["message"]
        assert [m["state"] for m in cluster.a.client.machines()] == ["running"]
        assert cluster.b.client.machines() == []
        ballast.unlink()
        move(cluster.a, cluster.b, "vm")
        assert_never_two_ran(cluster.runs_log)
