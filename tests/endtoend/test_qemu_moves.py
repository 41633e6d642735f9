"""A real guest of unmodified QEMU moves between two nodes on two hosts and never notices."""

from __future__ import annotations

import re
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path

import pytest
from cluster import Cluster, RealNode, done
from namespaces import TwoHosts
from novacron import NotFound
from novacron_machine_qemu.guest import APPEND, build_guest
from waiting import until

MEMORY_MIB = 128
ROUND_TRIPS = 3


@pytest.fixture
def hosts() -> TwoHosts:
    return TwoHosts()


def console(node: RealNode, kept: ExitStack) -> BufferedReader:
    """The console's log there; it stays readable after the machine has left."""
    return kept.enter_context(
        (node.state_dir / "machines" / "vm" / "home" / "console.log").open("rb")
    )


def wait_for_ticks(log: BufferedReader, count: int) -> None:
    """Block until the guest has counted that much further on this node's console."""

    def whole() -> bytes:
        log.seek(0)
        return log.read()

    until(lambda: whole().count(b"tick ") >= count, 60, lambda: whole()[-500:])


@pytest.mark.qemu
@pytest.mark.netns
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_debian_guest_moves_three_times_there_and_back_and_its_counter_never_skips(
    tmp_path: Path, hosts: TwoHosts
) -> None:
    try:
        kernel, initrd = build_guest(tmp_path / "guest")
    except NotFound as missing:
        pytest.skip(f"{missing}; {missing.hint}")
    addresses = {side: f"{address}:7400" for side, address in hosts.addresses.items()}
    settings = {"kernel": str(kernel), "initrd": str(initrd), "append": APPEND, "accel": "tcg"}
    cluster = Cluster(tmp_path, addresses=addresses, prefixes=hosts.prefixes)
    with hosts, cluster, ExitStack() as kept:
        created = cluster.a.client.create(
            "vm", driver="qemu", memory_bytes=MEMORY_MIB << 20, settings=settings
        )
        done(cluster.a, created)
        logs = [console(cluster.a, kept)]
        wait_for_ticks(logs[0], 3)
        source, target = cluster.a, cluster.b
        for _ in range(2 * ROUND_TRIPS):
            moved = done(source, source.client.migrate("vm", target.name, verify="memory"))
            # Both sides took this digest of the guest's whole memory while it was paused, and the
            # hand-over would have been refused had they differed.
            assert re.fullmatch("[0-9a-f]{64}", moved["result"]["memory_digest"])
            assert [m["name"] for m in source.client.machines()] == []
            logs.append(console(target, kept))
            wait_for_ticks(logs[-1], 3)
            source, target = target, source
        done(source, source.client.pause("vm"))
        printed = b""
        for log in logs:
            log.seek(0)
            printed += log.read()
        ticks = [int(number) for number in re.findall(rb"tick (\d+)", printed)]
        # Bytes that the guest's serial port held at the pause are printed at the destination, so a
        # line may be cut between two logs; joined, the count must be without gap or repetition.
        assert ticks == list(range(1, len(ticks) + 1))
        assert len(ticks) > 6 * 3
