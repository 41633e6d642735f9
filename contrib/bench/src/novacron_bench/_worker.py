"""One of the two processes of a way: a half of the relay, or of the plain forwarding.

Its setup comes as JSON on the command line; it says on standard output where it listens and, at the
end, what it has cost.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import cattrs
from attrs import field, frozen
from novacron import (
    Batch,
    CodecSession,
    Compression,
    ConfigError,
    NodeFacts,
    PeerProtocolError,
    PluginManager,
    Security,
    Transport,
)
from novacron_dwcp.driver import Link, read_frame
from novacron_dwcp.link import Kind, parse_greeting
from novacron_dwcp.pump import InwardPump, OutwardPump
from novacron_native_pages import JOINED_MAX, Piece, Splitter, join_into

SESSION: Final = "bench"
_READ_BYTES: Final = 1 << 20
_WAIT_S: Final = 60.0


@frozen(kw_only=True)
class WorkerSetup:
    """What a process is to do.

    Attributes:
        kind: ``plain`` or ``relay``.
        side: ``source`` or ``destination``.
        local: The unix socket of what stands for QEMU on this side.
        peer: The address of the destination; the source's only.
        state: The node's state folder, with its identity.
        compression, transport, security: The providers.
        settings: Of the compression.
        window_bytes: The link's.
        block_bytes: What plain forwarding reads at a time.
    """

    kind: str
    side: str
    local: str
    peer: str = ""
    state: str = ""
    compression: str = "zstd"
    transport: str = "tcp"
    security: str = "tls"
    settings: dict[str, Any] = field(factory=dict)
    window_bytes: int = 16 << 20
    block_bytes: int = field(default=1 << 20)


class _SocketOutgoing:
    """What a pump reads: a stream from a socket, as batches."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._splitter = Splitter()
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._ready: list[Piece] = []
        self._ended = False

    def read(self) -> Batch | None:
        while not self._ready:
            if self._ended:
                return None
            count = self._stream.recv_into(self._buffer)
            if count:
                self._ready = self._splitter.feed(self._buffer[:count])
            else:
                self._ended = True
                self._ready = self._splitter.flush(everything=True)
        return Batch(*self._ready.pop(0))


class _SocketIncoming:
    """What a pump writes to: batches to a socket, as a stream."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._out = memoryview(bytearray(JOINED_MAX))

    def write(self, batch: Batch) -> None:
        length = join_into(self._out, batch.layout, batch.addresses, batch.pages)
        self._stream.sendall(self._out[:length])


def plugins(setup: WorkerSetup) -> PluginManager:
    """The plugins that offer the providers; all of them only if their names do not tell."""
    wanted = {
        "compression": setup.compression,
        "transport": setup.transport,
        "security": setup.security,
    }
    installed = {point.name for point in metadata.entry_points(group="novacron")}
    likely = {f"{domain}-{name}" for domain, name in wanted.items()}
    manager = PluginManager.load(only=likely & installed)
    if all(name in manager.providers(domain) for domain, name in wanted.items()):
        return manager
    return PluginManager.load()


def provider(
    manager: PluginManager,
    domain: str,
    name: str,
    facts: NodeFacts,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """A provider with these settings. Raises ConfigError if nobody offers it, or one is wrong."""
    classes = manager.providers(domain)
    if name not in classes:
        raise ConfigError(
            f"no installed plugin offers the {domain} {name!r}",
            hint=f"installed: {', '.join(classes) or 'none'}",
        )
    cls: Any = classes[name]
    try:
        return cls(cls.Settings(**(settings or {})), facts)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a setting of the {domain} {name!r} is wrong: {error}") from error


def _say(**values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def host_cpu_s() -> float:
    """CPU seconds that all processors have been busy for, or taken from us."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, soft_irq, steal = map(int, fields)
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")


def own_cpu_s() -> float:
    times = os.times()
    return times.user + times.system


class _Meter:
    """Counts CPU seconds from `begin`, so that imports and set-up do not count."""

    def __init__(self) -> None:
        self._start_s = 0.0
        self._start_by_thread: dict[int, float] = {}
        self.by_thread: dict[str, float] = {}

    def begin(self) -> None:
        self._start_s, self._start_by_thread = own_cpu_s(), self._read()

    def note_threads(self) -> None:
        """Keep what each living thread has spent: where to look when the relay is slow."""
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        self.by_thread = {}
        for task, spent_s in self._read().items():
            name = names.get(task, "other").removesuffix(f"-{SESSION}")
            spent_s -= self._start_by_thread.get(task, 0.0)
            self.by_thread[name] = round(self.by_thread.get(name, 0.0) + spent_s, 2)

    def spent_s(self) -> float:
        return own_cpu_s() - self._start_s

    def _read(self) -> dict[int, float]:
        tick = os.sysconf("SC_CLK_TCK")
        spent: dict[int, float] = {}
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it may end meanwhile
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                spent[int(task.name)] = (int(fields[11]) + int(fields[12])) / tick
        return spent


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _local(setup: WorkerSetup) -> socket.socket:
    local = socket.socket(socket.AF_UNIX)
    local.connect(setup.local)
    return local


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _forward(source: socket.socket, sink: socket.socket, block_bytes: int) -> int:
    block = memoryview(bytearray(block_bytes))
    total = 0
    while count := source.recv_into(block):
        sink.sendall(block[:count])
        total += count
    sink.shutdown(socket.SHUT_WR)
    return total


