"""The demo as its users run it: a process that starts nodes, moves a machine and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from novacron import ConfigError, PluginManager
from novacron_demo._command import parse_memory
from novacron_demo._load import KvLoad, TickLoad
from novacron_demo._show import Paper
from novacron_demo._site import MACHINE, Site
from novacron_demo.wan import Wan
from novacron_machine_wasm import KvClient, service_path
from rich.console import Console

COMMAND = [sys.executable, "-P", "-c", "from novacron.shell import main; main()", "demo"]
FAST = ["--memory", "8MiB", "--wan", "1gbit,2ms"]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files with a short path, as sockets need it."""
    folder = Path(tempfile.mkdtemp(prefix="nd-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def environment(temporary: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(temporary), **more}


def run(temporary: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(temporary, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )


def processes_of(folder: Path) -> list[str]:
    """The command lines of processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


@pytest.mark.slow
def test_a_machine_moves_there_and_back_and_the_proof_holds(temporary: Path) -> None:
    ran = run(temporary, *FAST, "--json")
    assert ran.returncode == 0, ran.stderr
    report: dict[str, Any] = json.loads(ran.stdout)
    assert report["holds"]
    assert report["faults"] == []
    there, back = report["moves"]
    assert (there["source"], there["target"]) == ("a", "b")
    assert (back["source"], back["target"]) == ("b", "a")
    assert there["raw_bytes"] > 4 << 20
    assert back["wire_bytes"] < there["wire_bytes"] / 2
    assert there["downtime_ms"] > 0
    assert 0 < there["gap_ms"] < 1000 * there["seconds"] + 1000
    assert report["figures"]["acknowledged_writes"] > 100
    assert report["figures"]["entries_read_back"] > 50
    assert report["figures"]["stretches"] == 3
    assert list(temporary.iterdir()) == []
    assert processes_of(temporary) == []


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_move_leaves_no_process_and_no_file(temporary: Path) -> None:
    started = subprocess.Popen(
        [*COMMAND, "--memory", "64MiB", "--wan", "20mbit,20ms"],
        env=environment(temporary),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    seen = []
    for line in started.stdout:
        seen.append(line)
        if line.startswith("  copy"):
            started.send_signal(signal.SIGINT)
            break
    _, told = started.communicate(timeout=120)
    assert started.returncode == 13, told
    assert any("a →" in line or "a >" in line for line in seen)
    assert "was ended" in told
    assert list(temporary.iterdir()) == []
    assert processes_of(temporary) == []


@pytest.mark.slow
def test_a_lost_entry_is_noticed_when_the_writes_are_read_back(temporary: Path) -> None:
    keep = temporary / "k"
    with Site(Wan.parse("1gbit,0ms"), keep) as site:
        site.a.finish(
            site.a.client.create(
                MACHINE, driver="wasm", memory_bytes=1 << 20, settings={"guest": "kv"}
            )
        )
        services = [service_path(node.home(MACHINE)) for node in site.nodes]
        load = KvLoad(services, 0.001, 10)
        load.start()
        load.wait_for_acks(60, 30)
        load.stop()
        assert load.read_back().faults == ()
        with KvClient(services[0]) as client:
            client.delete(b"order-3")
            client.put(b"stock-1", b"an older value")
        faults = load.read_back().faults
        assert any("order-3" in fault and "missing" in fault for fault in faults)
        assert any("stock-1" in fault and "older value" in fault for fault in faults)
        assert any("entries" in fault for fault in faults)
    assert processes_of(temporary) == []
    assert (keep / "a.log").exists()


def test_ticks_are_read_from_each_console_in_the_order_of_the_stays(tmp_path: Path) -> None:
    here, there = tmp_path / "a.log", tmp_path / "b.log"
    here.write_bytes(b"guest ready\r\ntick 1\r\nti")
    load = TickLoad([here, there])
    load.start()
    load.wait_for_acks(1, 10)
    there.write_bytes(b"ck 2\r\ntick 3\r\n")
    load.wait_for_acks(1, 10)
    here.unlink()
    here.write_bytes(b"tick 4\r\n")
    load.wait_for_acks(1, 10)
    load.stop()
    load.close()
    assert load.ticks().count == 4
    assert load.ticks().faults == ()


@pytest.mark.parametrize(
    ("text", "value"), [("64MiB", 64 << 20), ("1 gib", 1 << 30), ("512K", 512 << 10)]
)
def test_a_memory_size_is_read(text: str, value: int) -> None:
    assert parse_memory(text) == value


@pytest.mark.parametrize("text", ["", "64", "-1MiB", "64 bananas", "9" * 30 + "MiB"])
def test_a_memory_size_that_makes_no_sense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_memory(text)
    assert "64MiB" in refused.value.hint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--wan", "fast"], "100mbit,80ms"),
        (["--memory", "8KiB"], "1MiB"),
        (["--memory", "9GiB"], "2048MiB"),
        (["--memory", "1025KiB"], "multiple of 64KiB"),
        (["--machine", "qemu", "--memory", "1MiB"], "96MiB"),
    ],
    ids=["rate", "too little", "too much", "not whole", "too little for a guest"],
)
@pytest.mark.slow
def test_what_cannot_be_is_refused_with_the_cure(
    temporary: Path, arguments: list[str], words: str
) -> None:
    ran = run(temporary, *arguments)
    assert ran.returncode != 0
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_without_a_guest_kernel_the_qemu_demo_says_how_to_get_one(temporary: Path) -> None:
    ran = run(temporary, "--machine", "qemu", PATH="/nowhere")
    assert ran.returncode == 3
    assert "scripts/debian-packages" in ran.stderr


def test_a_folder_to_keep_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(ConfigError, match="not empty"):
        Site(Wan.parse("1gbit,0ms"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_the_profile_standard_names_a_provider_for_each_domain_in_each_mode() -> None:
    manager = PluginManager.load()
    offered = [
        profiles["standard"]
        for _, profiles, error in manager.call("novacron_register_profiles")
        if not error and profiles
    ]
    (standard,) = offered
    assert standard["description"]
    for mode in ("datacenter", "hybrid", "internet"):
        for domain, name in standard["modes"][mode].items():
            assert name in manager.providers(domain)


def test_a_console_that_knows_ascii_alone_gets_ascii_alone(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        Paper(Console(file=file)).done("a → b · moved…")
    assert (tmp_path / "out").read_text() == "+ a > b - moved.\n"
