"""One member on a real network: the core's datagrams over UDP, its streams over TCP, its clock.

Everything runs on the event loop. What the core wants kept is one small file; writing it takes
about a millisecond and happens when the member starts and when it refutes something.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import random
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen
from novacron import ConfigError, NovacronError

from novacron_consensus_gossip import _keyring
from novacron_consensus_gossip._core import GossipCore, check_tags
from novacron_consensus_gossip._effects import (
    Changed,
    Deliver,
    Effect,
    Note,
    Save,
    Send,
    Stream,
)
from novacron_consensus_gossip._seal import (
    SEAL_BYTES,
    SESSION_BYTES,
    Key,
    Purpose,
    Seal,
    SealError,
)
from novacron_consensus_gossip._streams import Streams
from novacron_consensus_gossip._values import Me, Member, State, Timing
from novacron_consensus_gossip._wire import DATAGRAM_BYTES_MAX

log = logging.getLogger("novacron.gossip")

PACKET_BYTES_MAX: Final = DATAGRAM_BYTES_MAX + SEAL_BYTES
SAVED_FILE: Final = "member"
SAVED_BYTES_MAX: Final = 64 << 10
RECEIVE_BUFFER_BYTES: Final = 4 << 20
LOOK_AT_KEYS_S: Final = 5.0
PORT_TRIES: Final = 16


@frozen(kw_only=True)
class MemberSetup:
    """What a member is made from.

    Attributes:
        name: The member's name.
        cluster: The cluster's name; all members have the same.
        listen: ``host:port`` for datagrams and streams; port 0 takes a free one.
        advertise: Where others reach it; empty for ``listen``.
        seeds: ``host:port`` of members to begin with.
        tags: What it tells about itself.
        keys: The file of the cluster's keys.
        cipher: ``aes-256-gcm`` or ``chacha20-poly1305``.
        folder: Where it keeps what it needs for its next life; it is made.
        timing: The protocol's settings.
    """

    name: str
    cluster: str
    listen: str
    keys: Path
    folder: Path
    advertise: str = ""
    seeds: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(factory=dict)
    cipher: str = "aes-256-gcm"
    timing: Timing = field(factory=Timing)


@lru_cache(maxsize=1 << 15)
def split_address(address: str) -> tuple[str, int] | None:
    """Host and port of ``10.0.0.1:4771`` or ``[fd00::1]:4771``; None if it is neither."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        return None
    try:
        return str(ipaddress.ip_address(host)), int(port)
    except ValueError:
        return None


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _resolve(address: str, setting: str, *, free: bool = False) -> tuple[str, int]:
    """The first address that a name and a port stand for. Raises ConfigError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) >= 65_536:
        raise ConfigError(
            f"{setting} {address!r} is no address", hint="write it as host:port, or [host]:port"
        )
    if int(port) == 0 and not free:
        raise ConfigError(f"{setting} {address!r} has no port", hint="write host:port")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)
    except OSError as error:
        raise ConfigError(
            f"{setting} {address!r} cannot be resolved: {error}", hint="name a host that exists"
        ) from error
    return str(found[0][4][0]), int(port)


@define(eq=False)
class GossipMember:
    """See the module.

    Args:
        setup: What it is made from.
        on_change: Called when a member is held otherwise; its state is None when it is forgotten.
        on_broadcast: Called with origin, topic and body of each broadcast.

    Attributes:
        core: The protocol, once it is started.
        address: Where others reach it.
        counts: What the network brought and what was refused.
    """

    setup: MemberSetup
    on_change: Callable[[Member, State | None], None] = field(default=lambda member, state: None)
    on_broadcast: Callable[[str, str, bytes], None] = field(
        default=lambda origin, topic, body: None
    )
    core: GossipCore = field(init=False)
    address: str = field(default="", init=False)
    counts: Counter[str] = field(factory=Counter, init=False)
    _datagrams: Seal = field(init=False)
    _bulk: Seal = field(init=False)
    _streams: Streams = field(init=False)
    _transport: asyncio.DatagramTransport | None = field(default=None, init=False)
    _loop: asyncio.AbstractEventLoop = field(init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    _timer_ms: int = field(default=0, init=False)
    _key_watch: asyncio.TimerHandle | None = field(default=None, init=False)
    _key_stamp: tuple[int, ...] = field(default=(), init=False)
    _closed: asyncio.Event = field(factory=asyncio.Event, init=False)

    # Life.

    async def start(self) -> None:
        """Begin; returns when it listens.

        Raises: ConfigError that says which setting is wrong; OSError if it cannot listen. Nothing
        is left running then.
        """
        setup = self.setup
        try:
            check_tags(setup.tags)
        except ValueError as error:
            raise ConfigError(str(error), hint="shorten the tags") from error
        keys = _keyring.read(setup.keys)
        self._key_stamp = self._stamp()
        self._datagrams = self._seal(keys, Purpose.DATAGRAM)
        self._bulk = self._seal(keys, Purpose.STREAM)
        self._loop = asyncio.get_running_loop()
        listen = await asyncio.to_thread(_resolve, setup.listen, "listen", free=True)
        seeds = [
            join_address(*await asyncio.to_thread(_resolve, seed, "a seed")) for seed in setup.seeds
        ]
        setup.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        saved = self._read_saved()
        tcp, udp = _sockets(*listen)
        port = tcp.getsockname()[1]
        try:
            self.address = await self._advertised(listen[0], port)
            me = Me(name=setup.name, address=self.address, tags=setup.tags, seeds=tuple(seeds))
            rng = random.Random(secrets.randbits(128))
            self.core = GossipCore(me, setup.timing, rng, saved)
            self._streams = Streams(self._arrived, self._seal_bulk, split_address, self.counts)
            await self._streams.listen(tcp)
            self._transport, _ = await self._loop.create_datagram_endpoint(
                lambda: _Datagrams(self._datagram), sock=udp
            )
        except BaseException:
            if hasattr(self, "_streams"):
                await self._streams.close()
            tcp.close()
            udp.close()
            raise
        self._perform(self.core.start(self.now_ms()))
        self._key_watch = self._loop.call_later(LOOK_AT_KEYS_S, self._look_at_keys)

    async def _advertised(self, host: str, port: int) -> str:
        if self.setup.advertise:
            named, at = await asyncio.to_thread(
                _resolve, self.setup.advertise, "advertise", free=True
            )
            return join_address(named, at or port)
        if ipaddress.ip_address(host).is_unspecified:
            raise ConfigError(
                f"listen {self.setup.listen!r} is every address, and others need one",
                hint="say by `advertise` where the others reach this node",
            )
        return join_address(host, port)

    def _seal(self, keys: tuple[Key, ...], purpose: Purpose) -> Seal:
        session = secrets.token_bytes(SESSION_BYTES)
        return Seal(keys, self.setup.cluster, purpose, session, self.setup.cipher)

    async def leave(self, timeout_s: float = 5.0) -> None:
        """Say goodbye and wait until it has been told; `close` is still to be called."""
        self._perform(self.core.leave(self.now_ms()))
        try:
            async with asyncio.timeout(timeout_s):
                await self._closed.wait()
        except TimeoutError:
            log.warning("gossip: the others were not told that this node leaves")

    async def close(self) -> None:
        """End without a word. Twice is once."""
        for handle in (self._timer, self._key_watch):
            if handle is not None:
                handle.cancel()
        self._timer = self._key_watch = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
            await self._streams.close()
            await asyncio.sleep(0)  # the transport closes its socket in the loop's next turn

    async def wait_closed(self) -> None:
        """Until it takes no part any more: it has left, or its name is another's."""
        await self._closed.wait()

    # What is asked of it.

    def broadcast(self, topic: str, body: bytes) -> None:
        """Send something to all members. Raises ValueError if it is too long."""
        self._perform(self.core.broadcast(self.now_ms(), topic, body))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tell something else about this node. Raises ValueError if it is too much."""
        self._perform(self.core.set_tags(self.now_ms(), tags))

    def status(self) -> dict[str, Any]:
        """For people and metrics."""
        core = self.core
        return {
            "name": self.setup.name,
            "cluster": self.setup.cluster,
            "address": self.address,
            "incarnation": core.incarnation,
            "health": core.health,
            "closed": core.closed,
            "members": Counter(one.state.name.lower() for one in core.members),
            "keys": [key.hex() for key in self._datagrams._keys],
            "sealed": {
                "datagrams": dict(self._datagrams.counts),
                "streams": dict(self._bulk.counts),
            },
            "counts": dict(self.counts + core.counts),
        }

    def describe(self, member: Member) -> dict[str, Any]:
        """A member for people and programs."""
        return {
            "name": member.name,
            "state": member.state.name.lower(),
            "address": member.address,
            "incarnation": member.incarnation,
            "for_s": round((self.now_ms() - member.since_ms) / 1000, 1),
            "round_trip_ms": self.core.round_trips_ms.get(member.name),
            "tags": dict(member.tags),
        }

    def now_ms(self) -> int:
        return int(self._loop.time() * 1000)

    # From the network.

    def _datagram(self, data: bytes, host: str, port: int) -> None:
        if len(data) > PACKET_BYTES_MAX:
            self.counts["datagrams-oversized"] += 1
            return
        try:
            message = self._datagrams.open(_wall_ms(), data)
        except SealError:
            return  # counted
        sender = join_address(host, port)
        self._perform(self.core.receive(self.now_ms(), sender, message))

    def _arrived(self, frame: bytes) -> bool:
        try:
            message = self._bulk.open(_wall_ms(), frame)
        except SealError:
            return False
        self._perform(self.core.receive_stream(self.now_ms(), message))
        return True

    def _seal_bulk(self, message: bytes) -> bytes:
        return self._bulk.seal(_wall_ms(), message)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self.core.tick(self.now_ms()))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._send(effect)
            elif isinstance(effect, Stream):
                self._streams.send(effect.to, effect.message)
            elif isinstance(effect, Changed):
                log.debug("gossip: %r", effect.member)
                self.on_change(effect.member, effect.state)
            elif isinstance(effect, Deliver):
                self.on_broadcast(effect.origin, effect.topic, effect.body)
            elif isinstance(effect, Save):
                self._save(effect)
            elif isinstance(effect, Note):
                level = logging.INFO if effect.kind == "left" else logging.WARNING
                log.log(level, "gossip: %s: %s", effect.kind, effect.detail)
        if self.core.closed:
            self._closed.set()
        self._plan()

    def _send(self, effect: Send) -> None:
        target = split_address(effect.to)
        if target is None:
            self.counts["addresses-refused"] += 1
        elif self._transport is not None:
            data = self._datagrams.seal(_wall_ms(), effect.message)
            self._transport.sendto(data, target)

    def _plan(self) -> None:
        due = self.core.deadline_ms
        if self._timer is not None:
            if due is not None and self._timer_ms <= due:
                return  # it will look again then
            self._timer.cancel()
            self._timer = None
        if due is not None and self._transport is not None:
            self._timer_ms = due
            # The clock's milliseconds are cut off, so the end of this one is meant.
            self._timer = self._loop.call_at((due + 1) / 1000, self._tick)

    # What it keeps.

    def _read_saved(self) -> tuple[bytes, ...]:
        try:
            with open(self.setup.folder / SAVED_FILE, "rb") as file:
                return (file.read(SAVED_BYTES_MAX),)
        except FileNotFoundError:
            return ()

    def _save(self, effect: Save) -> None:
        try:
            _keyring.write_durably(self.setup.folder / SAVED_FILE, effect.records[-1])
        except OSError as error:
            # What is lost is an incarnation: in its next life the member has to refute once.
            self.counts["saves-failed"] += 1
            log.warning("gossip: what this member is cannot be kept: %s", error)

    # Keys.

    def _stamp(self) -> tuple[int, ...]:
        about = os.stat(self.setup.keys)
        return (about.st_mtime_ns, about.st_ino, about.st_size, about.st_mode)

    def _look_at_keys(self) -> None:
        """Take other keys when the file has changed; keep those that work if it is broken."""
        self._key_watch = self._loop.call_later(LOOK_AT_KEYS_S, self._look_at_keys)
        try:
            stamp = self._stamp()
            if stamp == self._key_stamp:
                return
            self._key_stamp = stamp
            keys = _keyring.read(self.setup.keys)
        except (OSError, NovacronError) as error:
            if self._key_stamp:
                log.error("gossip: the keys in use are kept: %s", error)
            self._key_stamp = ()
            return
        self._datagrams.use(keys)
        self._bulk.use(keys)
        log.info("gossip: keys %s are in use now", " ".join(key.id.hex() for key in keys))


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, arrived: Callable[[bytes, str, int], None]) -> None:
        self._arrived = arrived

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._arrived(data, addr[0], addr[1])

    def error_received(self, exc: Exception) -> None:
        """A peer's host says that nobody listens there: the protocol finds that out by itself."""


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _sockets(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A TCP and a UDP socket with the same port. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for attempt in range(PORT_TRIES):
        tcp = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        udp = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((host, port))
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            udp.bind((host, tcp.getsockname()[1]))
            tcp.listen(128)
        except OSError as error:
            tcp.close()
            udp.close()
            if port or attempt + 1 == PORT_TRIES:
                where = join_address(host, port)
                raise OSError(error.errno, f"gossip cannot listen at {where}: {error}") from error
            continue
        tcp.setblocking(False)
        udp.setblocking(False)
        return tcp, udp
    raise AssertionError("not reached")