def _plain(setup: WorkerSetup, meter: _Meter) -> int:
    if setup.side == "source":
        with _local(setup) as local, socket.create_connection(_host_port(setup.peer)) as peer:
            meter.begin()
            return _forward(local, peer, setup.block_bytes)
    with socket.create_server(("127.0.0.1", 0)) as server:
        _say(listening="{}:{}".format(*server.getsockname()))
        peer, _ = server.accept()
        with peer, _local(setup) as local:
            meter.begin()
            return _forward(peer, local, setup.block_bytes)


class _Relay:
    """What both halves of the relay have."""

    def __init__(self, setup: WorkerSetup, name: str) -> None:
        manager = plugins(setup)
        facts = NodeFacts(name=name, state_dir=Path(setup.state))
        self.setup = setup
        self.compression: Compression = provider(
            manager, "compression", setup.compression, facts, setup.settings
        )
        self.transport: Transport = provider(manager, "transport", setup.transport, facts)
        self.security: Security = provider(manager, "security", setup.security, facts)
        self.said: list[bytes] = []
        self.told = threading.Event()

    def session(self) -> CodecSession:
        return CodecSession(
            session=SESSION,
            machine=SESSION,
            driver="bench",
            peer="destination" if self.setup.side == "source" else "source",
            tenant="",
            memory_bytes=1 << 30,
            role="source" if self.setup.side == "source" else "destination",
        )

    def hear(self, message: bytes) -> None:
        self.said.append(message)
        self.told.set()

    def link(self, dial: Any = None) -> Link:
        return Link(
            session=SESSION,
            window=self.setup.window_bytes,
            timeout_s=10,
            on_message=self.hear,
            on_reset=self._broken,
            on_broken=lambda reason: self._broken(),
            dial=dial,
        )

    def _broken(self) -> None:
        os._exit(3)  # a bench has nothing to mend

    def await_word(self) -> bytes:
        if not self.told.wait(600):
            raise PeerProtocolError("the other half says nothing")
        return self.said[-1]


def _relay_source(setup: WorkerSetup, meter: _Meter) -> int:
    relay = _Relay(setup, "source")
    link = relay.link(
        lambda: relay.security.client(relay.transport.connect(setup.peer, 10), "destination")
    )
    link.start()
    link.wait_connected(_WAIT_S)
    meter.begin()
    with _local(setup) as local:
        encoder = relay.compression.encoder(relay.session())
        pump = OutwardPump(_SocketOutgoing(local), setup.compression, encoder, link)
        pump.run()
    link.send_message(f"{pump.batches} {pump.digest.hex()}".encode())
    if relay.await_word() != b"whole":
        raise PeerProtocolError("the other half did not get the same")
    meter.note_threads()
    link.close()
    link.join()
    return link.sent_bytes


def _relay_destination(setup: WorkerSetup, meter: _Meter) -> int:
    relay = _Relay(setup, "destination")
    listener = relay.transport.listen("127.0.0.1:0")
    _say(listening=listener.address)
    stream = relay.security.server(listener.accept())
    hello = read_frame(stream)
    if hello is None or hello.kind is not Kind.HELLO:
        raise PeerProtocolError("the other half did not greet")
    link = relay.link()
    meter.begin()
    with _local(setup) as local:
        decoder = relay.compression.decoder(relay.session())
        pump = InwardPump(link, lambda name: decoder, _SocketIncoming(local))
        pumping = threading.Thread(target=pump.run, daemon=True, name="pump")
        pumping.start()
        link.start_accepted(stream, parse_greeting(hello.payload))
        batches, digest = relay.await_word().decode().split()
        whole = pump.wait_for(int(batches)) and pump.digest.hex() == digest
        local.shutdown(socket.SHUT_WR)
        meter.note_threads()
        link.send_message(b"whole" if whole else b"torn")
        pumping.join(_WAIT_S)
    link.join()
    listener.close()
    return link.received_bytes


def main() -> None:
    setup = cattrs.structure(json.loads(sys.argv[1]), WorkerSetup)
    works = {
        ("plain", "source"): _plain,
        ("plain", "destination"): _plain,
        ("relay", "source"): _relay_source,
        ("relay", "destination"): _relay_destination,
    }
    meter = _Meter()
    moved = works[setup.kind, setup.side](setup, meter)
    _say(
        cpu_s=meter.spent_s(),
        peak_bytes=_memory("VmHWM"),
        wire_bytes=moved,
        threads=meter.by_thread,
    )


if __name__ == "__main__":
    main()
