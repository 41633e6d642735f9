"""How a core behaves: times, limits."""

from __future__ import annotations

from typing import Final

from attrs import field, frozen, validators

from novacron_consensus_raft._messages import CHUNK_BYTES_MAX, CLUSTER_CHARS_MAX

_POSITIVE: Final = [validators.instance_of(int), validators.ge(1)]


@frozen(kw_only=True)
class RaftSettings:
    """All members of a cluster should have the same.

    Attributes:
        cluster: The cluster's name. Data and messages of another one are refused.
        heartbeat_ms: How often a leader says that it is there.
        election_ms: A follower that hears no leader for this long, and up to half as long again,
            stands for election. At least three heartbeats; on a WAN, ten round trips.
        lease: Whether a leader serves reads without asking a majority as long as none could have
            elected another. It trusts that clocks run at about the same rate; see ``drift``.
        drift: By what share two members' clocks may differ in rate.
        append_bytes: About how much one message of entries holds.
        inflight: How many messages of entries to a member may be unanswered.
        inflight_bytes: How many bytes of entries may be.
        pending_bytes: How many bytes of commands may wait to be committed; more are `BUSY`.
        chunk_bytes: How much of a snapshot one message holds.
        chunks_inflight: How many such messages may be unanswered.
        snapshot_bytes_max: The largest snapshot that is taken from a leader. It is held in memory.
        keep_entries: So many entries before a snapshot are kept in memory, so that a member that
            was away for a moment needs no snapshot.
    """

    cluster: str = field(
        default="novacron",
        validator=[validators.min_len(1), validators.max_len(CLUSTER_CHARS_MAX)],
    )
    heartbeat_ms: int = field(default=100, validator=_POSITIVE)
    election_ms: int = field(default=1000, validator=_POSITIVE)
    lease: bool = True
    drift: float = field(default=0.1, validator=[validators.ge(0), validators.lt(1)])
    append_bytes: int = field(default=256 << 10, validator=[*_POSITIVE, validators.le(1 << 20)])
    inflight: int = field(default=256, validator=_POSITIVE)
    inflight_bytes: int = field(default=8 << 20, validator=_POSITIVE)
    pending_bytes: int = field(default=64 << 20, validator=_POSITIVE)
    chunk_bytes: int = field(
        default=256 << 10, validator=[*_POSITIVE, validators.le(CHUNK_BYTES_MAX)]
    )
    chunks_inflight: int = field(default=8, validator=_POSITIVE)
    snapshot_bytes_max: int = field(default=1 << 30, validator=_POSITIVE)
    keep_entries: int = field(default=4096, validator=[validators.ge(0)])

    def __attrs_post_init__(self) -> None:
        if self.election_ms < 3 * self.heartbeat_ms:
            raise ValueError(
                f"election_ms is {self.election_ms} and heartbeat_ms {self.heartbeat_ms}: a lost "
                "heartbeat must not cause an election, so give at least three times as much"
            )

    @property
    def lease_ms(self) -> int:
        """How long a leader may trust what a majority said, on its own clock."""
        return int(self.election_ms * (1 - self.drift))
