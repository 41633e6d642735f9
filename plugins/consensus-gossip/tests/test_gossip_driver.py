"""Members with real sockets on loopback, a node that hosts one, and the commands that ask it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from novacron import (
    API_VERSION,
    ConfigError,
    Conflict,
    Node,
    NodeUnavailable,
    NotFound,
    PluginManager,
    PluginSource,
    ShellState,
    hookimpl,
)
from novacron import config as configuration
from novacron_consensus_gossip import (
    GossipMember,
    GossipService,
    GossipSettings,
    Member,
    MemberSetup,
    State,
    Timing,
    _driver,
    _keyring,
    _processes,
)
from novacron_consensus_gossip._commands import commands
from novacron_consensus_gossip._effects import Send
from novacron_consensus_gossip._streams import FRAME_BYTES_MAX

FAST = Timing(period_ms=100, probe_ms=30, gossip_ms=20, sync_ms=400, forget_ms=60_000)
WAIT_S = 20.0


class Cluster:
    """Members of one event loop; each change wakes those who wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: dict[str, GossipMember] = {}
        self.got: dict[str, list[tuple[str, str, bytes]]] = {}
        self._changed = asyncio.Event()
        _keyring.write(folder / "keys", (_keyring.new_key(),))

    async def start(self, name: str, **changes: Any) -> GossipMember:
        seeds = tuple(member.address for member in list(self.members.values())[:1])
        values: dict[str, Any] = {
            "name": name,
            "cluster": "test",
            "listen": "127.0.0.1:0",
            "seeds": seeds,
            "keys": self.folder / "keys",
            "folder": self.folder / name,
            "timing": FAST,
        }
        got = self.got.setdefault(name, [])

        def arrived(origin: str, topic: str, body: bytes) -> None:
            got.append((origin, topic, body))
            self._changed.set()

        def changed(member: Member, state: State | None) -> None:
            self._changed.set()

        member = GossipMember(MemberSetup(**(values | changes)), changed, arrived)
        await member.start()
        self.members[name] = member
        return member

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not done():
                self._changed.clear()
                await self._changed.wait()

    def all_hold(self, **states: State) -> bool:
        def holds(member: GossipMember) -> bool:
            held = {one.name: one.state for one in member.core.members}
            return all(held.get(name) is state for name, state in states.items())

        return all(map(holds, self.members.values()))

    async def close(self) -> None:
        for member in self.members.values():
            await member.close()
            await member.close()


def run(folder: Path, story: Callable[[Cluster], Awaitable[None]]) -> None:
    async def play() -> None:
        cluster = Cluster(folder)
        try:
            await story(cluster)
        finally:
            await cluster.close()

    asyncio.run(play())


