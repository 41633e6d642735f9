"""What can be set of a replica, with what each setting costs."""

from __future__ import annotations

from attrs import field, frozen, validators


@frozen(kw_only=True)
class ReplicaSettings:
    """How a replica talks to its peers.

    Attributes:
        probe_ms: How often each peer is asked what it has. Staleness cannot be told more finely.
        repeat_ms: An event is sent a second time after so long, if its arrival is not known yet:
            it then survives one lost message without anybody waiting. 0 for transports that lose
            nothing.
        patience_ms: How long an event that a peer has may be missing here before it is asked for.
        silent_ms: A peer not heard for so long is taken for gone when relays are chosen.
        history_bytes: What recent events may take in memory. A peer that was away for longer than
            they reach back compares trees instead.
        snapshot_bytes: The journal is written anew when it has grown by so much.
        leaves_per_want: Of how many of the 4096 key ranges keys are asked for in one message, when
            trees are compared.
        forward_ms: A strong request that the log's leader has not answered is sent again.
    """

    probe_ms: int = field(default=500, validator=[validators.ge(10), validators.le(60_000)])
    repeat_ms: int = field(default=40, validator=[validators.ge(0), validators.le(10_000)])
    patience_ms: int = field(default=60, validator=[validators.ge(0), validators.le(10_000)])
    silent_ms: int = field(default=2_500, validator=[validators.ge(50), validators.le(600_000)])
    history_bytes: int = field(default=32 << 20, validator=validators.ge(0))
    snapshot_bytes: int = field(default=8 << 20, validator=validators.ge(1 << 10))
    leaves_per_want: int = field(default=512, validator=[validators.ge(1), validators.le(4096)])
    forward_ms: int = field(default=1_500, validator=[validators.ge(10), validators.le(60_000)])
