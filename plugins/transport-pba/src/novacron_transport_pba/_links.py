"""The links of this node, as its own moves show them: one forecaster per target."""

from __future__ import annotations

from typing import Final

from attrs import define, field
from novacron import MoveFacts

from novacron_transport_pba._forecast import Forecast, LinkForecaster

MBIT: Final = 125_000.0  # bytes
INTERVAL_S: Final = 1.0
_GAP_S: Final = 3.0
_LIMITED: Final = 0.9
_LEAST: Final = 2


@define
class Link:
    """What all moves to one target carry together, second by second.

    A second in which a limit held a move back says nothing of the link, and is left out.
    """

    forecaster: LinkForecaster = field(factory=LinkForecaster)
    round_trip_ms: float | None = None
    _sent: dict[str, int] = field(factory=dict)
    _rates: dict[str, tuple[float, float]] = field(factory=dict)  # by session, and when
    _bytes: float = 0.0
    _begun_s: float | None = None
    _last_s: float = 0.0
    _limited: bool = False

    def sample(self, move: MoveFacts, now_s: float) -> None:
        """Take what a move says of itself."""
        if self._begun_s is None or now_s - self._last_s > _GAP_S:
            self._begin(now_s)
            self._sent.clear()
            self._rates.clear()
        self._last_s = now_s
        before = self._sent.get(move.session)
        self._sent[move.session] = move.wire_bytes
        if before is not None:
            self._bytes += max(0, move.wire_bytes - before)
        rate = move.rate_bytes_per_s or 0.0
        self._rates[move.session] = (rate, now_s)
        limit = move.limit_bytes_per_s
        self._limited |= limit is not None and rate >= _LIMITED * limit
        self.round_trip_ms = move.round_trip_ms
        elapsed = now_s - (self._begun_s or now_s)
        if elapsed >= INTERVAL_S:
            if not self._limited and self._bytes > 0:
                self.forecaster.update(min(self._bytes / elapsed / MBIT, 1e9))
            self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        self._begun_s, self._bytes, self._limited = now_s, 0.0, False

    def forget(self, session: str) -> None:
        """A move has ended."""
        self._sent.pop(session, None)
        self._rates.pop(session, None)

    def share(self, session: str) -> float:
        """The part of the link that a move has."""
        fresh = {
            name: rate for name, (rate, at_s) in self._rates.items() if self._last_s - at_s < _GAP_S
        }
        total = sum(fresh.values())
        return fresh.get(session, 0.0) / total if total > 0 else 1.0

    def mean(self) -> float | None:
        """Bytes per second over the last twenty seconds or so; None while too little was seen."""
        return self.forecaster.mean() * MBIT if self.forecaster.samples >= _LEAST else None

    def forecast(self, steps: int) -> Forecast | None:
        """Bytes per second, so many seconds from now; None while too little was seen."""
        if self.forecaster.samples < _LEAST:
            return None
        found = self.forecaster.forecast(steps)
        return Forecast(found.low * MBIT, found.point * MBIT, found.high * MBIT)
