"""When to pause a machine that is being copied: the downtime contract, without I/O.

A pause is made of what still waits to be sent, of the last set of pages, and of one and a half
round trips: the seal with the last page (half), the proof that all is there (half), and the order
to run (half). So the last set may take what is left of the longest pause that was asked for.

A guest that writes as fast as its state leaves never gets there. That is found out while it runs,
from the smallest rest of the passes over its memory: if passes no longer make it smaller, more of
them will not, and the move is given up with the figures that an operator needs.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import define, field, frozen

# Half round trips between the guest's last instruction at the source and its first afterwards.
ROUND_TRIPS: Final = 1.5
# Stopping, loading the devices, comparing digests and noting ownership, on both sides together.
HANDLING_MS: Final = 120
# The last set may always take so long: less is not worth another pass over memory.
LAST_SET_MS_MIN: Final = 30
# What a pause may last if nobody says it: the project's promise (docs/guide/downtime.md).
PROMISED_ROUND_TRIPS: Final = 2.5
PROMISED_MS: Final = 100
# Passes and time without a smaller rest after which there will be none.
HOPELESS_ROUNDS: Final = 6
HOPELESS_S: Final = 20.0
# A rest counts as smaller if it is smaller by this share.
SMALLER: Final = 0.9


def promised_ms(round_trip_ms: float) -> int:
    """The longest pause of a move that no figure was asked for, in ms."""
    return round(PROMISED_MS + PROMISED_ROUND_TRIPS * round_trip_ms)


@frozen(kw_only=True)
class Wish:
    """What a move may cost.

    Attributes:
        max_downtime_ms: The longest pause that the guest may feel.
        max_time_s: The move is given up when it has taken that long; None for no limit.
        max_bytes: The same for bytes on the wire.
    """

    max_downtime_ms: int
    max_time_s: float | None = None
    max_bytes: int | None = None


@frozen(kw_only=True)
class Sample:
    """How the copy stands. Bytes of state are as read from the machine, before any encoding.

    Attributes:
        at_s: Since the copy began.
        round: Passes over memory begun so far.
        remaining_bytes: State that is known to be left.
        dirty_bytes_per_s: How fast the guest writes, 0 while unknown.
        state_bytes_per_s: How fast state leaves, encoded and sent; 0 while unknown.
        wire_bytes: Sent so far.
        waiting_s: How long what was read and has not left this host will take to leave.
        round_trip_s: Of the link.
    """

    at_s: float
    round: int
    remaining_bytes: int
    dirty_bytes_per_s: int
    state_bytes_per_s: int
    wire_bytes: int
    waiting_s: float
    round_trip_s: float


@frozen(kw_only=True)
class Aim:
    """Pause as soon as what is left can leave within that time at that rate."""

    last_set_ms: int
    state_bytes_per_s: int


@frozen(kw_only=True)
class GiveUp:
    """The move cannot keep what was asked of it."""

    reason: str
    hint: str


@define
class Rate:
    """A mean over the last ``window_s``, of something that only grows."""

    window_s: float
    _samples: deque[tuple[float, int]] = field(factory=deque, init=False)

    def of(self, now_s: float, total: int) -> int:
        """Per second, now that it is ``total``; 0 while unknown."""
        samples = self._samples
        samples.append((now_s, total))
        while len(samples) > 2 and now_s - samples[1][0] >= self.window_s:
            samples.popleft()
        since, then = samples[0]
        return int((total - then) / (now_s - since)) if now_s > since else 0


@define
class Convergence:
    """Decides for one copy. Call `decide` a few times a second.

    Args:
        wish: What the move may cost.
        slows_guest: Whether the guest is slowed down when it writes too fast; then there is hope
            for longer.
    """

    wish: Wish
    slows_guest: bool = False
    _round: int = field(default=1, init=False)
    _least: int | None = field(default=None, init=False)
    _least_round: int = field(default=1, init=False)
    _least_at_s: float = field(default=0.0, init=False)

    def decide(self, sample: Sample) -> Aim | GiveUp:
        """What to aim at now, or why the move has to end."""
        wish = self.wish
        if wish.max_time_s is not None and sample.at_s > wish.max_time_s:
            return GiveUp(
                reason=f"it has taken {sample.at_s:.1f} s, and may take {wish.max_time_s:g}"
                + self._rest(sample),
                hint="allow more time (--max-time), a longer pause (--max-downtime), or let the "
                "guest be slowed down (--throttle)",
            )
        if wish.max_bytes is not None and sample.wire_bytes > wish.max_bytes:
            return GiveUp(
                reason=f"{sample.wire_bytes} bytes were sent, and {wish.max_bytes} may be"
                + self._rest(sample),
                hint="allow more bytes (--max-bytes) or a longer pause (--max-downtime)",
            )
        aim = Aim(last_set_ms=self._last_set_ms(sample), state_bytes_per_s=sample.state_bytes_per_s)
        if self._hopeless(sample, aim):
            return GiveUp(
                reason="the guest writes its memory faster than it leaves"
                f" ({sample.dirty_bytes_per_s} bytes/s written,"
                f" {sample.state_bytes_per_s} bytes/s leave){self._rest(sample)}",
                hint="let the guest be slowed down (--throttle), allow a longer pause "
                "(--max-downtime), or move it when it writes less",
            )
        return aim

    def _last_set_ms(self, sample: Sample) -> int:
        spent_ms = 1000 * (ROUND_TRIPS * sample.round_trip_s + sample.waiting_s) + HANDLING_MS
        return max(LAST_SET_MS_MIN, int(self.wish.max_downtime_ms - spent_ms))

    def _hopeless(self, sample: Sample, aim: Aim) -> bool:
        # What is left counts when a pass begins: while it goes on, it shrinks anyway.
        if sample.round > self._round:
            self._round = sample.round
            if self._least is None or sample.remaining_bytes < self._least * SMALLER:
                self._least = sample.remaining_bytes
                self._least_round, self._least_at_s = sample.round, sample.at_s
        if self._least is None:
            return False
        patience = 3 if self.slows_guest else 1
        fits = self._least * 1000 <= aim.last_set_ms * max(sample.state_bytes_per_s, 1)
        return (
            not fits
            and sample.round - self._least_round >= HOPELESS_ROUNDS * patience
            and sample.at_s - self._least_at_s >= HOPELESS_S * patience
        )

    def _rest(self, sample: Sample) -> str:
        return f"; {sample.remaining_bytes >> 20} MiB are left"
