"""The unit of bulk data: pages or blocks with their addresses, about 1 MiB at a time."""

from __future__ import annotations

import struct
from typing import Final

from attrs import frozen

from novacron_dwcp.values import BATCH_BYTES_MAX, Buffer, ProtocolError

# Precedents for the sizes: zstd gains little beyond 1 MiB, TLS and sendmsg are at their best
# between 256 KiB and 1 MiB. Too small costs per-batch Python, too large costs pause and memory.
BATCH_BYTES_TARGET: Final = 1 << 20
ADDRESS_BYTES: Final = 8

_LENGTHS = struct.Struct("<III")


@frozen(eq=True, slots=True)
class Batch:
    """A piece of a machine's state on its way.

    Attributes:
        layout: Bytes that only the machine driver understands; with ``addresses`` and ``pages``
            they give back exactly what the driver read. A batch may be layout alone.
        addresses: One 8-byte little-endian address per page. Equal addresses in one session mean
            the same page, sent again; nothing else may be read into them.
        pages: The pages' contents, one after the other, all of the same size, in the order of
            ``addresses``. Its length is a multiple of the number of addresses.
    """

    layout: Buffer = b""
    addresses: Buffer = b""
    pages: Buffer = b""

    @property
    def nbytes(self) -> int:
        """Bytes of machine state in this batch, addresses included."""
        return len(self.layout) + len(self.addresses) + len(self.pages)

    @property
    def page_count(self) -> int:
        return len(self.addresses) // ADDRESS_BYTES

    def pack(self) -> bytes:
        """The batch as one run of bytes, for codecs that do not look inside."""
        lengths = _LENGTHS.pack(len(self.layout), len(self.addresses), len(self.pages))
        return b"".join((lengths, self.layout, self.addresses, self.pages))

    @classmethod
    def unpack(cls, packed: Buffer) -> Batch:
        """The inverse of `pack`; the result shares memory with ``packed``.

        Raises:
            ProtocolError: The lengths do not add up; nothing was allocated.
        """
        view = memoryview(packed)
        if len(view) < _LENGTHS.size:
            raise ProtocolError(f"a batch of {len(view)} bytes is shorter than its own header")
        layout, addresses, pages = _LENGTHS.unpack_from(view)
        end = _LENGTHS.size + layout + addresses + pages
        if end != len(view) or len(view) > BATCH_BYTES_MAX + _LENGTHS.size:
            raise ProtocolError(
                f"a batch claims {end} bytes and holds {len(view)} (at most {BATCH_BYTES_MAX})"
            )
        count, odd = divmod(addresses, ADDRESS_BYTES)
        if odd or (pages % count if count else pages):
            raise ProtocolError(f"{pages} bytes of pages do not fit {addresses} of addresses")
        first = _LENGTHS.size + layout
        second = first + addresses
        return cls(view[_LENGTHS.size : first], view[first:second], view[second:end])
