"""Labs that are really up: what passes, what is counted, and that nothing is left of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from novacron import ConfigError, Conflict, NotFound, ShellState
from novacron_lab import Bursts, DirectionStats, Lab, LinkSpec, Outage, _traffic
from novacron_lab._commands import lab as commands

pytestmark = [pytest.mark.netns, pytest.mark.slow]
NAME = f"t{os.getpid()}"
FAST = LinkSpec(engine="emulator")


@pytest.fixture(autouse=True)
def state_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place of this test's own; short, as the name of a socket has to be."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a lab needs root and iproute2: run as root")
    before = remains()
    with tempfile.TemporaryDirectory(prefix="nlab") as folder:
        monkeypatch.setenv("NOVACRON_LAB_STATE", folder)
        try:
            yield Path(folder)
            assert remains() == before
        finally:
            for name in Lab.names():
                Lab.open(name).down()


def remains() -> list[str]:
    """Namespaces of labs of these tests."""
    folder = Path("/run/netns")
    found = folder.glob(f"lab-{NAME}*") if folder.is_dir() else ()
    return sorted(path.name for path in found)


def until(condition: Callable[[], object]) -> None:
    """Counters have no event, so they are looked at until they say it."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "not within 20 s"
        time.sleep(0.01)


def python(lab: Lab, site: str, code: str, *arguments: object) -> str:
    """Run Python in a site; what it printed."""
    argv = [sys.executable, "-c", "import socket, sys, time\n" + code, *map(str, arguments)]
    done = subprocess.run(lab.command(site, argv), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


FLOOD = """
to, count, size, gap = sys.argv[1], *map(float, sys.argv[2:])
family = socket.AF_INET6 if ":" in to else socket.AF_INET
sender = socket.socket(family, socket.SOCK_DGRAM)
sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
begin = time.monotonic()
for n in range(int(count)):
    while time.monotonic() - begin < n * gap:
        pass
    sender.sendto(bytes(int(size)), (to, 9))
"""


def flood(lab: Lab, a: str, b: str, count: int, *, size: int = 1000, gap_s: float = 0.0) -> None:
    """Datagrams to nobody; they are counted on the way."""
    python(lab, a, FLOOD, lab.site(b).address, count, size, gap_s)


def settled(lab: Lab, wire: str, packets: int) -> DirectionStats:
    """Its counters when so many packets have met their fate."""

    def over() -> bool:
        s = lab.stats()[wire]
        done = s.forwarded_packets + s.lost_packets + s.taildrop_packets + s.outage_packets
        return done >= packets and s.flight_packets == s.queue_packets == 0

    until(over)
    return lab.stats()[wire]


class Transfer:
    """A megabytes' worth of TCP from one site to another; what arrived, by hash."""

    SINK = """
import hashlib
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], 7), family=family) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    digest = hashlib.sha256()
    while data := connection.recv(1 << 20):
        digest.update(data)
    print(digest.hexdigest(), flush=True)
"""
    SOURCE = """
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family) as sender:
    sender.connect((sys.argv[1], 7))
    sender.sendall(sys.stdin.buffer.read())
"""

    def __init__(self, lab: Lab, address: str, data: bytes) -> None:
        argv = [sys.executable, "-c", "import socket, sys\n" + self.SINK, address]
        sink = subprocess.Popen(lab.command("b", argv), stdout=subprocess.PIPE, text=True)
        assert sink.stdout is not None
        with sink, sink.stdout:
            sink.stdout.readline()
            argv = [sys.executable, "-c", "import socket, sys\n" + self.SOURCE, address]
            subprocess.run(lab.command("a", argv), input=data, check=True, timeout=60)
            self.digest = sink.stdout.readline().strip()


# --------------------------------------------------------------------- what passes


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "single packets"])
def test_what_arrives_over_a_bad_link_is_what_was_sent(family: str, offload: bool) -> None:
    bad = LinkSpec(
        engine="emulator", rate_bit_per_s=400e6, delay_s=0.002, jitter_s=0.001, loss=0.002,
        reorder=0.005, reorder_by_s=0.001,
    )  # fmt: skip
    data = os.urandom(8 << 20)
    with Lab.up(NAME, links=bad, offload=offload) as lab:
        site = lab.site("b")
        address = site.address if family == "IPv4" else site.address6
        assert Transfer(lab, address, data).digest == hashlib.sha256(data).hexdigest()
        there = lab.stats()["a>b"]
        assert there.lost_packets > 0
        # Every packet of the wire was looked at, however large the ones that were handed over.
        assert there.in_bytes / there.in_packets <= 1500
        assert there.in_packets > len(data) / 1500


