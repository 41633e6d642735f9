"""DWCP, the protocol that nodes speak.

`link`, `messages` and `handover` are without I/O: events and the time go in, effects come out, in
the order to do them in. `driver` moves the frames of a link over real streams.
"""

from __future__ import annotations

from novacron_dwcp.values import BATCH_BYTES_MAX, Buffer, LinkBroken, Ownership, ProtocolError

__all__ = ["BATCH_BYTES_MAX", "Buffer", "LinkBroken", "Ownership", "ProtocolError"]
