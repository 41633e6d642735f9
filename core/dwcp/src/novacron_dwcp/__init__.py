"""DWCP, the protocol that nodes speak.

`link`, `messages` and `handover` are without I/O: events and the time go in, effects come out, in
the order to do them in. `driver` moves the frames of a link over real streams, and `pump` what a
machine holds over a link.
"""

from __future__ import annotations

from novacron_dwcp.batch import ADDRESS_BYTES, BATCH_BYTES_TARGET, Batch
from novacron_dwcp.values import (
    BATCH_BYTES_MAX,
    Buffer,
    Gauge,
    LinkBroken,
    LinkMeasure,
    Ownership,
    PathReading,
    Pressure,
    ProtocolError,
    Steer,
    Steering,
    check_record,
)

__all__ = [
    "ADDRESS_BYTES", "BATCH_BYTES_MAX", "BATCH_BYTES_TARGET", "Batch", "Buffer", "Gauge",
    "LinkBroken", "LinkMeasure", "Ownership", "PathReading", "Pressure", "ProtocolError", "Steer",
    "Steering", "check_record",
]  # fmt: skip
