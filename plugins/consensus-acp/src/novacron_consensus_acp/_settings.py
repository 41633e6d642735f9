"""What can be set of an adaptive log."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge, in_, min_len

from novacron_consensus_acp._policy import ROUND_TRIP_MS


@frozen(kw_only=True)
class AcpSettings:
    """All members must have the same ``cluster``, ``engine`` and ``place``.

    Attributes:
        cluster: The log's name. Data and messages of another one are refused.
        engine: With which engine the log begins.
        place: How far members are from each other when it begins.
        ping_ms: How often each other member is asked for a sign of life.
        retry_ms: After what time something that got nowhere is tried again.
        hold_ms: For how long another choice must be the right one before it is wished for.
        dwell_ms: How long a choice is kept at least.
    """

    cluster: str = field(default="novacron", validator=min_len(1))
    engine: str = field(default="raft", validator=min_len(1))
    place: str = field(default="site", validator=in_(ROUND_TRIP_MS))
    ping_ms: int = field(default=1_000, validator=ge(1))
    retry_ms: int = field(default=500, validator=ge(1))
    hold_ms: int = field(default=30_000, validator=ge(0))
    dwell_ms: int = field(default=300_000, validator=ge(0))
