"""Domains of real libvirtd's: what is done to them, and what is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from novacron import (
    ConfigError,
    Conflict,
    Machine,
    MachineSpec,
    MachineState,
    MoveLimits,
    MoveWish,
    Obstacle,
)
from novacron_machine_libvirt import LibvirtDriver, LibvirtMachine, _phases
from novacron_machine_libvirt._leave import Leaving
from novacron_machine_libvirt._libvirt import VIR_DOMAIN_UNDEFINE_NVRAM, Connection
from novacron_machine_libvirt.contract import MEMORY_MIB, counter_xml, daemon, driver_of
from novacron_qemu.counter import read_counter

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("host"),
]
S = MachineState
T = TypeVar("T")
DEADLINE_S = 60.0
ELSEWHERE = "8a0c2d3e-0000-4000-8000-000000000001"


class Hosts:
    """``source`` and ``destination``, as the contract's tests have them."""

    def __init__(self, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self._folder = folder
        self._machines: list[Machine] = []
        self.drivers = {host: driver_of(host, folder / host) for host in ("source", "destination")}

    def run(self, what: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(what, DEADLINE_S)

        return self._runner.run(bounded())

    def driver(self, host: str) -> LibvirtDriver:
        return self.drivers[host]

    def connection(self, host: str) -> Connection:
        return Connection(daemon(host).uri)

    def spec(self, name: str = "m1", **settings: Any) -> MachineSpec:
        return MachineSpec(
            name=name,
            driver="libvirt",
            memory_bytes=MEMORY_MIB << 20,
            settings=settings or {"xml": counter_xml()},
        )

    def open(self, host: str, spec: MachineSpec | None = None) -> LibvirtMachine:
        """The machine as a node that has just started sees it."""
        spec = spec or self.spec()
        home = self._folder / host / "homes" / spec.name
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        machine = self.run(self.driver(host).open(spec, home))
        self._machines.append(machine)
        return machine

    def running(self, host: str = "source", spec: MachineSpec | None = None) -> LibvirtMachine:
        machine = self.open(host, spec)
        self.run(machine.start())
        return machine

    def beats(self, machine: LibvirtMachine) -> None:
        """Wait until the guest has counted on."""
        before = read_counter(machine.console_log())
        self.wait(lambda: read_counter(machine.console_log()) > before, "the guest counts on")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"not in {DEADLINE_S:g} s: {what}"
            time.sleep(0.01)

    def copied(self, source: LibvirtMachine, target: LibvirtMachine) -> Leaving:
        """All of the machine's state is at the target; both are paused."""

        async def work() -> Leaving:
            incoming = await target.receive(source.describe())
            outgoing = await source.send(MoveLimits())

            def pump() -> None:
                while (batch := outgoing.read()) is not None:
                    incoming.write(batch)

            pumping = asyncio.create_task(asyncio.to_thread(pump))
            await outgoing.converged()
            await outgoing.switch_over()
            await pumping
            await incoming.finish()
            return outgoing

        return self.run(work())

    def close(self) -> None:
        for machine in reversed(self._machines):
            self.run(machine.stop())
        self._runner.close()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.close()


def restart(host: str) -> None:
    daemon(host).kill()
    daemon(host).start()


def counted(connection: Connection, name: str) -> int:
    """The guest's own count, in its memory."""
    return int.from_bytes(connection.find_name(name).memory(0x1000, 4), "little")


def test_a_libvirtd_that_ends_between_perform_and_confirm_keeps_the_domain_paused(
    hosts: Hosts,
) -> None:
    source, target = hosts.running(), hosts.open("destination")
    hosts.beats(source)
    hosts.copied(source, target)
    digest = hosts.run(source.digest())
    restart("source")
    assert hosts.run(source.state()) is S.PAUSED
    assert hosts.run(source.digest()) == digest == hosts.run(target.digest())
    # A roll-back: the source goes on, though libvirtd has forgotten the move.
    hosts.run(target.stop())
    hosts.run(source.resume())
    hosts.beats(source)


def test_a_node_that_ends_between_perform_and_confirm_leaves_the_domain_paused(
    hosts: Hosts,
) -> None:
    source, target = hosts.running(), hosts.open("destination")
    hosts.beats(source)
    leaving = hosts.copied(source, target)
    leaving._let_go()  # its connections close, as when the process ends
    again = hosts.open("source")
    assert hosts.run(again.state()) is S.PAUSED
    digest = hosts.run(again.digest())
    # A commit: the source's is ended and undefined, the target's runs.
    hosts.run(target.resume())
    hosts.run(again.retire())
    assert hosts.connection("source").domains() == []
    hosts.beats(target)
    assert digest


def test_an_arrival_whose_node_or_daemon_ends_is_undone(hosts: Hosts) -> None:
    source, target = hosts.running(), hosts.open("destination")
    incoming = hosts.run(target.receive(source.describe()))
    assert hosts.run(target.state()) is S.RECEIVING
    incoming.close()
    hosts.wait(lambda: hosts.connection("destination").domains() == [], "libvirtd removes it")
    again = hosts.open("destination")
    assert hosts.run(again.state()) is S.STOPPED
    hosts.run(again.receive(source.describe()))
    restart("destination")
    third = hosts.open("destination")
    hosts.wait(lambda: hosts.run(third.state()) is S.STOPPED, "libvirtd removes it")
    hosts.copied(source, third)


def test_a_domain_that_exists_is_taken_over_as_it_is_and_follows_its_machine(
    hosts: Hosts,
) -> None:
    here, there = hosts.connection("source"), hosts.connection("destination")
    here.define(counter_xml().replace(">any<", ">web1<")).create()
    spec = hosts.spec("shop", domain="web1")
    machine = hosts.open("source", spec)
    assert hosts.run(machine.state()) is S.STOPPED  # nobody's, until it is taken
    before = counted(here, "web1")
    hosts.run(machine.start())
    assert hosts.run(machine.state()) is S.RUNNING
    hosts.wait(lambda: counted(here, "web1") > before, "it was not restarted")
    target = hosts.open("destination", spec)
    hosts.copied(machine, target)
    assert counted(here, "web1") == counted(there, "web1")
    hosts.run(target.resume())
    hosts.run(machine.retire())
    assert here.domains() == []
    assert [domain.name() for domain in there.domains()] == ["web1"]
    # Whose domain it is does not change by a move: the end of the machine leaves it defined.
    hosts.run(target.stop())
    (left,) = there.domains()
    assert (left.is_active(), left.is_persistent()) == (False, True)
    left.undefine(VIR_DOMAIN_UNDEFINE_NVRAM)


def test_a_strangers_domain_of_the_same_name_is_not_touched(hosts: Hosts) -> None:
    there = hosts.connection("destination")
    stranger = there.define(counter_xml().replace(">any<", ">m1<"))
    try:
        target = hosts.open("destination")
        with pytest.raises(Conflict, match="a domain m1 already"):
            hosts.run(target.start())
        found = blockers(hosts, hosts.running(), target)
        assert [obstacle.code for obstacle in found] == ["machine.exists"]
        hosts.run(target.stop())
        assert [domain.uuid() for domain in there.domains()] == [stranger.uuid()]
    finally:
        stranger.undefine(VIR_DOMAIN_UNDEFINE_NVRAM)


def test_what_a_machine_is_said_to_be_must_be_what_its_domain_is(hosts: Hosts) -> None:
    wrong = hosts.spec(xml=counter_xml(memory_mib=MEMORY_MIB * 2))
    with pytest.raises(ConfigError, match="memory_bytes"):
        hosts.driver("source").check(wrong)
    with pytest.raises(ConfigError, match="has no domain 'web9'"):
        hosts.run(hosts.open("source", hosts.spec(domain="web9")).start())
    with pytest.raises(ConfigError, match="no-such-file"):
        hosts.run(hosts.open("source", hosts.spec(xml_file="/no-such-file")).start())


def blockers(
    hosts: Hosts, source: LibvirtMachine, target: LibvirtMachine, **changed: Any
) -> list[Obstacle]:
    """What blocks its coming, with something of what it says changed."""
    origin = {**source.describe()}
    for old, new in changed.pop("xml", {}).items():
        assert old in origin["xml"]
        origin["xml"] = origin["xml"].replace(old, new)
    driver = hosts.driver("destination")
    found = hosts.run(driver.examine(target.spec, {**origin, **changed}))
    assert all(obstacle.cure and obstacle.side == "target" for obstacle in found)
    return [obstacle for obstacle in found if obstacle.blocks]


def test_planted_obstacles_are_found_at_the_target_with_their_cures(hosts: Hosts) -> None:
    source, target = hosts.running(), hosts.open("destination")
    assert blockers(hosts, source, target) == []
    end = "</devices>"
    planted = {
        "machine.type-missing": {"machine='pc-q35-10.0'": "machine='pc-q35-99.0'"},
        "cpu.model-missing": {">qemu64<": ">Pentium99<"},
        "network.missing": {
            end: f"<interface type='bridge'><source bridge='br99'/></interface>{end}"
        },
        "disk.not-reachable": {
            end: "<disk type='file'><source file='/no/such.img'/><target dev='vda'/></disk>" + end
        },
        "file.missing": {"</os>": "<kernel>/no/such/vmlinuz</kernel></os>"},
        "settings.not-taken": {
            end: f"{end}<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/>"
        },
        "accelerator.missing": {"<domain type='qemu'": "<domain type='xen'"},
        "origin.unsound": {"<name>m1<": "<name>m2<"},
    }
    for code, xml in planted.items():
        found = blockers(hosts, source, target, xml=xml)
        assert [obstacle.code for obstacle in found] == [code], (code, found)
    (wrong,) = blockers(hosts, source, target, uuid=ELSEWHERE)
    assert wrong.code == "origin.unsound"
    (type_missing,) = blockers(hosts, source, target, xml=planted["machine.type-missing"])
    # The cure's value works: it is the type that the machine has.
    value = type_missing.facts["value"]
    assert value.startswith("pc-q35-")
    cured = {"machine='pc-q35-10.0'": f"machine='{value}'"}
    assert blockers(hosts, source, target, xml=cured) == []


def test_planted_obstacles_are_found_at_the_source_with_their_cures(
    hosts: Hosts, tmp_path: Any
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    disk = (
        f"<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>"
        f"<source file='{image}'/><target dev='vda' bus='virtio'/></disk>"
    )
    display = "<graphics type='vnc' port='-1' autoport='yes' passwd='secret'/>"
    spec = hosts.spec("planted", xml=counter_xml(more=disk + display))
    machine = hosts.running(spec=spec)

    def codes(wish: MoveWish) -> list[str]:
        return [obstacle.code for obstacle in hosts.run(machine.examine(wish))]

    assert codes(MoveWish()) == ["disk.stays", "graphics.password"]
    assert codes(MoveWish(storage="copy")) == ["disk.not-copied", "graphics.password"]
    # Said to be shared it is not taken for that: libvirt looks at the file system.
    assert codes(MoveWish(storage="shared")) == ["graphics.password", "disk.not-shared"]
    assert "secret" not in str(machine.describe())


def test_the_answers_of_libvirtd_that_the_phases_rely_on(hosts: Hosts) -> None:
    """What would show that another libvirt differs, before a machine is at stake."""
    source = hosts.running()
    domain = hosts.connection("source").find_name("m1")
    _phases.begin(domain)
    assert hosts.run(source.state()) is S.RUNNING
    assert domain.job()[0] == 0  # a question begins no job
