"""What can be set of a core."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge, le


@frozen(kw_only=True)
class CoreSettings:
    """All members should have the same; ``window`` and ``checkpoint_every`` must be.

    Attributes:
        cluster: A name that tells clusters with the same first members apart.
        view_timeout_ms: How long a leader has for what it is asked for, in its first view; doubled
            after each view that brought nothing. Several times the longest round trip.
        retry_ms: After what time something unanswered is said again.
        status_ms: About how often a member tells some other one where it is.
        window: How many blocks may be under way at once.
        block_bytes: How long a block's commands are together, unless there is only one.
        share_bytes: How much of one origin's commands waits at a member, at the most.
        snapshot_bytes_max: The longest snapshot that is taken from others.
        checkpoint_every: At which indexes drivers call `compact`: multiples of it. Members must
            take snapshots at the same indexes, since only equal ones make a checkpoint.
    """

    cluster: str = ""
    view_timeout_ms: int = field(default=2_000, validator=ge(1))
    retry_ms: int = field(default=500, validator=ge(1))
    status_ms: int = field(default=1_000, validator=ge(1))
    window: int = field(default=8, validator=[ge(1), le(64)])
    block_bytes: int = field(default=512 << 10, validator=ge(1))
    share_bytes: int = field(default=8 << 20, validator=ge(1))
    snapshot_bytes_max: int = field(default=1 << 30, validator=ge(1))
    checkpoint_every: int = field(default=4096, validator=ge(1))
