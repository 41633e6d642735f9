"""When a member may take part in the replicated log: only with all that it ever promised there.

A member of a log that has forgotten its votes and entries, and takes part as before, can undo what
the log has decided. So a member that begins without records first listens to a majority. If one of
them knows an earlier life of it, it stays out of the log, for good, and asks others for strong
requests. If none does, it makes its new life known to a majority, and only then takes part: a
majority that a later life listens to will know of this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from novacron_consensus_state import _kinds
from novacron_consensus_state._freshness import member_of
from novacron_consensus_state._member import Member
from novacron_consensus_state._tree import Key
from novacron_consensus_state._vector import Dot, covers

# Where members write that they live: a key as any other.
LIVES: Key = ("~lives", "g-set")


class Stage(StrEnum):
    LISTENING = "listening"
    TELLING = "telling"
    IN = "in"
    OUT = "out"


class Birth:
    """See the module.

    Args:
        fresh: Whether the member began without records.
    """

    def __init__(self, member: Member, *, fresh: bool) -> None:
        self.member = member
        self.stage = Stage.LISTENING if fresh else Stage.IN
        self._heard: set[str] = set()
        self._told: Dot = ("", 0)
        if member.strong.core is None:
            self.stage = Stage.OUT
        elif self._lived(member.store.vector) and not member.strong.records:
            self._leave()

    def heard(self, now_ms: int, sender: str, vector: Mapping[str, int]) -> None:
        """What a peer has seen."""
        if self.stage in (Stage.LISTENING, Stage.TELLING) and self._lived(vector):
            self._leave()
        if self.stage is Stage.LISTENING:
            self._heard.add(sender)
            self._tell(now_ms)

    def forgot(self) -> None:
        """The member found that its records are an old copy."""
        if self.stage is not Stage.OUT:
            self._leave()

    def look(self, now_ms: int) -> None:
        """Something may have happened; begins to take part when it is time."""
        if self.stage is Stage.LISTENING:
            self._tell(now_ms)
        if self.stage is Stage.TELLING:
            knowing = [p for p in self.member.spread.peers.values() if covers(p.known, self._told)]
            if len(knowing) + 1 >= self.member.topology.majority:
                self.stage = Stage.IN
                self.member.decided(now_ms, self.member.strong.start(now_ms))

    def _tell(self, now_ms: int) -> None:
        if len(self._heard) + 1 < self.member.topology.majority:
            return
        member = self.member
        writer = _kinds.Writer(b"life", member.clock.stamp(now_ms))
        rows = member.store.rows(LIVES)
        change = _kinds.change(LIVES[1], rows, "add", [member.origin], writer)
        self._told = member.make(now_ms, LIVES, change, writer.stamp, everybody=True)
        self.stage = Stage.TELLING

    def _lived(self, vector: Mapping[str, int]) -> bool:
        """Whether a vector knows another life of this member."""
        mine = self.member.name
        return any(member_of(o) == mine and o != self.member.origin for o in vector)

    def _leave(self) -> None:
        self.stage = Stage.OUT
        self.member.strong.leave()
        self.member.out.note(
            "log-left", f"{self.member.name} has lost what it promised in the replicated log"
        )