@pytest.mark.slow
def test_members_join_broadcast_leave_and_fail_over_real_sockets(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        for name in "abcd":
            await cluster.start(name, tags={"site": f"site-{name}"})
        alive = dict.fromkeys("abcd", State.ALIVE)
        await cluster.until(lambda: cluster.all_hold(**alive))
        found = cluster.members["d"].core.members.get("b")
        assert found is not None
        assert dict(found.tags) == {"site": "site-b"}

        body = bytes(700_000)
        cluster.members["b"].broadcast("topic", body)
        others = ("a", "c", "d")
        await cluster.until(lambda: all(cluster.got[name] for name in others))
        assert all(cluster.got[name] == [("b", "topic", body)] for name in others)

        leaver = cluster.members.pop("c")
        await leaver.leave()
        assert leaver.core.closed
        await leaver.close()
        await cluster.until(lambda: cluster.all_hold(c=State.LEFT))

        await cluster.members.pop("d").close()  # without a word
        await cluster.until(lambda: cluster.all_hold(d=State.DEAD))

        again = await cluster.start("d")
        assert again.core.incarnation >= 1, "it goes on from what it kept"
        await cluster.until(lambda: cluster.all_hold(d=State.ALIVE, a=State.ALIVE))

    run(tmp_path, story)


@pytest.mark.slow
def test_another_clusters_datagrams_and_keys_are_refused(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        first = await cluster.start("a")
        other_keys = tmp_path / "others"
        _keyring.write(other_keys, (_keyring.new_key(),))
        foreign = await cluster.start("x", keys=other_keys)
        renamed = await cluster.start("y", cluster="another")

        def refused() -> bool:
            counts = first._bulk.counts
            return counts["foreign"] > 0 and counts["forged"] > 0

        async with asyncio.timeout(WAIT_S):
            while not refused():
                # Refusing changes nothing that could be waited for.
                await asyncio.to_thread(_knock, first.address)
        for member in (first, foreign, renamed):
            assert len(member.core.members) == 1
        assert first.status()["sealed"]["streams"]["foreign"] > 0

    run(tmp_path, story)


def _knock(address: str) -> None:
    """A connection and a datagram of garbage."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
        assert sock.recv(1) == b"", "refused by its length, unread"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(bytes(4_000), (host, int(port)))
        udp.sendto(b"x", (host, int(port)))


@pytest.mark.slow
def test_garbage_from_the_network_is_counted_and_harms_nobody(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        first = await cluster.start("a")
        await asyncio.to_thread(_knock, first.address)
        await cluster.start("b")
        await cluster.until(lambda: cluster.all_hold(a=State.ALIVE, b=State.ALIVE))
        assert first.counts["frames-refused"] == 1
        assert first.counts["datagrams-oversized"] == 1
        assert first._datagrams.counts["malformed"] == 1

    run(tmp_path, story)


@pytest.mark.slow
def test_a_key_is_changed_while_members_talk(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        for name in "ab":
            await cluster.start(name)
        await cluster.until(lambda: cluster.all_hold(a=State.ALIVE, b=State.ALIVE))
        path = tmp_path / "keys"
        (old,) = _keyring.read(path)
        new = _keyring.new_key()
        for keys in ((old, new), (new, old), (new,)):
            _keyring.write(path, keys)
            ids = [key.id.hex() for key in keys]
            for member in cluster.members.values():
                member._look_at_keys()
                assert member.status()["keys"] == ids
        path.chmod(0o644)  # a broken file changes nothing
        got = cluster.got["b"]
        cluster.members["a"]._look_at_keys()
        cluster.members["a"].broadcast("after", b"the change")
        await cluster.until(lambda: bool(got))
        assert cluster.members["a"].status()["keys"] == [new.id.hex()]
        assert cluster.all_hold(a=State.ALIVE, b=State.ALIVE)

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"listen": "nowhere"}, "is no address"),
        ({"listen": "0.0.0.0:0"}, "every address"),
        ({"seeds": ("127.0.0.1:0",)}, "has no port"),
        ({"seeds": ("127.0.0.1:99999",)}, "is no address"),
        ({"seeds": ("no-such-host.invalid:1",)}, "cannot be resolved"),
        ({"tags": {"k": "v" * 600}}, "512 bytes"),
        ({"keys": Path("/nonexistent/keys")}, "cannot be read"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_left_open(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    async def story(cluster: Cluster) -> None:
        with pytest.raises(ConfigError, match=told) as caught:
            await cluster.start("a", **changes)
        assert caught.value.hint

    run(tmp_path, story)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        first = await cluster.start("a")
        with pytest.raises(OSError, match=f"cannot listen at {first.address}"):
            await cluster.start("b", listen=first.address)

    run(tmp_path, story)


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("10.0.0.1:4771", ("10.0.0.1", 4771)),
        ("[fd00::1]:4771", ("fd00::1", 4771)),
        ("host:4771", None),
        ("10.0.0.1", None),
        ("10.0.0.1:0", None),
        ("10.0.0.1:65536", None),
        ("10.0.0.1:٣", None),
        ("", None),
    ],
)
def test_only_numeric_addresses_of_members_are_sent_to(
    address: str, found: tuple[str, int] | None
) -> None:
    assert _driver.split_address(address) == found
    if found is not None:
        assert _driver.join_address(*found) == address


def test_a_member_that_claims_an_impossible_address_gets_nothing(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        member = await cluster.start("a")
        member._perform([Send("evil.example:1", b"x")])
        assert member.counts["addresses-refused"] == 1

    run(tmp_path, story)


def test_a_full_disk_costs_no_more_than_a_refutation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    async def story(cluster: Cluster) -> None:
        monkeypatch.setattr(_keyring, "write_durably", full)
        member = await cluster.start("a")
        assert member.counts["saves-failed"] == 1
        assert not member.core.closed

    run(tmp_path, story)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_of_fifty_real_processes_one_is_killed_and_all_others_learn_it() -> None:
    known = _processes.measure(50, timeout_s=90)
    assert known.wrong == 0
    assert known.last_s > 0


@pytest.mark.slow
def test_a_real_process_that_is_stopped_is_dead_and_alive_again_when_it_goes_on() -> None:
    with _processes.Nursery(5, period_ms=300) as nursery:
        nursery.wait(nursery.all_joined, 60)
        nursery.send("m002", signal.SIGSTOP)
        nursery.wait(lambda: len(nursery.holders("m002", "dead")) == 4, 60)
        nursery.send("m002", signal.SIGCONT)
        nursery.wait(lambda: len(nursery.holders("m002", "alive")) == 4, 60)
        # It blamed nobody for its own absence.
        wrong = [name for name, (state, _) in nursery.held["m002"].items() if state == "dead"]
        assert not wrong


# The service.


def make_node(folder: Path, *more: Any) -> Node:
    """A node of the kernel with this plugin, not started: what a service is given."""
    import novacron_consensus_gossip as gossip

    plugins = [gossip, *more]
    sources = [
        PluginSource(name=f"p{number}", distribution="test", version="1", plugin=plugin)
        for number, plugin in enumerate(plugins)
    ]
    manager = PluginManager.load(sources=sources, strict=True)
    tables = {"node": {"name": "alpha", "state_dir": str(folder), "profile": "none"}}
    tables["profiles"] = {"none": {}}  # type: ignore[dict-item]
    return Node(configuration.check(tables, manager), manager)


class Watcher:
    """A plugin that notes what it is told."""

    NOVACRON_API = API_VERSION

    def __init__(self) -> None:
        self.gossip: GossipMember | None = None
        self.changes: list[tuple[str, str, str]] = []
        self.broadcasts: list[tuple[str, str, bytes, str]] = []
        self.told = asyncio.Event()

    @hookimpl
    def novacron_on_gossip_start(self, gossip: GossipMember) -> None:
        self.gossip = gossip

    @hookimpl
    def novacron_on_member_change(self, member: Member, state: str, node: Any) -> None:
        self.changes.append((member.name, state, node.name))
        self.told.set()

    @hookimpl
    def novacron_on_broadcast(self, origin: str, topic: str, body: bytes, node: Any) -> None:
        self.broadcasts.append((origin, topic, body, node.name))
        self.told.set()

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not done():
                self.told.clear()
                await self.told.wait()


def settings(**changes: Any) -> GossipSettings:
    values: dict[str, Any] = {"enabled": True, "cluster": "test", "listen": "127.0.0.1:0"}
    return GossipSettings(**(values | {"period_s": 0.1, "probe_s": 0.03, "sync_s": 0.5} | changes))


def test_the_service_is_off_unless_it_is_switched_on(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    assert node.manager.providers("service")["gossip"] is GossipService
    assert node.config.sections["service.gossip"].enabled is False


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"probe_s": 0.09}, "do not go together"),
        ({"period_s": 0.0}, "do not go together"),
        ({"sync_s": 0.01}, "too short"),
        ({"forget_s": 1.0}, "too short"),
        ({"cipher": "rot13"}, "'rot13' is not known"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        GossipService(settings(**changes), make_node(tmp_path))
    assert caught.value.hint


@pytest.mark.slow
def test_on_gossip_start_on_member_change_and_on_broadcast_tell_other_plugins(
    tmp_path: Path,
) -> None:
    async def play() -> None:
        watcher = Watcher()
        node = make_node(tmp_path / "alpha", watcher)
        folder = tmp_path / "alpha" / "service-gossip"
        folder.mkdir(parents=True)
        _keyring.write(folder / "keys", (_keyring.new_key(),))
        service = GossipService(settings(), node)
        await service.start()
        assert watcher.gossip is service.member
        setup = settings(seeds=[service.member.address], keys=str(folder / "keys"))
        other = GossipMember(setup.setup("beta", tmp_path / "beta"))
        await other.start()
        await watcher.until(lambda: ("beta", "alive", "alpha") in watcher.changes)
        other.broadcast("load", b"high")
        await watcher.until(lambda: bool(watcher.broadcasts))
        assert watcher.broadcasts == [("beta", "load", b"high", "alpha")]
        await other.leave()
        await other.close()
        await watcher.until(lambda: ("beta", "left", "alpha") in watcher.changes)
        await service.stop()
        await service.stop()
        assert not (folder / "gossip.sock").exists()

    asyncio.run(play())


# The commands.


def invoke(folder: Path, *arguments: str, as_json: bool = True) -> Any:
    config = folder / "novacron.toml"
    if not config.exists():
        config.write_text(
            f'[node]\nname = "alpha"\nstate_dir = "{folder}"\nprofile = "none"\n[profiles.none]\n'
            'plugins = ["consensus-gossip"]\n'
        )
    state = ShellState(config_path=config, json=as_json)
    (gossip, _) = commands()
    result = CliRunner().invoke(gossip, list(arguments), obj=state, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output) if as_json else result.output


def test_keys_are_made_added_used_and_removed(tmp_path: Path) -> None:
    made = invoke(tmp_path, "keys", "new")
    path = Path(made["file"])
    assert path == tmp_path / "service-gossip" / "keys"
    assert path.stat().st_mode & 0o777 == 0o600
    (old,) = [key["id"] for key in made["keys"]]
    new = invoke(tmp_path, "keys", "add")["keys"][1]["id"]
    with pytest.raises(Conflict, match="is the one that seals"):
        invoke(tmp_path, "keys", "remove", old)
    used = invoke(tmp_path, "keys", "use", new)
    assert [key["id"] for key in used["keys"]] == [new, old]
    assert [key["id"] for key in invoke(tmp_path, "keys", "remove", old)["keys"]] == [new]
    assert new in invoke(tmp_path, "keys", "list", as_json=False)
    with pytest.raises(Conflict, match="there already"):
        invoke(tmp_path, "keys", "new")
    with pytest.raises(NotFound, match="has no key"):
        invoke(tmp_path, "keys", "use", "00000000")


def test_asking_where_nobody_gossips_says_how_to_switch_it_on(tmp_path: Path) -> None:
    with pytest.raises(NodeUnavailable, match=r"gossip\.sock") as caught:
        invoke(tmp_path, "members")
    assert "enabled = true" in caught.value.hint


@pytest.mark.slow
def test_status_members_and_watch_show_what_the_node_knows(tmp_path: Path) -> None:
    async def play() -> None:
        invoke(tmp_path, "keys", "new")
        node = make_node(tmp_path)
        service = GossipService(settings(tags={"site": "east"}), node)
        await service.start()
        status = await asyncio.to_thread(invoke, tmp_path, "status")
        assert status["name"] == "alpha"
        assert status["members"] == {"alive": 1}
        (member,) = await asyncio.to_thread(invoke, tmp_path, "members", "--state", "alive")
        assert (member["name"], member["tags"]) == ("alpha", {"site": "east"})
        assert await asyncio.to_thread(invoke, tmp_path, "members", "--state", "dead") == []
        table = await asyncio.to_thread(invoke, tmp_path, "members", as_json=False)
        assert "site=east" in table

        path = tmp_path / "service-gossip" / "gossip.sock"
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"watch\n")
        nonsense, other = await asyncio.open_unix_connection(path)
        other.write(b"dance\n")
        assert b"ask for status" in await nonsense.readline()
        other.close()
        assert json.loads(await reader.readline())["tags"] == {"site": "east"}
        service.member.set_tags({"site": "west"})
        told = json.loads(await reader.readline())
        assert told["tags"] == {"site": "west"}
        await service.stop()
        assert await reader.read() == b""
        writer.close()

    asyncio.run(play())


def test_the_bench_measures_small_clusters(tmp_path: Path) -> None:
    (_, bench) = commands()
    arguments = ["gossip", "--members", "10", "--failures", "2", "--node-periods", "100"]
    state = ShellState(json=True)
    result = CliRunner().invoke(bench, arguments, obj=state, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.output)["sizes"]
    assert row["members"] == 10
    assert row["unknown"] == 0
    refused = CliRunner().invoke(bench, ["gossip", "--members", "two"], obj=state)
    assert refused.exit_code == 2
    assert "3 to 20000" in refused.output
