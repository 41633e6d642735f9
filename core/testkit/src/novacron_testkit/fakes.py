"""Fakes that keep the contracts: a wire with faults, a transport and a register in memory."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from attrs import Factory, frozen
from novacron import (
    Buffer,
    ConfigError,
    Fenced,
    NodeFacts,
    Ownership,
    TransportError,
)

CAPACITY: Final = 256 * 1024


class Lane:
    """One direction of a wire: a bounded buffer, and the faults that can befall what is in it.

    Set the faults at any time; offsets count the bytes sent on this lane since its beginning.

    Attributes:
        sent: Bytes that the sender has got rid of.
        record: All of them, as they were sent, if recording.
        flip_at: The offset of the byte whose lowest bit is flipped on its way.
        cut_after: The wire breaks once so many bytes are through: both ends get TransportError.
        end_after: The receiver sees an end of the stream there; the sender notices nothing.
    """

    def __init__(self, capacity: int, condition: threading.Condition) -> None:
        self.sent = 0
        self.record: bytearray | None = None
        self.flip_at: int | None = None
        self.cut_after: int | None = None
        self.end_after: int | None = None
        self._capacity = capacity
        self._changed = condition
        self._bytes = bytearray()
        self._ended = False
        self._broken = ""  # for the sender, and for the receiver once the buffer is empty
        self._deaf = False  # the receiver has closed

    def put(self, buffers: Sequence[Buffer]) -> None:
        with self._changed:
            for buffer in buffers:
                view = memoryview(buffer).cast("B")
                while view:
                    space = self._capacity - len(self._bytes)
                    if self._broken or self._deaf or self._ended:
                        raise TransportError(
                            self._broken or ("the peer has closed" if self._deaf else "finished")
                        )
                    if space <= 0:
                        self._changed.wait()
                        continue
                    view = view[self._pass(view[:space]) :]

    def _pass(self, piece: memoryview) -> int:
        count = len(piece)
        if self.cut_after is not None and self.sent + count >= self.cut_after:
            count = max(0, self.cut_after - self.sent)
            self._broken = "the wire was cut"
        data = bytearray(piece[:count])
        if self.flip_at is not None and 0 <= self.flip_at - self.sent < count:
            data[self.flip_at - self.sent] ^= 1
        if self.record is not None:
            self.record += piece[:count]
        if self.end_after is not None and self.sent + count >= self.end_after:
            del data[max(0, self.end_after - self.sent) :]
        self._bytes += data
        self.sent += count
        self._changed.notify_all()
        return count

    def take(self, buffer: memoryview) -> int:
        if not len(buffer):
            raise ValueError("receive_into needs room for at least one byte")
        with self._changed:
            while True:
                if self._deaf:
                    raise TransportError("the stream is closed")
                if self._bytes:
                    count = min(len(buffer), len(self._bytes))
                    buffer[:count] = self._bytes[:count]
                    del self._bytes[:count]
                    self._changed.notify_all()
                    return count
                if self._broken:
                    raise TransportError(self._broken)
                if self._ended or (self.end_after is not None and self.sent >= self.end_after):
                    return 0
                self._changed.wait()

    def end(self) -> None:
        """The receiver sees the end after what is under way."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def cut(self) -> None:
        """The wire breaks here and now, for the sender and the receiver of this lane."""
        with self._changed:
            self._broken = "the wire was cut"
            self._changed.notify_all()

    def deafen(self) -> None:
        with self._changed:
            self._deaf = True
            self._bytes.clear()
            self._changed.notify_all()


class MemoryStream:
    """One end of a `FakeWire`; a `novacron.Stream`."""

    def __init__(self, outgoing: Lane, incoming: Lane, peer_address: str) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._peer_address = peer_address

    def send(self, buffers: Sequence[Buffer]) -> None:
        self._outgoing.put(buffers)

    def receive_into(self, buffer: memoryview) -> int:
        return self._incoming.take(buffer)

    def finish(self) -> None:
        self._outgoing.end()

    def close(self) -> None:
        self._outgoing.end()
        self._incoming.deafen()

    @property
    def peer_address(self) -> str:
        return self._peer_address


