"""What a leader knows of one other member, and how much it may send to it."""

from __future__ import annotations

from collections import deque
from enum import StrEnum

from attrs import define, field

from novacron_consensus_raft._records import Snapshot


class Flow(StrEnum):
    PROBE = "probe"  # where the logs part is being searched: one message at a time
    STREAM = "stream"  # entries go out without waiting for answers, as far as the window allows
    SNAPSHOT = "snapshot"  # what it needs is not in the log any more


@define(eq=False)
class Progress:
    """One other member, as its leader knows it.

    Attributes:
        next: The index of the entry that it is sent next.
        match: Its log is like the leader's up to here.
        commit: The commit index that it was told last.
        heard_ms: When something was heard of it in this term.
        round: The newest of the leader's rounds that it has answered.
        reads: The newest version of the messages that it reads; the first, until it says.
        flow: What it is sent now.
        asked: PROBE: a message is unanswered; the next heartbeat asks again.
        snapshot: SNAPSHOT: what it is being sent; leaders that compact meanwhile go on with it.
        taken: SNAPSHOT: so many bytes of it have arrived there.
        sent: SNAPSHOT: so many bytes of it were sent.
        moved: SNAPSHOT: whether bytes arrived since the last heartbeat.
        answered: SNAPSHOT: whether it has said what it wants.
    """

    next: int
    match: int = 0
    commit: int = 0
    heard_ms: int = 0
    round: int = 0
    reads: int = 1
    flow: Flow = Flow.PROBE
    asked: bool = False
    snapshot: Snapshot | None = None
    digest: bytes = b""
    taken: int = 0
    sent: int = 0
    moved: bool = False
    answered: bool = False
    # The last index and the bytes of each unanswered message of entries.
    _inflight: deque[tuple[int, int]] = field(factory=deque, init=False)
    _inflight_bytes: int = field(default=0, init=False)

    def room(self, messages: int, size: int) -> bool:
        """Whether another message of entries may go out."""
        if self.flow is Flow.PROBE:
            return not self.asked
        window = len(self._inflight) < messages and self._inflight_bytes < size
        return self.flow is Flow.STREAM and window

    def sent_entries(self, last_index: int, size: int) -> None:
        """Entries up to that one are on their way."""
        if self.flow is Flow.STREAM:
            self.next = last_index + 1
            self._inflight.append((last_index, size))
            self._inflight_bytes += size
        else:
            self.asked = True

    def accepted(self, index: int) -> bool:
        """It has everything up to an index; whether that is news."""
        news = index > self.match
        self.match = max(self.match, index)
        self.next = max(self.next, self.match + 1)
        while self._inflight and self._inflight[0][0] <= index:
            self._inflight_bytes -= self._inflight.popleft()[1]
        return news

    def stream(self) -> None:
        """The logs agree: send without waiting."""
        self._leave(Flow.STREAM)
        self.next = self.match + 1

    def probe(self, next_index: int) -> None:
        """It is not known where the logs part: ask from there."""
        self._leave(Flow.PROBE)
        self.next = max(next_index, self.match + 1)

    def send_snapshot(self, snapshot: Snapshot, digest: bytes) -> None:
        """What it needs is in a snapshot only."""
        self._leave(Flow.SNAPSHOT)
        self.snapshot, self.digest = snapshot, digest

    def _leave(self, flow: Flow) -> None:
        self.flow = flow
        self.asked = self.moved = self.answered = False
        self.snapshot, self.digest = None, b""
        self.taken = self.sent = 0
        self._inflight.clear()
        self._inflight_bytes = 0
