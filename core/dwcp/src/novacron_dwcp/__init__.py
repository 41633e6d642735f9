"""DWCP without I/O: events and the time go in, effects come out in the order to do them in.

Nothing here opens a socket, reads a clock or draws a random number; the kernel's drivers and the
simulator run the same classes.
"""

from __future__ import annotations

from novacron_dwcp.values import BATCH_BYTES_MAX, Buffer, Ownership, ProtocolError

__all__ = ["BATCH_BYTES_MAX", "Buffer", "Ownership", "ProtocolError"]
