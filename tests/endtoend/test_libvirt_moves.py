"""Domains of two unmodified libvirtd, each the one of a real node, move between them."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from cluster import Cluster, RealNode, done
from novacron import NotFound
from novacron_machine_libvirt._libvirt import Connection
from novacron_machine_libvirt.private_daemon import PrivateLibvirtd
from novacron_machine_qemu.guest import APPEND, GuestOptions, build_guest
from waiting import until

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("host"),
]
MEMORY_MIB = 96
# So slow that there is time to do something to a copy: what is in use takes over 5 s.
SLOW_BYTES_PER_S = 4 << 20

XML = """<domain type='qemu'>
  <name>any</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{append}</cmdline>
  </os>
  <features><acpi/></features>
  <devices><controller type='usb' model='none'/><memballoon model='none'/></devices>
</domain>"""


@define
class World:
    """Two hosts, each with a libvirtd and a node, and one guest."""

    cluster: Cluster
    daemons: dict[str, PrivateLibvirtd]

    def has(self, host: str) -> list[str]:
        """The domains of a host's libvirtd, running or not."""
        return [domain.name() for domain in Connection(self.daemons[host].uri).domains()]

    @property
    def source(self) -> RealNode:
        """The node that the machine is at, once the other one has cleared what came there."""

        def here() -> list[RealNode]:
            return [n for n in self.cluster.nodes.values() if n.client.machines()]

        until(lambda: len(here()) == 1, 60, lambda: [n.client.machines() for n in here()])
        return here()[0]

    @property
    def target(self) -> RealNode:
        (node,) = [n for n in self.cluster.nodes.values() if n is not self.source]
        return node

    def ticks(self) -> list[int]:
        """What the guest has counted on its console here."""
        printed = self.source.client.console_log("vm")
        return [int(number) for number in re.findall(rb"tick (\d+)\r?\n", printed)]

    def goes_on(self) -> None:
        """Wait until the guest has counted on."""
        before = len(self.ticks())
        until(lambda: len(self.ticks()) > before + 2, 60, lambda: self.ticks()[-3:])

    def slow_move(self, source: RealNode, target: RealNode) -> dict[str, Any]:
        """A move that has begun to copy and has seconds to go."""
        client = source.client
        operation = client.migrate("vm", target.name, rate_bytes_per_s=SLOW_BYTES_PER_S)
        for event in client.events(operation["id"]):
            if event.data.get("raw_bytes", 0) > 1 << 20:
                return operation
        raise AssertionError(client.operation(operation["id"]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("libvirt")
    short = Path(tempfile.mkdtemp(prefix="nc-lv-", dir="/tmp"))  # for sockets
    daemons = {name: PrivateLibvirtd(short / name) for name in "ab"}
    try:
        options = GuestOptions(dirty_mib=2, dirty_period_s=0.2)
        kernel, initrd = build_guest(folder / "guest", options)
        for daemon in daemons.values():
            daemon.folder.mkdir()
            daemon.start()
            # Its first question makes a libvirtd look at QEMU, which takes seconds.
            Connection(daemon.uri).domain_capabilities("x86_64", "q35", "qemu")
        cluster = Cluster(folder, resume_for_s=20)
        for name, node in cluster.nodes.items():
            with node.config_path.open("a") as config:
                config.write(
                    f'\n[machine.libvirt]\nuri = "{daemons[name].uri}"\n'
                    f'socket_dir = "{short}/sockets"\n'
                )
        with cluster:
            xml = XML.format(memory=MEMORY_MIB, kernel=kernel, initrd=initrd, append=APPEND)
            created = cluster.a.client.create(
                "vm", driver="libvirt", memory_bytes=MEMORY_MIB << 20, settings={"xml": xml}
            )
            done(cluster.a, created)
            world = World(cluster, daemons)
            until(lambda: len(world.ticks()) > 3, 120)
            yield world
    except NotFound as missing:
        pytest.skip(f"{missing}; {missing.hint}")
    finally:
        for daemon in daemons.values():
            daemon.stop()
        shutil.rmtree(short, ignore_errors=True)


def test_a_domain_moves_there_and_back_with_its_memory_whole(world: World) -> None:
    for _ in range(2):
        source, target = world.source, world.target
        last = world.ticks()[-1]
        moved = done(source, source.client.migrate("vm", target.name, verify="memory"))
        # Both sides took this digest of the guest's whole memory while it was paused.
        assert re.fullmatch("[0-9a-f]{64}", moved["result"]["memory_digest"])
        assert world.source is target
        world.goes_on()
        assert world.ticks()[0] > last
        assert (world.has(source.name), world.has(target.name)) == ([], ["vm"])


def test_a_move_that_is_cancelled_leaves_it_running_where_it_was(world: World) -> None:
    source, target = world.source, world.target
    operation = world.slow_move(source, target)
    source.client.cancel(operation["id"])
    assert source.client.wait(operation["id"])["state"] == "cancelled"
    assert world.source is source
    world.goes_on()
    until(lambda: world.has(target.name) == [], 30, lambda: world.has(target.name))
    assert world.has(source.name) == ["vm"]


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_libvirtd_restarted_in_mid_move_costs_the_move_and_nothing_else(
    world: World, side: str
) -> None:
    source, target = world.source, world.target
    daemon = world.daemons[source.name if side == "source" else target.name]
    operation = world.slow_move(source, target)
    daemon.kill()
    daemon.start()
    ended = source.client.wait(operation["id"])
    assert ended["state"] == "failed", ended
    assert world.source is source
    world.goes_on()
    until(lambda: world.has(target.name) == [], 30, lambda: world.has(target.name))
    # And the next try works.
    done(source, source.client.migrate("vm", target.name))
    world.goes_on()
    assert (world.has(source.name), world.has(target.name)) == ([], ["vm"])
