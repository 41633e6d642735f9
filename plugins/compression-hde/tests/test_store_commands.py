"""``novacron store``, run as a person runs it."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from novacron import Batch, CodecSession, NodeFacts
from novacron_compression_hde import HdeCompression, HdeDecoder, HdeEncoder, Settings

NOVACRON = Path(sys.executable).parent / "novacron"
PAGE = 4096


def page(number: int) -> bytes:
    return random.Random(number).randbytes(PAGE)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "novacron.toml"
    path.write_text(f'[node]\nname = "alpha"\nstate_dir = "{tmp_path / "state"}"\n')
    (tmp_path / "state").mkdir(mode=0o700)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    # Equal pages, holes, and a part of a page at the end.
    path.write_bytes(page(1) + bytes(8 * PAGE) + page(2) + page(1) + page(3) + b"rest")
    return path


def store(
    config: Path, *arguments: str, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) if path is None else {**os.environ, "PATH": path}
    return subprocess.run(
        [str(NOVACRON), "--config", str(config), "store", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )


def decoded(config: Path, *arguments: str) -> object:
    ran = store(config, *arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.slow
def test_an_image_that_was_added_is_listed_counted_used_and_removed(
    config: Path, image: Path, tmp_path: Path
) -> None:
    assert decoded(config, "list") == []
    added = decoded(config, "add", str(image), "--name", "debian")
    assert isinstance(added, dict)
    assert (added["kind"], added["name"], added["pages"]) == ("image", "debian", 3)
    assert "debian" in store(config, "list").stdout
    stats = decoded(config, "stats")
    assert isinstance(stats, dict)
    assert stats["kinds"]["image"]["references"] == 1
    assert 0 < stats["allocated_bytes"] <= stats["budget_bytes"]

    # A machine made from it refers to it, whoever owns it.
    codec = HdeCompression(Settings(), NodeFacts(name="alpha", state_dir=tmp_path / "state"))
    session = CodecSession(
        session="mig-1", machine="m", driver="fake", peer="beta", tenant="t",
        memory_bytes=64 << 20, role="destination",
    )  # fmt: skip
    decoder = HdeDecoder(Settings(), codec.kept, session)
    encoder = HdeEncoder(Settings(), codec.kept, session)
    encoder.peer_has(decoder.have())
    batch = Batch(
        b"", struct.pack("<4Q", 0, PAGE, 2 * PAGE, 3 * PAGE), page(2) + page(3) + page(1) + page(4)
    )
    assert bytes(decoder.decode(encoder.encode(batch)).pages) == batch.pages
    assert encoder.figures()["reference"]["pages"] == 3

    busy = store(config, "remove", added["id"])
    assert busy.returncode == 3
    assert "in use" in busy.stderr
    encoder.ended(False)
    decoder.ended(False)
    assert decoded(config, "remove", added["id"]) == {
        "removed": [added["id"]],
        "freed_bytes": added["allocated_bytes"],
    }
    assert [entry["kind"] for entry in decoded(config, "list")] == ["partial", "partial"]  # type: ignore[attr-defined]
    pruned = decoded(config, "prune", "--to-bytes", "0")
    assert len(pruned["removed"]) == 2  # type: ignore[index]
    assert decoded(config, "list") == []


@pytest.mark.slow
def test_what_cannot_be_done_says_why_and_what_to_do(config: Path, tmp_path: Path) -> None:
    unknown = store(config, "remove", "nothing")
    assert unknown.returncode == 3
    assert "novacron store list" in unknown.stderr
    missing = store(config, "add", str(tmp_path / "missing"))
    assert "there is no file" in missing.stderr
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(4 * PAGE))
    assert "not zero" in store(config, "add", str(empty)).stderr
    qcow2 = tmp_path / "disk.qcow2"
    qcow2.write_bytes(b"QFI\xfb" + bytes(100))
    without = store(config, "add", str(qcow2), path="/nowhere")
    assert without.returncode != 0
    assert "qemu-utils" in without.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_a_qcow2_image_is_read_by_qemu_img(config: Path, image: Path, tmp_path: Path) -> None:
    qcow2 = tmp_path / "disk.qcow2"
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(image), str(qcow2)],
        check=True,
        timeout=60,
    )
    added = decoded(config, "add", str(qcow2))
    assert isinstance(added, dict)
    assert added["pages"] >= 3


@pytest.mark.slow
def test_an_image_over_the_budget_is_not_kept(config: Path, image: Path) -> None:
    with open(config, "a", encoding="utf-8") as file:
        file.write("[compression.hde]\nstore_bytes = 1000\n")
    ran = store(config, "add", str(image))
    assert ran.returncode == 1
    assert "budget" in ran.stderr
    assert decoded(config, "list") == []
