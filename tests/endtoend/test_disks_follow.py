"""A machine's disk follows it between real nodes, also if one of them is killed on the way."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cluster import Cluster, done
from novacron_qemu.counter import counter_rom
from waiting import until

PLACES = ["source:copy", "source:run", "destination:copy", "destination:run"]
IMAGE = "disk.qcow2"


def make_disk(image: Path) -> None:
    """A qcow2 disk of 64 MiB with 8 MiB of content."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "64M"], check=True)
    argv = ["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 1M 4M", "-c", "write -q -P 8 40M 4M"]
    subprocess.run([*argv, str(image)], check=True)


def same(one: Path, other: Path) -> bool:
    argv = ["qemu-img", "compare", "-q", "-U", "-f", "qcow2", "-F", "qcow2", str(one), str(other)]
    return subprocess.run(argv).returncode == 0


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_disk_is_whole_and_alone_after_a_node_was_killed_on_the_way(
    tmp_path: Path, place: str
) -> None:
    if shutil.which("qemu-system-x86_64") is None or shutil.which("qemu-img") is None:
        pytest.skip("no QEMU: run scripts/debian-packages")
    cluster = Cluster(tmp_path, resume_for_s=30.0)
    files = {name: tmp_path / f"{name}-files" for name in "ab"}
    for name, folder in files.items():
        folder.mkdir()
        with cluster.nodes[name].config_path.open("a") as config:
            config.write(f'\n[machine.qemu]\nfiles = "{folder}"\n')
    make_disk(files["a"] / IMAGE)
    make_disk(tmp_path / "reference.qcow2")
    (tmp_path / "rom").write_bytes(counter_rom())
    victim = cluster.a if place.startswith("source") else cluster.b
    victim.environment = {
        "NOVACRON_CHAOS": place,
        "NOVACRON_CHAOS_DONE": str(tmp_path / "struck"),
    }
    settings = {
        "arguments": ["-bios", str(tmp_path / "rom")],
        "accel": "tcg",
        "disks": [{"path": IMAGE, "format": "qcow2"}],
    }
    with cluster:
        done(
            cluster.a,
            cluster.a.client.create("vm", driver="qemu", memory_bytes=16 << 20, settings=settings),
        )
        operation = cluster.a.client.migrate("vm", "b", storage="copy", verify="memory")
        victim.wait_dead()
        assert (tmp_path / "struck").exists()
        victim.start()
        ended = cluster.a.client.wait(operation["id"])
        assert ended["state"] == "succeeded", ended
        until(lambda: [m["state"] for m in cluster.b.client.machines()] == ["running"], 60)
        until(lambda: cluster.a.client.machines() == [], 60)
        left = {name: sorted(path.name for path in files[name].iterdir()) for name in "ab"}
        assert left == {"a": [IMAGE, f"{IMAGE}.novacron"], "b": [IMAGE]}
        assert same(files["b"] / IMAGE, tmp_path / "reference.qcow2")
        back = done(cluster.b, cluster.b.client.migrate("vm", "a", storage="copy"))
        # Memory, and next to nothing of the disk.
        assert back["result"]["raw_bytes"] < 4 << 20
        assert same(files["a"] / IMAGE, tmp_path / "reference.qcow2")