class FakeWire:
    """Two streams joined by two lanes: what ``left`` sends goes by ``to_right``, and back.

    wire = FakeWire()
    wire.to_right.flip_at = 100    # an attacker flips a bit of the 101st byte
    wire.left.send([data])
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        condition = threading.Condition()
        self.to_right = Lane(capacity, condition)
        self.to_left = Lane(capacity, condition)
        self.left = MemoryStream(self.to_right, self.to_left, "memory:right")
        self.right = MemoryStream(self.to_left, self.to_right, "memory:left")

    def cut(self) -> None:
        """Both ends get TransportError once they have read what is under way."""
        self.to_right.cut()
        self.to_left.cut()

    def close(self) -> None:
        self.left.close()
        self.right.close()


class MemoryNetwork:
    """Where `MemoryTransport` providers meet: give the same one to each."""

    def __init__(self) -> None:
        self._listeners: dict[str, MemoryListener] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def enter(self, address: str) -> MemoryListener:
        with self._lock:
            if address == "memory:0":
                address = f"memory:{next(self._numbers)}"
            if address in self._listeners:
                raise TransportError(f"{address} is taken", address=address)
            listener = self._listeners[address] = MemoryListener(self, address)
            return listener

    def leave(self, address: str) -> None:
        with self._lock:
            self._listeners.pop(address, None)

    def find(self, address: str) -> MemoryListener | None:
        with self._lock:
            return self._listeners.get(address)


class MemoryListener:
    """A `novacron.Listener` of a `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, address: str) -> None:
        self._network = network
        self._address = address
        self._waiting: deque[MemoryStream] = deque()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def address(self) -> str:
        return self._address

    def admit(self, stream: MemoryStream) -> None:
        with self._changed:
            if self._closed:
                raise TransportError(f"nobody listens at {self._address}")
            self._waiting.append(stream)
            self._changed.notify()

    def accept(self) -> MemoryStream:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                raise TransportError(f"the listener at {self._address} is closed")
            return self._waiting.popleft()

    def close(self) -> None:
        self._network.leave(self._address)
        with self._changed:
            self._closed = True
            for stream in self._waiting:
                stream.close()
            self._waiting.clear()
            self._changed.notify_all()


@frozen(kw_only=True)
class MemoryTransportSettings:
    """Section ``[transport.memory]``.

    Attributes:
        network: Where the providers meet that shall reach each other.
        capacity_bytes: What a direction holds before its sender blocks.
    """

    network: MemoryNetwork = Factory(MemoryNetwork)
    capacity_bytes: int = CAPACITY


class MemoryTransport:
    """A transport without a network, for tests: addresses are ``memory:NAME``, 0 picks a name."""

    name: ClassVar[str] = "memory"

    Settings: ClassVar[type] = MemoryTransportSettings

    def __init__(self, settings: MemoryTransportSettings, node: NodeFacts) -> None:
        self.settings = settings

    def _check(self, address: str) -> str:
        if not address.startswith("memory:") or len(address) < len("memory:0"):
            raise ConfigError(f"{address!r} is not an address in memory", hint="write memory:NAME")
        return address

    def connect(self, address: str, timeout_s: float) -> MemoryStream:
        listener = self.settings.network.find(self._check(address))
        if listener is None:
            raise TransportError(f"nobody listens at {address}", address=address)
        wire = FakeWire(self.settings.capacity_bytes)
        listener.admit(wire.right)
        return wire.left

    def listen(self, address: str) -> MemoryListener:
        return self.settings.network.enter(self._check(address))


class MemoryDisk:
    """What outlives a `MemoryRegister`: the records, by node."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Ownership]] = {}


@frozen(kw_only=True)
class MemoryRegisterSettings:
    """Section ``[consensus.memory]``.

    Attributes:
        disk: Where the records are kept. Share it to share the register.
        shared: Whether all nodes see the same records.
    """

    disk: MemoryDisk = Factory(MemoryDisk)
    shared: bool = False


class MemoryRegister:
    """A register of ownership in memory, for tests. It outlives a reopening by its ``disk``."""

    name: ClassVar[str] = "memory"

    Settings: ClassVar[type] = MemoryRegisterSettings

    def __init__(self, settings: MemoryRegisterSettings, node: NodeFacts) -> None:
        shelf = "" if settings.shared else node.name
        self._records = settings.disk.records.setdefault(shelf, {})

    async def read(self, machine: str) -> Ownership | None:
        return self._records.get(machine)

    async def advance(self, record: Ownership, *, expected_epoch: int | None) -> None:
        held = self._records.get(record.machine)
        if held == record:
            return
        epoch = held.epoch if held else 0
        if record.epoch <= epoch or expected_epoch not in (None, epoch):
            raise Fenced(
                f"machine {record.machine!r} is at epoch {epoch}; "
                f"epoch {record.epoch} (expecting {expected_epoch}) comes too late",
                held=held,
            )
        self._records[record.machine] = record

    async def owned_by(self, node: str) -> Sequence[Ownership]:
        return [self._records[m] for m in sorted(self._records) if self._records[m].owner == node]

    async def forget(self, machine: str, *, epoch: int) -> None:
        held = self._records.get(machine)
        if held is not None and held.epoch != epoch:
            raise Fenced(f"machine {machine!r} is at epoch {held.epoch}, not {epoch}", held=held)
        self._records.pop(machine, None)

    async def close(self) -> None:
        pass


def _proof(settings: Any, node: NodeFacts) -> None:
    # The type checker's proof that the fakes are what they say.
    import novacron

    transport: novacron.Transport = MemoryTransport(settings, node)
    register: novacron.OwnershipRegister = MemoryRegister(settings, node)
    del transport, register
