"""Gossip as a service of the node, and the socket by which the command line asks it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from attrs import field, frozen
from novacron import ConfigError
from novacron_agreement.control import Asker, ControlSocket

from novacron_consensus_gossip._driver import GossipMember, MemberSetup
from novacron_consensus_gossip._seal import CIPHERS
from novacron_consensus_gossip._values import Member, State, Timing

if TYPE_CHECKING:
    from novacron import Node

log = logging.getLogger("novacron.gossip")

FOLDER: Final = "service-gossip"
SOCKET: Final = "gossip.sock"
KEYS: Final = "keys"
REQUEST_BYTES_MAX: Final = 4_096
CLIENTS_MAX: Final = 32
WATCH_MAX: Final = 1_000


@frozen(kw_only=True)
class GossipSettings:
    """The section ``[service.gossip]``. All members of a cluster should have equal times.

    Attributes:
        enabled: Take part. Off by default: it needs a key and an address of its own.
        cluster: The cluster's name; the datagrams of another one are refused.
        listen: ``host:port`` for UDP and TCP.
        advertise: Where the others reach it; empty if that is ``listen``.
        seeds: ``host:port`` of some members to begin with; three are enough.
        keys: The file of keys, mode 0600; empty for ``service-gossip/keys`` in state_dir.
        cipher: ``aes-256-gcm``, or ``chacha20-poly1305`` for CPUs without AES.
        tags: What this node tells all others about itself, such as its site; 512 bytes at most.
        period_s: Each member probes one other per period.
        probe_s: How long an answer may take; above the longest round trip, below half a period.
        sync_s: How often tables are compared.
        forget_s: For how long the dead are remembered.
    """

    enabled: bool = False
    cluster: str = "novacron"
    listen: str = "127.0.0.1:4771"
    advertise: str = ""
    seeds: list[str] = field(factory=list)
    keys: str = ""
    cipher: str = "aes-256-gcm"
    tags: dict[str, str] = field(factory=dict)
    period_s: float = 1.0
    probe_s: float = 0.3
    sync_s: float = 30.0
    forget_s: float = 86_400.0

    def timing(self) -> Timing:
        """Raises ConfigError if the times do not go together."""
        if not 0.05 <= self.period_s <= 60 or not 0 < self.probe_s <= self.period_s / 2:
            raise ConfigError(
                f"[service.gossip] period_s {self.period_s} and probe_s {self.probe_s} do not go "
                "together",
                hint="period_s is 0.05 to 60; probe_s at most half of it, so that there is time "
                "to ask others",
            )
        if self.sync_s < self.period_s or self.forget_s < 60 * self.period_s:
            raise ConfigError(
                f"[service.gossip] sync_s {self.sync_s} or forget_s {self.forget_s} is too short",
                hint="sync_s is at least a period, forget_s at least 60",
            )
        period = int(self.period_s * 1000)
        return Timing(
            period_ms=period,
            probe_ms=int(self.probe_s * 1000),
            gossip_ms=max(1, period // 5),
            sync_ms=int(self.sync_s * 1000),
            gossip_dead_ms=30 * period,
            forget_ms=int(self.forget_s * 1000),
        )

    def setup(self, name: str, state_dir: Path) -> MemberSetup:
        """Raises ConfigError."""
        if self.cipher not in CIPHERS:
            raise ConfigError(
                f"[service.gossip] cipher {self.cipher!r} is not known",
                hint=f"take one of {', '.join(CIPHERS)}",
            )
        folder = state_dir / FOLDER
        return MemberSetup(
            name=name,
            cluster=self.cluster,
            listen=self.listen,
            advertise=self.advertise,
            seeds=tuple(self.seeds),
            tags=self.tags,
            keys=Path(self.keys).expanduser() if self.keys else folder / KEYS,
            cipher=self.cipher,
            folder=folder,
            timing=self.timing(),
        )


class GossipService:
    """Makes the node a member of a gossiping cluster."""

    name: ClassVar[str] = "gossip"
    Settings: ClassVar[type] = GossipSettings

    def __init__(self, settings: Any, node: Node) -> None:
        self._node = node
        setup = settings.setup(node.facts.name, node.facts.state_dir)
        self.member = GossipMember(setup, self._changed, self._broadcast)
        self._control = Control(self.member, setup.folder / SOCKET)

    async def start(self) -> None:
        """Join; returns when it listens. Raises NovacronError or OSError; nothing runs then."""
        await self.member.start()
        try:
            await self._control.start()
        except BaseException:
            await self.member.close()
            raise
        self._node.manager.notify("novacron_on_gossip_start", gossip=self.member)
        log.info("gossip: %s at %s", self.member.setup.name, self.member.address)

    async def stop(self) -> None:
        """Say goodbye, so that nobody takes it for a failure, and end. Twice is once."""
        await self._control.stop()
        if self.member.address and not self.member.core.closed:
            await self.member.leave(4 * self.member.setup.timing.period_ms / 1000)
        await self.member.close()

    def _changed(self, member: Member, state: State | None) -> None:
        self._control.tell(member, state)
        told = "forgotten" if state is None else state.name.lower()
        manager, facts = self._node.manager, self._node.facts
        manager.notify("novacron_on_member_change", member=member, state=told, node=facts)

    def _broadcast(self, origin: str, topic: str, body: bytes) -> None:
        manager, facts = self._node.manager, self._node.facts
        manager.notify("novacron_on_broadcast", origin=origin, topic=topic, body=body, node=facts)


class Control:
    """A unix socket that answers ``status``, ``members`` and ``watch`` with lines of JSON.

    ``watch`` tells all members first, then each change.
    """

    def __init__(self, member: GossipMember, path: Path) -> None:
        self._member = member
        self._watchers: set[asyncio.Queue[dict[str, Any]]] = set()
        self._socket = ControlSocket(
            path, self._answer, request_bytes_max=REQUEST_BYTES_MAX, clients_max=CLIENTS_MAX
        )
        self.start, self.stop = self._socket.start, self._socket.stop

    def tell(self, member: Member, state: State | None) -> None:
        """Let those who watch know."""
        if not self._watchers:
            return
        told = self._member.describe(member)
        if state is None:
            told["state"] = "forgotten"
        for queue in self._watchers:
            if queue.qsize() < WATCH_MAX:  # who does not read misses something
                queue.put_nowait(told)

    async def _answer(self, ask: bytes, asker: Asker) -> None:
        member = self._member
        if ask == b"status":
            await _tell(asker, member.status())
        elif ask == b"members":
            await _tell(asker, [member.describe(one) for one in member.core.members])
        elif ask == b"watch":
            await self._watch(asker)
        else:
            await _tell(asker, {"error": "ask for status, members or watch"})

    async def _watch(self, asker: Asker) -> None:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            for one in list(self._member.core.members):
                await _tell(asker, self._member.describe(one))
            async with contextlib.aclosing(asker.until_it_goes(queue)) as changes:
                async for change in changes:
                    await _tell(asker, change)
        finally:
            self._watchers.discard(queue)


async def _tell(asker: Asker, value: Any) -> None:
    await asker.tell(json.dumps(value).encode())