def test_udp_super_packets_are_cut_and_joined_as_well() -> None:
    code = """
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.SOL_UDP, 103, 1000)  # UDP_SEGMENT
sender.sendto(bytes(range(256)) * 40, (sys.argv[1], 5))
"""
    sink = """
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind((sys.argv[1], 5))
    server.settimeout(20)
    print("ready", flush=True)
    data = b"".join(server.recv(65536) for _ in range(11))
    print(data == bytes(range(256)) * 40, flush=True)
"""
    with Lab.up(NAME, links=FAST) as lab:
        address = lab.site("b").address
        argv = lab.command("b", [sys.executable, "-c", "import socket, sys\n" + sink, address])
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            server.stdout.readline()
            python(lab, "a", code, address)
            assert server.stdout.readline() == "True\n"
        assert lab.stats()["a>b"].in_packets == 11


def test_a_full_link_carries_its_rate_and_drops_the_rest() -> None:
    rate = 50e6
    with Lab.up(NAME, links=LinkSpec(engine="emulator", rate_bit_per_s=rate)) as lab:
        # 8.2 MB offered within half a second: 3 MB of it fit, in the queue and on the wire.
        flood(lab, "a", "b", 8000, gap_s=6e-5)
        before = after = lab.stats()["a>b"]
        while (now := lab.stats()["a>b"]).queue_packets:
            after = now  # while the queue is not empty, the link is busy all the time
        carried = (after.forwarded_bytes - before.forwarded_bytes) * 8
        assert carried / (after.at_s - before.at_s) == pytest.approx(rate, rel=0.15)
        over = settled(lab, "a>b", 8000)
        assert over.queue_max_bytes <= 1_000_000
        assert over.taildrop_packets > 1000
        assert over.forwarded_packets + over.taildrop_packets == 8000


@pytest.mark.parametrize(
    ("link", "share"),
    [
        (LinkSpec(engine="emulator", loss=0.02), 0.02),
        (LinkSpec(engine="emulator", bursts=Bursts(begin=0.01, end=0.25)), 0.01 / 0.26),
    ],
    ids=["random", "bursts"],
)
def test_the_share_of_packets_that_is_lost_is_the_one_that_was_set(
    link: LinkSpec, share: float
) -> None:
    with Lab.up(NAME, links={("a", "b"): link, ("b", "a"): FAST}) as lab:
        flood(lab, "a", "b", 20_000, size=100)
        lost = settled(lab, "a>b", 20_000).lost_packets
        assert lost / 20_000 == pytest.approx(share, rel=0.3)
        assert lab.stats()["b>a"].lost_packets == 0


def test_an_echo_takes_the_round_trip() -> None:
    with Lab.up(NAME, links=LinkSpec(engine="emulator", delay_s=0.015)) as lab:
        argv = [sys.executable, _traffic.__file__, "ping", lab.site("b").address, "20"]
        done = subprocess.run(lab.command("a", argv), capture_output=True, check=True, timeout=60)
        # The quickest one: all others may have waited for a processor, too.
        assert 0.0295 < min(json.loads(done.stdout)) < 0.033


def test_the_same_seed_loses_the_same_packets() -> None:
    link = LinkSpec(engine="emulator", loss=0.05)

    def lost(seed: int) -> int:
        with Lab.up(NAME, links=link, seed=seed) as lab:
            flood(lab, "a", "b", 1000, size=100)
            return settled(lab, "a>b", 1000).lost_packets

    assert lost(5) == lost(5)
    assert len({lost(seed) for seed in (5, 6, 7, 8)}) > 1


@pytest.mark.parametrize("text", ["1\n", "t_s,mbps\n0,12\n1,12\n"], ids=["mahimahi", "CSV"])
def test_a_trace_takes_the_place_of_a_rate(tmp_path: Path, text: str) -> None:
    trace = tmp_path / "trace"
    trace.write_text(text)  # 1500 bytes each millisecond: 12 Mbit/s
    with Lab.up(NAME, links=LinkSpec(engine="emulator", trace=trace)) as lab:
        begin = time.monotonic()
        flood(lab, "a", "b", 500, size=1472)
        assert settled(lab, "a>b", 500).forwarded_packets == 500
        assert 0.45 < time.monotonic() - begin < 1.5


