"""A member of a raft cluster in a process of its own, with a key-value store: for measurements.

    python -m novacron_bench._consensus_worker SETUP.json

A line on its standard input, ``cut b c``, makes it lose all that it sends to these members, until
the next line; so a partition may also be one-way. It is what a node runs (driver, log on the disk,
channels over TLS on TCP) without the rest of one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from attrs import define, field, frozen
from cattrs import structure
from novacron import Buffer, NodeFacts, SecureStream, TransportError
from novacron.channels import PeerChannels
from novacron_agreement.keyvalue import KeyValueMachine
from novacron_consensus_raft import RaftMember, RaftSection
from novacron_dwcp.accept import Acceptor
from novacron_security_tls import TlsSecurity
from novacron_transport_tcp import TcpTransport

log = logging.getLogger("novacron.bench")
READY = "ready"


@frozen(kw_only=True)
class MemberSetup:
    """What a process is told.

    Attributes:
        addresses: Of all members, by name.
        begins: With whom the cluster begins; empty for a process that only asks.
    """

    name: str
    folder: str
    addresses: dict[str, str]
    begins: list[str] = field(factory=list)
    heartbeat_ms: int = 100
    election_ms: int = 1000

    @property
    def section(self) -> RaftSection:
        return RaftSection(
            cluster="bench",
            heartbeat_ms=self.heartbeat_ms,
            election_ms=self.election_ms,
            members=list(self.addresses),
        )


@define(eq=False)
class CutStream:
    """A stream over which nothing gets while its peer is cut off, and which is broken after that,
    as one is that a partition has cut for long."""

    stream: SecureStream
    cut: set[str]
    _lost: bool = field(default=False, init=False)

    def send(self, buffers: Sequence[Buffer]) -> None:
        if self.stream.peer.node in self.cut:
            self._lost = True
        elif self._lost:
            self.stream.close()
            raise TransportError("the connection was lost in a partition")
        else:
            self.stream.send(buffers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@define(eq=False)
class Node:
    """Channels to the members by the real providers."""

    name: str
    folder: Path
    addresses: Mapping[str, str]
    cut: set[str] = field(factory=set, init=False)
    channels: PeerChannels = field(init=False)
    _transport: TcpTransport = field(init=False)
    _security: TlsSecurity = field(init=False)

    def __attrs_post_init__(self) -> None:
        facts = NodeFacts(name=self.name, state_dir=self.folder / self.name)
        self._transport = TcpTransport(TcpTransport.Settings(), facts)
        self._security = TlsSecurity(TlsSecurity.Settings(), facts)
        self.channels = PeerChannels(self._dial)

    @property
    def facts(self) -> NodeFacts:
        folder = self.folder / self.name
        return NodeFacts(name=self.name, state_dir=folder, channels=self.channels)

    def listen(self) -> None:
        listener = self._transport.listen(self.addresses[self.name])

        def no_link(*_: object) -> Any:
            raise AssertionError("a member has channels only")

        def run(protocol: str, stream: Any, _: str) -> None:
            self.channels.run(protocol, cast(SecureStream, CutStream(stream, self.cut)))

        Acceptor(listener.accept, self._secure, no_link, run).start()

    def _dial(self, peer: str, address: str) -> SecureStream:
        if peer in self.cut:
            raise TransportError(f"{peer} is behind a partition")
        stream = self._transport.connect(address or self.addresses[peer], 2.0)
        secured = self._security.client(stream, peer)
        return cast(SecureStream, CutStream(secured, self.cut))

    def _secure(self, stream: Any) -> tuple[SecureStream, str]:
        secured = self._security.server(stream)
        return secured, secured.peer.node


def say(line: str) -> None:
    """Tell whoever started this process."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def obey(cut: set[str]) -> None:
    """Do what the lines of the standard input say."""
    for line in sys.stdin:
        _, *names = line.split()
        cut.clear()
        cut.update(names)


def look(machine: KeyValueMachine, key: bytes) -> bytes:
    """A value as a read gets it: a byte that says that there is one, and the value."""
    value = machine.get(key.decode(errors="replace"))
    return b"" if value is None else b"=" + value


def member_of(setup: MemberSetup, node: Node) -> RaftMember:
    return RaftMember(setup.section, node.facts, KeyValueMachine, look)


async def main(setup: MemberSetup) -> None:
    log.info("process %d", os.getpid())
    node = Node(setup.name, Path(setup.folder), setup.addresses)
    member = member_of(setup, node)
    if member.driver is None:
        await member.begin(setup.begins)
    node.listen()
    threading.Thread(target=obey, args=(node.cut,), daemon=True).start()
    say(READY)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await member.close()


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s.%(msecs)03d %(message)s", datefmt="%H:%M:%S"
    )
    asyncio.run(main(structure(json.loads(Path(sys.argv[1]).read_text()), MemberSetup)))
