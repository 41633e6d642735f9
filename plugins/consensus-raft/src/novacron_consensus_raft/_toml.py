"""The section ``[consensus.raft]``."""

from __future__ import annotations

import re
from typing import Any, Final

from attrs import Attribute, field, frozen, validators

from novacron_consensus_raft._settings import RaftSettings

# A cluster's name stands in the names of its channels.
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


def _check_name(_: Any, __: Attribute[Any], name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"cluster {name!r} is no name (use {NAME.pattern})")


@frozen(kw_only=True)
class RaftSection:
    """The section ``[consensus.raft]``. All members of a cluster should have the same.

    Attributes:
        cluster: The cluster's name. Data and messages of another one are refused.
        members: With whom `novacron cluster init` begins; for a node that is no member, whom it
            asks. Their addresses stand in ``[peers]``.
        heartbeat_ms: How often the leader says that it is there.
        election_ms: After how long without a word of it, and up to half as long again, another one
            stands for election. On a WAN, at least ten round trips.
        lease: Whether the leader answers reads without asking a majority while none could have
            elected another. It trusts that clocks run at about the same rate.
        timeout_s: How long a request waits for the cluster before it is an error.
        compact_mib: The state takes the place of the log after so much of commands.
    """

    cluster: str = field(default="novacron", validator=_check_name)
    members: list[str] = field(factory=list)
    heartbeat_ms: int = field(default=100, validator=validators.ge(1))
    election_ms: int = field(default=1000, validator=validators.ge(3))
    lease: bool = True
    timeout_s: float = field(
        default=10.0, converter=float, validator=[validators.gt(0), validators.le(600)]
    )
    compact_mib: int = field(default=16, validator=[validators.ge(1), validators.le(1024)])

    def __attrs_post_init__(self) -> None:
        self.core()

    def core(self) -> RaftSettings:
        """What the core is told. Raises: ValueError if the times do not go together."""
        return RaftSettings(
            cluster=self.cluster,
            heartbeat_ms=self.heartbeat_ms,
            election_ms=self.election_ms,
            lease=self.lease,
        )