# -------------------------------------------------------------- outages and changes


def test_nothing_passes_in_an_outage_and_all_passes_after_it() -> None:
    with Lab.up(NAME, links=FAST) as lab:
        lab.outage("b", "a", 60)
        flood(lab, "a", "b", 50)
        flood(lab, "b", "a", 50)
        assert settled(lab, "a>b", 50).outage_packets == 50
        assert settled(lab, "b>a", 50).outage_packets == 50
        assert lab.stats()["a>b"].down
    with Lab.up(NAME, links=FAST) as lab:
        lab.outage("a", "b", 0.05)
        until(lambda: not lab.stats()["a>b"].down)
        flood(lab, "a", "b", 50)
        assert settled(lab, "a>b", 50).forwarded_packets == 50


def test_an_outage_that_was_planned_comes_and_goes() -> None:
    planned = LinkSpec(engine="emulator", outages=(Outage(begin_s=0.3, length_s=0.3),))
    with Lab.up(NAME, links=planned) as lab:
        until(lambda: lab.stats()["a>b"].down)
        until(lambda: not lab.stats()["a>b"].down)


def test_a_rate_that_falls_holds_for_what_waits_already() -> None:
    with Lab.up(NAME, links=LinkSpec(engine="emulator", rate_bit_per_s=20e6)) as lab:
        lab.set_link("a", "b", rate_bit_per_s=20e3, back=False)
        flood(lab, "a", "b", 100)
        until(lambda: lab.stats()["a>b"].in_packets == 100)
        assert lab.stats()["a>b"].queue_packets >= 98  # two and a half packets a second
        assert lab.state.paths[0].back.rate_bit_per_s == 20e6
        lab.set_link("a", "b", rate_bit_per_s=100e6)
        assert settled(lab, "a>b", 100).forwarded_packets == 100
        assert lab.state.paths[0].there.queue_bytes == 1_000_000


def test_three_sites_have_links_of_their_own() -> None:
    links = {("a", "b"): LinkSpec(engine="emulator", loss=1.0), ("c", "b"): FAST}
    with Lab.up(NAME, ("a", "b", "c"), links) as lab:
        for a, b in (("a", "b"), ("c", "b"), ("a", "c")):
            flood(lab, a, b, 10)
        assert settled(lab, "a>b", 10).lost_packets == 10
        assert settled(lab, "c>b", 10).forwarded_packets == 10
        assert lab.stats()["a>c"].in_packets == 10
        lab.outage("c", "b", 60)
        flood(lab, "a", "c", 10)
        assert lab.stats()["c>b"].outage_packets == 0


def test_two_paths_between_two_sites_have_addresses_of_their_own() -> None:
    with Lab.up(NAME, links={("a", "b"): [FAST, LinkSpec(engine="emulator", loss=1.0)]}) as lab:
        first, second = lab.site("b").addresses
        for address in (first, second):
            python(lab, "a", FLOOD, address, 10, 100, 0)
        assert settled(lab, "a>b", 10).forwarded_packets == 10
        assert settled(lab, "a>b/1", 10).lost_packets == 10
        python(lab, "a", FLOOD, lab.site("b").addresses6[1], 10, 100, 0)
        settled(lab, "a>b/1", 20)


def test_a_bare_cable_carries_and_counts() -> None:
    with Lab.up(NAME, links=LinkSpec(engine="veth")) as lab:
        data = os.urandom(1 << 20)
        for address in (lab.site("b").address, lab.site("b").address6):
            assert Transfer(lab, address, data).digest == hashlib.sha256(data).hexdigest()
        assert lab.stats()["a>b"].forwarded_bytes > 2 << 20
        with pytest.raises(ConfigError, match="veth"):
            lab.outage("a", "b", 1)
        with pytest.raises(ConfigError, match="bare cable"):
            lab.set_link("a", "b", loss=0.1)


def test_tcp_of_the_sites_is_set_as_asked() -> None:
    with Lab.up(NAME, links=FAST, congestion_control="cubic", tcp_buffer_bytes=8 << 20) as lab:
        said = python(
            lab,
            "a",
            "for name in ('congestion_control', 'rmem', 'wmem'):\n"
            "    print(open('/proc/sys/net/ipv4/tcp_' + name).read())",
        )
        assert said.split() == ["cubic", "4096", "131072", "8388608", "4096", "16384", "8388608"]


