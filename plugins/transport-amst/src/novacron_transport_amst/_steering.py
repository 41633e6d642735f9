"""Decides how many streams a link uses, and how fast they send together. Without I/O.

Two kinds of streams:

- **BBR** carries what it is given: the link as a whole is held at a rate (`Cruise`), and the search
  of each stream is kept open (`Search`), so that one stream steps in while another repairs a loss.
  There are two, or as many as the kernel's buffers make necessary.
- **Others**, which random loss holds at a few Mbit/s however wide the path is, add up: their number
  is doubled as long as there is no queue (`Count`), and they send as fast as they like.

How much of what the node may send a link gets is the business of `Shares`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from attrs import define, field
from novacron import PathReading, Steer

from novacron_transport_amst._count import Count, Limits
from novacron_transport_amst._cruise import Cruise
from novacron_transport_amst._flow import Flow
from novacron_transport_amst._shares import Shares

__all__ = ["Limits", "Pilot", "Shares"]

# A path this short has no loss that more streams would help against, and no queue worth sparing.
NEAR_S: Final = 0.003
# A queue this long says that the path is full: of a round trip, seconds; the longer one counts.
QUEUE: Final = (0.2, 0.02)
# With BBR a link has this many streams, if it may: four cost a fifth more processor time. Each may
# send so much that half of them are enough while the others repair a loss.
STREAMS_BBR: Final = 2
STREAM_HEADROOM: Final = 1.1
# There are more where the kernel's buffer of a stream is too small for the path. What is on its way
# has to fit several times over: until a loss before it is repaired, and before it is sent. A path
# is taken for this fast at first, in bytes per second: a stream that is new while others are fast
# holds up what is put back in order.
BUFFERED: Final = 4.0
GUESSED: Final = 12.5e6
# What may wait in the link, as time at its rate.
UNSENT_S: Final = 0.02
UNSENT_BYTES: Final = (128 << 10, 8 << 20)
UNSENT_UNKNOWN: Final = 1 << 20
# What arrives is looked at over this long, or two round trips.
SPAN_S: Final = 0.8


@define
class Pilot:
    """The steering of one link: `novacron.Steering`."""

    limits: Limits
    shares: Shares
    flow: Flow = field(factory=Flow, init=False)
    cruise: Cruise = field(factory=Cruise, init=False)
    count: Count = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.count = Count(self.limits)

    def decide(self, now_s: float, readings: Sequence[PathReading], backlog: bool) -> Steer:
        found = [reading for reading in readings if reading.rtt_s > 0]
        if not found:
            return Steer(streams=self.count.streams, rate=self._share(now_s, None, backlog))
        rtt_s = min(reading.rtt_s for reading in found)
        floor_s = min(reading.min_rtt_s or reading.rtt_s for reading in found)
        self.flow.look(now_s, readings, rtt_s)
        if floor_s < NEAR_S:
            return self._steer(now_s, None, rtt_s, backlog)
        if not self.flow.known():
            return self._steer(now_s, self.cruise.rate, rtt_s, backlog)
        quiet = rtt_s - floor_s < max(QUEUE[0] * floor_s, QUEUE[1])
        arrives = self.flow.arrives(max(SPAN_S, 2 * rtt_s))
        if all(reading.congestion_control == "bbr" for reading in found):
            self.cruise.decide(now_s, rtt_s, floor_s, self.flow, backlog)
            on_its_way = max(self.cruise.path or 0.0, arrives, GUESSED) * floor_s
            needed = math.ceil(BUFFERED * on_its_way / self.limits.stream_bytes)
            self.count.at_least(max(STREAMS_BBR, needed))
        else:
            self.count.decide(now_s, rtt_s, arrives, wanting=backlog and quiet)
        return self._steer(now_s, self.cruise.rate, rtt_s, backlog)

    def _steer(self, now_s: float, rate: float | None, rtt_s: float, backlog: bool) -> Steer:
        if rate is not None and self.cruise.path is not None:
            # While the path is searched for, all of it has to be tried.
            rate *= self.limits.share_max
        share = self._share(now_s, rate, backlog)
        # While they search, some streams are far ahead of others.
        able = max(self.count.streams // 2, 1) if self.cruise.path is not None else 1
        pace = None if rate is None else int(rate * STREAM_HEADROOM / able)
        arrives = self.flow.arrives(max(SPAN_S, 2 * rtt_s))
        unsent = int(min(max(arrives * UNSENT_S, UNSENT_BYTES[0]), UNSENT_BYTES[1]))
        return Steer(
            streams=self.count.streams,
            rate=share if rate is None else rate if share is None else min(rate, share),
            pace=pace,
            unsent_bytes=unsent if self.flow.known() else UNSENT_UNKNOWN,
        )

    def _share(self, now_s: float, rate: float | None, backlog: bool) -> float | None:
        want = 0.0 if not backlog else float("inf") if rate is None else rate
        return self.shares.of(id(self), want, now_s)
