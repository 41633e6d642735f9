"""Nodes that only have channels: real TLS over real TCP, without a kernel's node around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field
from novacron import NodeFacts, SecureStream
from novacron.channels import PeerChannels
from novacron_dwcp.accept import Acceptor
from novacron_security_tls import Authority, TlsSecurity
from novacron_transport_tcp import TcpTransport


@define(eq=False)
class ChannelNode:
    """A node's name, its state folder, and its channels to the others.

    Attributes:
        addresses: Where the others listen, by name; a name that is missing cannot be dialled.
    """

    name: str
    folder: Path
    addresses: dict[str, str]
    channels: PeerChannels = field(init=False)
    security: TlsSecurity = field(init=False)
    _listener: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        def dial(peer: str, address: str) -> SecureStream:
            stream = transport.connect(address or self.addresses[peer], 5.0)
            return self.security.client(stream, peer)

        def secure(stream: Any) -> tuple[SecureStream, str]:
            secured = self.security.server(stream)
            return secured, secured.peer.node

        def no_link(*_: object) -> Any:
            raise AssertionError("these nodes have channels only")

        def run(protocol: str, stream: Any, _: str) -> None:
            self.channels.run(protocol, stream)

        self.channels = PeerChannels(dial)
        transport = TcpTransport(TcpTransport.Settings(), self.facts)
        self.security = TlsSecurity(TlsSecurity.Settings(), self.facts)
        self._listener = transport.listen(self.addresses.get(self.name, "127.0.0.1:0"))
        self.addresses[self.name] = self._listener.address
        Acceptor(self._listener.accept, secure, no_link, run).start()

    @property
    def facts(self) -> NodeFacts:
        return NodeFacts(name=self.name, state_dir=self.folder / self.name, channels=self.channels)

    def close(self) -> None:
        self._listener.close()
        self.channels.close()


def enrol(folder: Path, names: Sequence[str]) -> None:
    """An authority in a folder, and the named nodes' state folders with their certificates."""
    authority = Authority.create(folder / "authority")
    for name in names:
        (folder / name).mkdir(mode=0o700)
        authority.issue(name, folder / name)


@contextmanager
def channel_nodes(folder: Path, *names: str) -> Iterator[dict[str, ChannelNode]]:
    """Nodes that trust one authority and know each other's addresses."""
    enrol(folder, names)
    addresses: dict[str, str] = {}
    nodes = {name: ChannelNode(name, folder, addresses) for name in names}
    try:
        yield nodes
    finally:
        for node in nodes.values():
            node.close()
