"""The runner's side of a machine that arrives. Everything in a batch is hostile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from attrs import frozen
from blake3 import blake3
from novacron import ADDRESS_BYTES, BATCH_BYTES_MAX, Buffer, MachineError, PeerProtocolError

from novacron_machine_wasm import _wire as wire
from novacron_machine_wasm._digests import ChunkDigests
from novacron_machine_wasm._guest import Guest
from novacron_machine_wasm._module import BadModule


@frozen(kw_only=True)
class Arrived:
    """A machine that is whole and may be resumed."""

    guest: Guest
    module: bytes
    ticks: int
    console_bytes: int
    console_input: bytes


class Arrival:
    """Takes batches in order, from one thread; refuses what a sound source cannot have sent.

    Args:
        memory_bytes: What was agreed.
        module_digest: BLAKE3 of the module, in hex, as the source described it.
        module_bytes: Its length.
        make: Makes the guest from the module.
        base: An older image of this machine's memory, if there is one.
    """

    def __init__(
        self,
        *,
        memory_bytes: int,
        module_digest: str,
        module_bytes: int,
        make: Callable[[bytes], Guest],
        base: Path,
    ) -> None:
        self._memory_bytes = memory_bytes
        self._module_digest = module_digest
        self._module_bytes = module_bytes
        self._make = make
        self._base = base
        self._module = bytearray()
        self._guest: Guest | None = None
        self._image: bytes | None = None
        self._digests = ChunkDigests(memory_bytes)
        self._pages = 0
        self._batches = 0
        self._round = 0
        self._rest: wire.Rest | None = None

    def have(self) -> bytes:
        """What is here already; empty if nothing is. Reads and hashes the image, so that this
        need not be done while the machine waits for us."""
        try:
            image = self._base.read_bytes()
        except FileNotFoundError:
            return b""
        if len(image) != self._memory_bytes:
            self._base.unlink()  # of no use
            return b""
        self._digests.touch_all()
        self._digests.refresh(image)
        self._image = image
        from novacron_machine_wasm._pages import as_array, pack_have

        return pack_have(as_array(image))

    def take(self, layout: Buffer, addresses: Buffer, pages: Buffer) -> None:
        """One batch. Raises PeerProtocolError or MachineError; the arrival is over then."""
        if len(layout) + len(addresses) + len(pages) > BATCH_BYTES_MAX:
            raise PeerProtocolError(f"a batch is larger than {BATCH_BYTES_MAX} bytes")
        try:
            what = wire.decode_layout.decode(layout)
        except msgspec.MsgspecError as error:
            raise PeerProtocolError(f"a batch's layout is not sound: {error}") from error
        if self._rest is not None:
            raise PeerProtocolError("a batch came after the last one")
        self._batches += 1
        if isinstance(what, wire.Pages):
            self._take_pages(what.round, addresses, pages)
            return
        if len(addresses) or len(pages):
            raise PeerProtocolError("a batch holds pages where none belong")
        if isinstance(what, wire.ModulePart):
            self._take_module(what)
        elif isinstance(what, wire.PassEnd):
            self._follow(what.round)
            self._digests.refresh(self._need_guest().memory)
        else:
            self._take_rest(what)

    def _need_guest(self) -> Guest:
        if self._guest is None:
            raise PeerProtocolError("a batch of memory came before the module")
        return self._guest

    def _follow(self, number: int) -> None:
        if not self._round <= number <= self._round + 1:
            raise PeerProtocolError(f"a batch of pass {number} came in pass {self._round}")
        self._round = number

    def _take_module(self, part: wire.ModulePart) -> None:
        if self._guest is not None or part.offset != len(self._module) or not part.data:
            raise PeerProtocolError("a piece of the module came out of order")
        if part.total != self._module_bytes or part.offset + len(part.data) > part.total:
            raise PeerProtocolError("the module is not as long as it was described")
        self._module += part.data
        if len(self._module) < part.total:
            return
        module = bytes(self._module)
        if blake3(module).hexdigest() != self._module_digest:
            raise PeerProtocolError("the module is not the one that was described")
        try:
            guest = self._make(module)
        except BadModule as error:
            raise MachineError(
                f"the module that came does not run here: {error}",
                hint="give both nodes the same version of wasmtime",
            ) from error
        guest.clear()
        if self._image is not None:
            guest.memory[:] = self._image
            self._image = None
        self._guest = guest

    def _take_pages(self, number: int, addresses: Buffer, pages: Buffer) -> None:
        guest = self._need_guest()
        self._follow(number)
        count, odd = divmod(len(addresses), ADDRESS_BYTES)
        if odd or not count or len(pages) != count * wire.PAGE:
            raise PeerProtocolError(
                f"{len(pages)} bytes of pages do not fit {len(addresses)} bytes of addresses"
            )
        # Here: numpy takes longer to import than all else that an arrival needs at its beginning.
        from novacron_machine_wasm import _pages

        numbers = _pages.page_numbers(addresses, self._memory_bytes)
        _pages.scatter(_pages.as_array(guest.memory), numbers, _pages.as_array(pages))
        self._digests.touch(_pages.chunks_of(numbers))
        self._pages += count

    def _take_rest(self, rest: wire.Rest) -> None:
        guest = self._need_guest()
        if (
            min(rest.ticks, rest.console_bytes) < 0
            or max(rest.ticks, rest.console_bytes) >= 1 << 63
            or len(rest.console_input) > wire.CONSOLE_INPUT_MAX
            or len(rest.digest) != 32
        ):
            raise PeerProtocolError("the last batch is not sound")
        try:
            guest.set_globals(rest.globals)
        except BadModule as error:
            raise PeerProtocolError(str(error)) from error
        self._rest = rest

    def finish(self) -> Arrived:
        """Raises MachineError unless everything is here, to the bit."""
        if self._rest is None or self._guest is None:
            raise MachineError("the machine did not arrive whole: the last batch is missing")
        rest = self._rest
        if (rest.pages, rest.batches) != (self._pages, self._batches - 1):
            raise MachineError(
                f"the machine did not arrive whole: {self._pages} of {rest.pages} pages in "
                f"{self._batches - 1} of {rest.batches} batches"
            )
        self._digests.refresh(self._guest.memory)
        if wire.proof(self._digests.root(), rest) != rest.digest:
            self._base.unlink(missing_ok=True)  # in case it was what misled us
            raise MachineError(
                "the memory that arrived is not the memory that was sent",
                hint="move it again; nothing of this attempt is used",
            )
        self._base.unlink(missing_ok=True)
        return Arrived(
            guest=self._guest,
            module=bytes(self._module),
            ticks=rest.ticks,
            console_bytes=rest.console_bytes,
            console_input=rest.console_input,
        )
