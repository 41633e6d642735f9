"""DWCP, the protocol that nodes speak.

`link`, `messages` and `handover` are without I/O: events and the time go in, and effects come out in
the order to do them in. `driver` moves a link's frames over real streams.
"""

from __future__ import annotations

from novacron_dwcp.values import BATCH_BYTES_MAX, Buffer, LinkBroken, Ownership, ProtocolError

__all__ = ["BATCH_BYTES_MAX", "Buffer", "LinkBroken", "Ownership", "ProtocolError"]