# --------------------------------------------------------------- nothing is left of it


def test_after_down_there_is_no_namespace_no_process_and_no_file(state_folder: Path) -> None:
    lab = Lab.up(NAME, links=FAST)
    process = lab.state.process
    assert process is not None
    assert process.alive()
    assert len(remains()) == 2
    lab.down()
    assert not process.alive()
    assert remains() == []
    assert [path.name for path in state_folder.iterdir()] == [".lock"]
    lab.down()  # once more is not an error


def test_what_runs_in_a_site_is_named_and_ended_only_if_asked() -> None:
    for asked in (False, True):
        lab = Lab.up(NAME, links=FAST)
        with subprocess.Popen(lab.command("b", ["sleep", "60"])) as inside:
            until(lambda: lab.processes() == (inside.pid,))  # noqa: B023
            assert lab.down(end_processes=asked) == (inside.pid,)
            if asked:
                assert inside.wait(20) == -signal.SIGTERM
            else:
                assert inside.poll() is None
                inside.kill()


def test_a_lab_that_cannot_be_made_leaves_nothing(state_folder: Path) -> None:
    taken = f"lab-{NAME}-b"
    subprocess.run(["ip", "netns", "add", taken], check=True)
    try:
        with pytest.raises(Conflict, match=taken):
            Lab.up(NAME, links=FAST)
        assert remains() == [taken]
    finally:
        subprocess.run(["ip", "netns", "delete", taken], check=True)
    trace = state_folder / "gone"
    trace.write_text("1\n")
    link = LinkSpec(engine="emulator", trace=trace)
    trace.write_text("nonsense\n")
    with pytest.raises((ConfigError, ValueError)):
        Lab.up(NAME, links=link)
    assert remains() == []
    assert Lab.names() == []


def test_a_lab_whose_emulator_crashed_says_so_and_goes_away() -> None:
    lab = Lab.up(NAME, links=FAST)
    process = lab.state.process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: not process.alive())
    assert not lab.alive()
    with pytest.raises(Conflict, match="has ended"):
        lab.stats()
    lab.down()


