"""What gossip speaks about: members, their states, and the settings of the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from attrs import field, frozen

NO_TAGS: Final[Mapping[str, str]] = MappingProxyType({})


class State(IntEnum):
    """What is held of a member. At one incarnation a later state outranks an earlier one."""

    ALIVE = 0
    SUSPECT = 1  # it did not answer somebody; it may refute
    DEAD = 2  # it did not refute in time
    LEFT = 3  # it said goodbye


class Member:
    """What one node holds of a member; replaced by a new value when that changes.

    Attributes:
        name: Its name in the cluster.
        address: Where it takes datagrams and streams, as its driver understands it.
        incarnation: The version of what it says of itself; only the member itself raises it.
        state: See `State`.
        life: A number that its process drew when it began.
        tags: What it tells about itself.
        since_ms: When this node came to hold this state, by its own clock.
    """

    __slots__ = ("address", "incarnation", "life", "name", "since_ms", "state", "tags")

    def __init__(
        self,
        name: str,
        address: str,
        incarnation: int,
        state: State = State.ALIVE,
        life: int = 0,
        tags: Mapping[str, str] = NO_TAGS,
        since_ms: int = 0,
    ) -> None:
        self.name = name
        self.address = address
        self.incarnation = incarnation
        self.state = state
        self.life = life
        self.tags = tags
        self.since_ms = since_ms

    def __repr__(self) -> str:
        return f"{self.name}@{self.address} {self.state.name.lower()} {self.incarnation}"

    def in_state(self, state: State, incarnation: int, now_ms: int) -> Member:
        """The same member, otherwise held."""
        return Member(self.name, self.address, incarnation, state, self.life, self.tags, now_ms)


@frozen(kw_only=True)
class Timing:
    """How often, how many, how long. All members of a cluster should have the same.

    Attributes:
        period_ms: Each member probes one other member per period.
        probe_ms: How long a probed member may take to answer before others are asked to try; above
            the longest round trip in the cluster.
        relays: How many others are asked to try then.
        gossip_ms: How often news is sent on by itself, while there is any.
        fanout: To how many members.
        retransmit: A piece of news is sent on by each member so many times the number of decimal
            digits of the cluster's size.
        suspicion: The shortest time that a suspected member has to refute, in periods, for each
            power of ten in the cluster's size.
        suspicion_floor: The least of it in a small cluster, in periods.
        suspicion_stretch: How many times longer a suspicion lasts while nobody confirms it.
        confirmations: How many independent confirmations make it as short as it gets.
        corroborators: How many members, on average, probe a suspected member out of turn.
        health_max: The worst local health; a node in bad health gives others that much more time.
        sync_ms: How often a member compares all that it holds with one other member.
        gossip_dead_ms: For how long news is also sent to a member that was found dead, so that one
            who lives after all learns of it.
        forget_ms: For how long a member that is dead or has left is remembered.
        members_max: No more members than that are taken; further ones are refused.
        graft_ms: How long a broadcast that was announced may take to arrive before it is asked for.
        keep_ms: For how long a broadcast is kept for those who missed it.
        keep_bytes: How many bytes of broadcasts are kept.
    """

    period_ms: int = 1_000
    probe_ms: int = 300
    relays: int = 3
    gossip_ms: int = 200
    fanout: int = 3
    retransmit: int = 4
    suspicion: float = 0.8
    suspicion_floor: float = 2.0
    suspicion_stretch: float = 6.0
    confirmations: int = 3
    corroborators: int = 6
    health_max: int = 8
    sync_ms: int = 30_000
    gossip_dead_ms: int = 30_000
    forget_ms: int = 86_400_000
    members_max: int = 20_000
    graft_ms: int = 400
    keep_ms: int = 120_000
    keep_bytes: int = 16 << 20


@frozen(kw_only=True)
class Me:
    """Who a core is.

    Attributes:
        name: Its name.
        address: Where others reach it.
        tags: What it tells about itself; at most 512 bytes.
        seeds: Addresses of members to begin with.
    """

    name: str
    address: str
    tags: Mapping[str, str] = field(factory=dict)
    seeds: tuple[str, ...] = ()
