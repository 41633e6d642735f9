"""How many streams a link has. Without I/O."""

from __future__ import annotations

from typing import Final

from attrs import define, field, frozen

# Between two steps up, and before it is judged whether they helped: seconds, round trips; the
# longer one counts. A new stream needs three round trips before it carries anything.
STEP_UP: Final = (0.4, 3.0)
SETTLED: Final = (2.0, 12.0)
HELPED: Final = 1.15
# After streams did not help, that is believed so long; twice as long each time.
REST_S: Final = 10.0
REST_MOST_S: Final = 160.0


@frozen(kw_only=True)
class Limits:
    """What the operator and the kernel allow. See the provider's settings.

    Attributes:
        stream_bytes: What the kernel keeps of one stream until it is acknowledged.
    """

    streams_min: int = 1
    streams_max: int = 16
    share_max: float = 1.0
    stream_bytes: int = 4 << 20


@define
class Count:
    """Doubled while each stream is held back by itself; taken back if that did not help.

    Whether a number helped shows only when its streams have settled, after a dozen round trips. To
    wait that long at each step costs more than a few streams too many for a while: so it steps up
    fast while more is wanted, and is judged at the end.

    Attributes:
        streams: Now.
    """

    limits: Limits
    streams: int = field(init=False)
    _before: int = field(default=0, init=False)
    _rate_before: float = field(default=0.0, init=False)
    _stepped_s: float | None = field(default=None, init=False)
    _rest_until_s: float = field(default=0.0, init=False)
    _rest_s: float = field(default=REST_S, init=False)

    def __attrs_post_init__(self) -> None:
        self.streams = self.limits.streams_min

    def at_least(self, streams: int) -> None:
        self.streams = max(self.streams, min(streams, self.limits.streams_max))

    def decide(self, now_s: float, rtt_s: float, arrives: float, *, wanting: bool) -> None:
        """Adjust the number.

        Args:
            arrives: Bytes per second.
            wanting: Whether there is more to send than the streams take, and no queue.
        """
        if self._stepped_s is None:
            self._stepped_s = now_s
        since_s = now_s - self._stepped_s
        if wanting and self.streams < self.limits.streams_max and now_s >= self._rest_until_s:
            if since_s >= max(STEP_UP[0], STEP_UP[1] * rtt_s):
                self._before, self._rate_before = self.streams, arrives
                self.streams = min(2 * self.streams, self.limits.streams_max)
                self._stepped_s = now_s
        elif self._before and since_s >= max(SETTLED[0], SETTLED[1] * rtt_s):
            if wanting and arrives < HELPED * self._rate_before:
                self.streams = self._before
                self._rest_until_s = now_s + self._rest_s
                self._rest_s = min(2 * self._rest_s, REST_MOST_S)
            else:
                self._rest_s = REST_S
            self._before = 0
