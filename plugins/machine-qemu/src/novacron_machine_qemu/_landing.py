"""The disks of a machine that arrives: written through the QEMU that will run it.

QEMU opens the images as for any machine that arrives, and exports them over NBD in a socket of the
machine's home. So whatever the format is, it is QEMU that writes it, and its locks hold. The export
ends before the machine is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Final

from blake3 import blake3
from novacron import MachineError
from novacron_qemu.blocks import (
    BLOCK_BYTES,
    BLOCK_BYTES_MAX,
    DIGEST_BYTES,
    HAVE_BYTES_MAX,
    KEY_BYTES,
    Extent,
    HeldDisk,
    digest_of,
    is_zero,
)
from novacron_qemu.nbd import ClientCore, Command, Done, NbdError, Piece

from novacron_machine_qemu._disk_files import NODE
from novacron_machine_qemu._qmp import CommandFailed, Monitor

_SOCKET_TIMEOUT_S: Final = 120.0
_READ_BYTES: Final = 8 << 20
_RECEIVE_BYTES: Final = 1 << 20
_UNDER_WAY_MAX: Final = 64
_ZEROS_MAX: Final = 1 << 30
# The host's page cache may hold so much that is not on the disk yet: what is left of it when the
# last block has come is waited for while the guest stands still.
_FLUSH_BYTES: Final = 128 << 20


class Disk:
    """A disk that QEMU exports. Blocks; one thread at a time. All methods raise MachineError."""

    def __init__(self, path: Path, number: int) -> None:
        self.number = number
        self._core = ClientCore(f"{NODE}{number}")
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._pieces: list[Piece] = []
        self._unflushed = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_SOCKET_TIMEOUT_S)
            self._socket.connect(str(path))
            while not self._core.negotiated:
                self._receive()
        except BaseException as error:
            self._socket.close()
            if isinstance(error, (OSError, NbdError)):
                raise self._broken(error) from error
            raise
        self.size_bytes = self._core.size_bytes

    def _broken(self, error: Exception) -> MachineError:
        return MachineError(
            f"QEMU does not serve disk {self.number}: {error}",
            hint="see qemu.log in the machine's home",
        )

    def _receive(self) -> None:
        if out := self._core.output():
            self._socket.sendall(out)
        count = self._socket.recv_into(self._buffer)
        if not count:
            raise NbdError("the connection was closed")
        for event in self._core.feed(self._buffer[:count]):
            if isinstance(event, Piece):
                self._pieces.append(event)
            elif event.error:
                self._refuse(event)

    def _refuse(self, done: Done) -> None:
        said = done.message or os.strerror(done.error)
        hint = "look at the file system that the disk lies on"
        if done.error == errno.ENOSPC:
            hint = "free room on the file system that the disk lies on, and retry"
        raise MachineError(f"disk {self.number} cannot be written or read: {said}", hint=hint)

    def _settle(self, under_way: int = 0) -> None:
        try:
            while self._core.under_way > under_way:
                self._receive()
        except (OSError, NbdError) as error:
            raise self._broken(error) from error

    def write(self, extent: Extent) -> None:
        """Begin to write; `settle` waits for it."""
        offset, left = extent.offset, extent.length
        try:
            if extent.data is not None:
                self._core.ask(Command.WRITE, offset, left)
                self._socket.sendall(self._core.output())
                self._socket.sendall(extent.data)
                self._unflushed += left
            while extent.data is None and left:
                size = min(left, _ZEROS_MAX)
                self._core.ask(Command.WRITE_ZEROES, offset, size)
                self._socket.sendall(self._core.output())
                offset, left = offset + size, left - size
        except OSError as error:
            raise self._broken(error) from error
        self._settle(_UNDER_WAY_MAX)

    def settle(self) -> None:
        """Everything has been written; from time to time it is on the disk, too."""
        self._settle()
        if self._unflushed >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Everything is on the disk."""
        self._unflushed = 0
        self._core.ask(Command.FLUSH)
        self._settle()

    def blocks(self, block_bytes: int) -> Iterator[tuple[int, bytes]]:
        """The blocks that are not zero, in order, by their numbers."""
        for start in range(0, self.size_bytes, _READ_BYTES):
            self._core.ask(Command.READ, start, min(_READ_BYTES, self.size_bytes - start))
            self._settle()
            pieces, self._pieces = self._pieces, []
            for number, block in _blocks_in(pieces, block_bytes, self.size_bytes):
                if not is_zero(block):
                    yield number, block

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._core.ask(Command.DISCONNECT)
            self._socket.sendall(self._core.output())
        self._socket.close()

    def hang_up(self) -> None:
        """From another thread: whoever waits here gets an error."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def _blocks_in(
    pieces: Sequence[Piece], block_bytes: int, size_bytes: int
) -> Iterator[tuple[int, bytes]]:
    """The blocks that these pieces, in order, have something of: a hole costs nothing."""
    begun, partial = -1, bytearray()
    for piece in pieces:
        if piece.data is None:
            continue
        end = piece.offset + piece.length
        for number in range(piece.offset // block_bytes, -(-end // block_bytes)):
            first = number * block_bytes
            last = min(first + block_bytes, size_bytes)
            here = piece.data[max(0, first - piece.offset) : last - piece.offset]
            if len(here) == last - first:
                if begun >= 0:
                    yield begun, bytes(partial)
                    begun = -1
                yield number, here
                continue
            if number != begun:
                if begun >= 0:
                    yield begun, bytes(partial)
                begun, partial = number, bytearray(last - first)
            at = max(piece.offset, first) - first
            partial[at : at + len(here)] = here
    if begun >= 0:
        yield begun, bytes(partial)


@contextlib.asynccontextmanager
async def exported(
    monitor: Monitor, path: Path, numbers: Sequence[int], *, writable: bool
) -> AsyncIterator[list[Disk]]:
    """Let QEMU export these disks meanwhile, in a socket at this path.

    Raises: MachineError.
    """
    disks: list[Disk] = []
    await begin_export(monitor, path, numbers, writable=writable)
    try:
        for number in numbers:
            disks.append(await asyncio.to_thread(Disk, path, number))
        yield disks
    finally:
        for disk in disks:
            disk.close()
        await end_export(monitor, path)


async def begin_export(
    monitor: Monitor, path: Path, numbers: Sequence[int], *, writable: bool
) -> None:
    """Let QEMU serve these disks. Raises MachineError; it serves none then."""
    await end_export(monitor, path)
    address = {"type": "unix", "data": {"path": str(path)}}
    try:
        await monitor.execute("nbd-server-start", {"addr": address})
        for number in numbers:
            node = f"{NODE}{number}"
            await monitor.execute(
                "block-export-add",
                {"type": "nbd", "id": node, "node-name": node, "name": node, "writable": writable},
            )
    except BaseException:
        await asyncio.shield(end_export(monitor, path))
        raise


async def end_export(monitor: Monitor, path: Path) -> None:
    """No disk is exported any more, whoever began it."""
    with contextlib.suppress(CommandFailed):  # there is none
        await monitor.execute("nbd-server-stop")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def digest_disks(disks: Sequence[Disk]) -> bytes:
    """BLAKE3 of what these disks hold, the same whatever their format and their holes."""
    whole = blake3()
    for disk in disks:
        whole.update(disk.number.to_bytes(8, "little") + disk.size_bytes.to_bytes(8, "little"))
        for number, block in disk.blocks(BLOCK_BYTES):
            whole.update(number.to_bytes(8, "little") + blake3(block).digest())
    return whole.digest()


def hold(disks: Sequence[Disk], numbers: Sequence[int]) -> list[HeldDisk]:
    """Say what these disks are, and what some of them hold of before by digests of their blocks.

    Blocks for as long as reading takes. If they hold more than can be told they are emptied.
    """
    old = [disk for disk in disks if disk.number in numbers]
    told = [
        HeldDisk(disk=disk.number, size_bytes=disk.size_bytes)
        for disk in disks
        if disk.number not in numbers
    ]
    size = BLOCK_BYTES
    while size <= BLOCK_BYTES_MAX:
        if (found := _hold(old, size)) is not None:
            return told + found
        size *= 2
    for disk in old:
        disk.write(Extent(disk.number, 0, disk.size_bytes, None))
        disk.settle()
    return hold(disks, ())


def _hold(disks: Sequence[Disk], size: int) -> list[HeldDisk] | None:
    """None if blocks of this size are too many."""
    found: list[HeldDisk] = []
    room = HAVE_BYTES_MAX
    for disk in disks:
        key = secrets.token_bytes(KEY_BYTES)
        blocks, digests = bytearray(), bytearray()
        for number, block in disk.blocks(size):
            blocks += number.to_bytes(4, "little")
            digests += digest_of(block, key)
            room -= 4 + DIGEST_BYTES
            if room < 0:
                return None
        found.append(
            HeldDisk(
                disk=disk.number,
                size_bytes=disk.size_bytes,
                block_bytes=size,
                key=key,
                blocks=bytes(blocks),
                digests=bytes(digests),
            )
        )
    return found