def caller(keep: bool) -> tuple[subprocess.Popen[str], Lab]:
    """Another process that brings a lab up and then waits."""
    code = (
        "import sys; from novacron_lab import Lab, LinkSpec\n"
        f"lab = Lab.up({NAME!r}, links=LinkSpec(engine='emulator'), keep={keep})\n"
        "print('up', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process, Lab.open(NAME)


def test_the_emulator_ends_when_its_caller_is_killed_and_down_removes_the_rest() -> None:
    process, lab = caller(keep=False)
    emulator = lab.state.process
    assert emulator is not None
    with process:
        process.kill()
    until(lambda: not emulator.alive())
    assert len(remains()) == 2
    Lab.open(NAME).down()
    assert remains() == []


def test_a_lab_of_the_same_name_takes_the_place_of_one_whose_caller_was_killed() -> None:
    process, lab = caller(keep=False)
    emulator = lab.state.process
    assert emulator is not None
    with pytest.raises(Conflict, match="is up"):
        Lab.up(NAME, links=FAST)
    with process:
        process.kill()
    until(lambda: not emulator.alive())
    with Lab.up(NAME, links=FAST) as fresh:
        flood(fresh, "a", "b", 5)
        settled(fresh, "a>b", 5)


def test_a_lab_that_is_kept_outlives_its_caller() -> None:
    process, lab = caller(keep=True)
    with process:
        process.kill()
    assert lab.alive()
    lab.down()
    assert not lab.alive()


def test_down_ends_no_process_that_only_has_the_number_of_the_emulator(
    state_folder: Path,
) -> None:
    lab = Lab.up(NAME, links=FAST)
    about = state_folder / NAME / "lab.json"
    kept = about.read_text()
    said = json.loads(kept)
    with subprocess.Popen(["sleep", "60"]) as other:
        said["process"]["pid"] = other.pid
        about.write_text(json.dumps(said))
        lab.down()  # the real one is ours and ends with its pipe
        assert other.poll() is None
        other.kill()


# ------------------------------------------------------------------- hostile input


def raw(folder: Path, message: bytes) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(10)
        client.connect(str(folder / NAME / "control"))
        client.send(message)
        answer: dict[str, object] = json.loads(client.recv(1 << 20))
        return answer


HOSTILE = [
    b"\n", b" ", b"\0", b"stats\0", b"stat", b"stats stats", b"x" * 4000, b"x" * 60_000,
    b"set", b"set a>b", b"set nowhere rate=1000", b"set a>b rate", b"set a>b rate=",
    b"set a>b rate=-5", b"set a>b rate=nan", b"set a>b loss=2", b"set a>b loss=1e999",
    b"set a>b delay=1e30", b"set a>b queue=-1", b"set a>b %s%n=1", b"set a>b " + b"loss=0 " * 40,
    b"trace a>b /dev/zero", b"trace a>b /etc", b"trace a>b /etc/passwd", b"trace a>b",
    b"outage a>b -1 5", b"outage a>b 0 0", b"outage a>b 1e300 1", b"outage a>b 0.5 1",
    b"pair x y ns d ns d 1 1", b"pair a>b b>a ns d ns d 1 1", bytes(range(256)),
]  # fmt: skip


def test_a_hostile_control_message_is_refused_and_changes_nothing(state_folder: Path) -> None:
    with Lab.up(NAME, links=FAST) as lab:
        for message in HOSTILE:
            assert set(raw(state_folder, message)) == {"error"}, message
        for _ in range(256):
            assert raw(state_folder, b"outage b>a 900000000000000 1") == {}
        assert "256" in str(raw(state_folder, b"outage b>a 900000000000000 1")["error"])
        flood(lab, "a", "b", 10)
        assert settled(lab, "a>b", 10).forwarded_packets == 10


def test_a_client_that_says_nothing_does_not_keep_others_out_for_long(state_folder: Path) -> None:
    with (
        Lab.up(NAME, links=FAST) as lab,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent,
    ):
        silent.connect(str(state_folder / NAME / "control"))
        assert set(lab.stats()) == {"a>b", "b>a"}


def test_what_a_lab_has_not_is_named() -> None:
    with Lab.up(NAME, links=FAST) as lab:
        with pytest.raises(NotFound, match="no site 'z'"):
            lab.site("z")
        with pytest.raises(NotFound, match="'z'"):
            lab.outage("a", "z", 1)
        with pytest.raises(NotFound, match="no path 4"):
            lab.outage("a", "b", 1, path=4)
        with pytest.raises(ConfigError, match="'speed'"):
            lab.set_link("a", "b", speed=3)
        with pytest.raises(ConfigError, match="outage"):
            lab.outage("a", "b", 0)
    with pytest.raises(NotFound):
        Lab.open(NAME)
    with pytest.raises(ConfigError, match="congestion control"):
        Lab.up(NAME, links=FAST, congestion_control="nosuch")


def novacron(*words: str) -> Any:
    """What a command prints in JSON."""
    done = CliRunner().invoke(commands, words, obj=ShellState(json=True), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_the_command_line_brings_up_shows_changes_and_takes_down() -> None:
    path = novacron("up", "--lab", NAME, "--rate", "10/1", "--rtt", "20", "--loss", "1")["paths"][0]
    assert (path["there"]["rate_bit_per_s"], path["back"]["rate_bit_per_s"]) == (10e6, 1e6)
    novacron("outage", "--lab", NAME, "a", "b", "--for", "60")
    path = novacron("set", "--lab", NAME, "a", "b", "--rate", "5/2")["paths"][0]
    assert (path["there"]["rate_bit_per_s"], path["back"]["rate_bit_per_s"]) == (5e6, 2e6)
    assert novacron("stats", "--lab", NAME)["a>b"]["down"] is True
    assert [entry["up"] for entry in novacron("list")] == [True]
    assert novacron("down", "--lab", NAME) == {"down": [NAME], "processes": []}
    with pytest.raises(NotFound, match=NAME):
        novacron("stats", "--lab", NAME)


def test_exec_runs_a_command_in_a_site_and_ends_as_it_does() -> None:
    with Lab.up(NAME, links=FAST):
        code = "from novacron_lab._commands import lab; lab()"
        command = ["exec", "--lab", NAME, "b", "sh", "-c", "ip -o -4 addr; exit 5"]
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 5
        assert "10.77.0.2" in done.stdout
