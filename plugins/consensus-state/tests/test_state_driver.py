"""Real replicas: threads, files, TCP on loopback, and the command line's socket."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from novacron import ConfigError, NodeUnavailable, Refused, ShellState
from novacron_agreement.peers import Peers
from novacron_consensus_state import (
    Level,
    ReplicaSettings,
    StateDriver,
    StateRefused,
    StateSettings,
)
from novacron_consensus_state._commands import state_group
from novacron_consensus_state._journal import StateDamaged
from novacron_consensus_state._service import Control

MEMBERS = {"a": "eu", "b": "eu", "c": "us"}
SETTINGS = ReplicaSettings(probe_ms=50, patience_ms=20, silent_ms=400, repeat_ms=0)


class Tcp:
    """A stream over loopback; who is at the other end is said in its first bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, buffers: Sequence[bytes]) -> None:
        self.sock.sendall(b"".join(buffers))

    def receive_into(self, buffer: memoryview) -> int:
        return self.sock.recv_into(buffer)

    def close(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class Host:
    """One member with its listener."""

    def __init__(self, name: str, ports: dict[str, int], path: Path) -> None:
        self.name = name
        self.listener = socket.create_server(("127.0.0.1", ports.get(name, 0)))
        ports[name] = self.listener.getsockname()[1]
        self.ports = ports
        self.streams: list[Tcp] = []
        self.peers = Peers(self.open, self.deliver)
        self.driver = StateDriver(
            name, MEMBERS, path / name / "journal", SETTINGS, "tests", self.peers
        )
        threading.Thread(target=self.accept, daemon=True).start()

    def open(self, peer: str, address: str) -> Tcp:
        stream = Tcp(socket.create_connection(("127.0.0.1", self.ports[peer])))
        stream.send([self.name.encode()])
        return stream

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            stream = Tcp(sock)
            self.streams.append(stream)
            threading.Thread(target=self.serve, args=(stream,), daemon=True).start()

    def serve(self, stream: Tcp) -> None:
        name = stream.sock.recv(1).decode()
        with suppress(OSError):
            self.peers.receive_from(name, stream)

    def deliver(self, sender: str, message: bytes) -> None:
        self.driver.receive(sender, message)

    def stop(self) -> None:
        self.driver.stop()
        self.peers.close()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for stream in self.streams:
            stream.close()


@asynccontextmanager
async def cluster(path: Path) -> AsyncIterator[dict[str, Host]]:
    ports: dict[str, int] = {}
    hosts = {name: Host(name, ports, path) for name in MEMBERS}
    for host in hosts.values():
        host.driver.start()
    try:
        yield hosts
    finally:
        for host in hosts.values():
            host.stop()


async def seen(host: Host, name: str, kind: str, wanted: Any) -> None:
    """Until a member shows a value."""
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def look(name: str, kind: str) -> None:
        loop.call_soon_threadsafe(changed.set)

    end = host.driver.watch(look)
    try:
        while (await host.driver.read(name, kind)).value != wanted:
            await asyncio.wait_for(changed.wait(), 10)
            changed.clear()
    finally:
        end()


def test_three_members_agree_over_tcp_and_one_that_was_restarted_catches_up(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with cluster(tmp_path) as hosts:
            a, b, c = hosts.values()
            await a.driver.write("flags", "or-set", "add", ["x"])
            await seen(c, "flags", "or-set", ["x"])
            answer = await c.driver.write("k", "lww", "set", [1], level=Level.QUORUM)
            assert answer.level == "quorum"
            assert (await b.driver.read("k", "lww", level=Level.QUORUM)).value == 1
            token = (await a.driver.write("k", "lww", "set", [2], level=Level.LOCAL)).token
            read = await b.driver.read("k", "lww", level=Level.LOCAL, token=token)
            assert read.value == 2
            b.driver.stop()
            await a.driver.write("k", "lww", "set", [3])
            b.driver = StateDriver("b", MEMBERS, b.driver.path, SETTINGS, "tests", b.peers)
            b.driver.start()
            await seen(b, "k", "lww", 3)
            fresh = await b.driver.read("k", "lww", max_staleness_s=5.0, timeout_s=10)
            assert fresh.age_ms is not None
            assert fresh.age_ms <= 5_000

    asyncio.run(run())


def test_a_request_that_a_minority_cannot_serve_says_what_is_true(tmp_path: Path) -> None:
    async def run() -> None:
        ports = {"b": 1, "c": 1}  # nobody listens there
        host = Host("a", ports, tmp_path)
        host.driver.start()
        try:
            with pytest.raises(StateRefused, match="1 of 3 members") as caught:
                await host.driver.write("k", "lww", "set", [1], level=Level.QUORUM, timeout_s=0.2)
            assert isinstance(caught.value, Refused)
            assert "not known" in caught.value.truth
            assert caught.value.facts["reason"] == "timeout"
            with pytest.raises(StateRefused, match="was never whole"):
                await host.driver.read("k", "lww", max_staleness_s=1, timeout_s=0.1)
            assert (await host.driver.read("k", "lww")).value == 1
        finally:
            host.stop()
        with pytest.raises(StateRefused, match="not served"):
            await host.driver.read("k", "lww")

    asyncio.run(run())


def test_another_members_file_is_refused_when_the_member_starts(tmp_path: Path) -> None:
    ports: dict[str, int] = {}
    host = Host("a", ports, tmp_path)
    host.driver.start()
    host.stop()
    wrong = StateDriver("b", MEMBERS, tmp_path / "a" / "journal", SETTINGS, "tests", host.peers)
    with pytest.raises(StateDamaged, match="the state of member 'a'"):
        wrong.start()


def test_a_member_whose_disk_fails_refuses_and_goes_on_when_it_can(tmp_path: Path) -> None:
    async def run() -> None:
        host = Host("a", {"b": 1, "c": 1}, tmp_path)
        host.driver.start()
        try:
            await host.driver.write("k", "lww", "set", [1])
            journal = host.driver._journal
            assert journal is not None

            def fails(records: Sequence[bytes]) -> None:
                raise OSError(28, "No space left on device")

            journal.append = fails  # type: ignore[method-assign]
            with pytest.raises(StateRefused, match="No space left") as caught:
                await host.driver.write("k", "lww", "set", [2])
            assert "make room" in caught.value.hint
            for _ in range(200):
                if host.driver.failure is None:
                    break
                await asyncio.sleep(0.02)
            assert (await host.driver.read("k", "lww")).value == 1
            await host.driver.write("k", "lww", "set", [3])
            assert (await host.driver.read("k", "lww")).value == 3
        finally:
            host.stop()

    asyncio.run(run())


# The command line.


@asynccontextmanager
async def served(tmp_path: Path) -> AsyncIterator[Path]:
    """A member whose socket is where the command line looks for it; the configuration's path."""
    config = tmp_path / "novacron.toml"
    config.write_text(f'[node]\nname = "a"\nstate_dir = "{tmp_path}/s"\n')
    host = Host("a", {"b": 1, "c": 1}, tmp_path)
    host.driver.start()
    (tmp_path / "s" / "service-state").mkdir(parents=True)
    control = Control(host.driver, tmp_path / "s" / "service-state" / "state.sock")
    await control.start()
    try:
        yield config
    finally:
        await control.stop()
        host.stop()


def ran(tmp_path: Path, *commands: list[str]) -> list[Any]:
    """What commands print, one after the other, as JSON; exceptions as they are."""

    async def run() -> list[Any]:
        async with served(tmp_path) as config:
            found: list[Any] = []
            for arguments in commands:
                state = ShellState(config_path=config, json=True)
                done = await asyncio.to_thread(
                    CliRunner().invoke, state_group, arguments, obj=state
                )
                if done.exception is not None and not isinstance(done.exception, SystemExit):
                    found.append(done.exception)
                else:
                    assert done.exit_code == 0, done.output
                    found.append(json.loads(done.stdout) if done.stdout else None)
            return found

    return asyncio.run(run())


def test_the_commands_set_get_and_explain(tmp_path: Path) -> None:
    session = str(tmp_path / "session")
    wrote, read, typed, explained, told = ran(
        tmp_path,
        ["set", "motd", "lww", "set", "hello", "--level", "local", "--session", session],
        ["get", "motd", "--level", "local", "--session", session],
        ["set", "n", "pn-counter", "increment", "-3"],
        ["levels"],
        ["status"],
    )
    assert wrote["level"] == "local"
    assert read["kinds"]["lww"]["value"] == "hello"
    assert typed["level"] == "eventual"
    assert [level["level"] for level in explained["levels"]] == [
        "eventual",
        "local",
        "quorum",
        "strong",
    ]
    assert explained["members"]["c"]["region"] == "us"
    assert "insert" in explained["types"]["list"]
    assert told["keys"] == 2


def test_the_commands_pass_refusals_on(tmp_path: Path) -> None:
    unknown, wrong, late = ran(
        tmp_path,
        ["get", "nothing"],
        ["set", "k", "lww", "add", "1"],
        ["set", "k", "lww", "set", "1", "--level", "quorum", "--timeout", "0.1"],
    )
    assert isinstance(unknown, Refused)
    assert "name its --type" in unknown.hint
    assert isinstance(wrong, Refused)
    assert "cannot 'add'" in wrong.message
    assert isinstance(late, Refused)
    assert "not known" in late.truth


def test_without_a_node_the_commands_say_what_to_do(tmp_path: Path) -> None:
    config = tmp_path / "novacron.toml"
    config.write_text(f'[node]\nname = "a"\nstate_dir = "{tmp_path}/s"\n')
    done = CliRunner().invoke(state_group, ["get", "k"], obj=ShellState(config_path=config))
    assert isinstance(done.exception, NodeUnavailable)
    assert "[service.state] enabled" in done.exception.hint
    explained = CliRunner().invoke(state_group, ["levels"], obj=ShellState(config_path=config))
    assert explained.exit_code == 0


def test_a_watch_shows_the_value_now_and_each_change(tmp_path: Path) -> None:
    async def run() -> list[Any]:
        async with served(tmp_path):
            path = tmp_path / "s" / "service-state" / "state.sock"

            async def ask(**request: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(json.dumps(request).encode() + b"\n")
                return reader, writer

            async def write(number: int) -> None:
                change = {"name": "k1", "kind": "lww", "operation": "set", "values": [number]}
                reader, writer = await ask(do="write", **change)
                await reader.readline()
                writer.close()

            await write(1)
            reader, writer = await ask(do="watch", name="k1")
            lines = [json.loads(await reader.readline())]
            await write(2)
            lines.append(json.loads(await reader.readline()))
            writer.close()
            wrong, other = await ask(do="nonsense")
            lines.append(json.loads(await wrong.readline())["error"]["code"])
            other.close()
            return lines

    first, second, error = asyncio.run(run())
    assert (first["value"], second["value"], error) == (1, 2, "config")


def test_settings_of_the_service_are_checked() -> None:
    assert StateSettings().enabled is False
    with pytest.raises(ConfigError, match="probe_ms"):
        StateSettings(probe_ms=1).replica()
