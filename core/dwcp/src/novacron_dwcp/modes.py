"""Which mode a link calls for, from what is measured of it, without I/O.

A mode is entered where its bounds hold, and left only where they are exceeded by a margin, and only
when that has lasted: a link that wavers about a bound must not be switched back and forth.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field, frozen

from novacron_dwcp.values import LinkMeasure

# From the nearest to the farthest.
MODES: Final = ("datacenter", "hybrid", "internet")


@frozen(kw_only=True)
class Bounds:
    """Within these a link belongs to a mode.

    Attributes:
        rtt_s: The longest round trip, queues not included.
        loss: The largest share of bytes that had to be sent again.
        rate_bytes_per_s: The least that the path carries; not looked at while unknown.
    """

    rtt_s: float
    loss: float
    rate_bytes_per_s: float = 0.0


# Inside a building a round trip is far below a millisecond, and 5 ms are 500 km of fibre and back
# (light in glass: 200 km a millisecond); a leased line between sites loses next to nothing.
DEFAULT_BOUNDS: Final = {
    "datacenter": Bounds(rtt_s=0.002, loss=0.0005, rate_bytes_per_s=50e6),
    "hybrid": Bounds(rtt_s=0.02, loss=0.002, rate_bytes_per_s=10e6),
}
# How far beyond a bound a link must be before its mode is left.
MARGIN: Final = 1.5
# For how long another mode must be called for before it is taken.
HOLD_S: Final = 2.0


@define
class ModeDetector:
    """Decides for one link. Call `see` about once a second.

    Args:
        mode: To begin with.
        bounds: By mode; the last mode has none.

    Attributes:
        reason: Why the mode is what it is, for people.
    """

    mode: str
    bounds: dict[str, Bounds] = field(factory=lambda: dict(DEFAULT_BOUNDS))
    hold_s: float = HOLD_S
    reason: str = field(default="as configured", init=False)
    _wanted: str = field(default="", init=False)
    _since_s: float = field(default=0.0, init=False)

    def see(self, now_s: float, link: LinkMeasure) -> str | None:
        """The mode to switch to now, or None to stay."""
        if link.min_rtt_s <= 0:
            return None  # nothing was measured
        wanted = next((mode for mode in MODES if self._holds(mode, link)), MODES[-1])
        if wanted == self.mode:
            self._wanted = ""
            return None
        if wanted != self._wanted:
            self._wanted, self._since_s = wanted, now_s
        if now_s - self._since_s < self.hold_s:
            return None
        self.mode, self._wanted = wanted, ""
        self.reason = f"round trip {link.min_rtt_s * 1000:.1f} ms, loss {link.loss:.2%}" + (
            f", {link.rate_bytes_per_s * 8 / 1e6:.0f} Mbit/s" if link.rate_bytes_per_s else ""
        )
        return wanted

    def _holds(self, mode: str, link: LinkMeasure) -> bool:
        bounds = self.bounds.get(mode)
        if bounds is None:
            return True
        # The mode we are in, and those beyond it, are held to by a margin.
        margin = MARGIN if MODES.index(mode) >= MODES.index(self.mode) else 1.0
        slow = 0 < link.rate_bytes_per_s * margin < bounds.rate_bytes_per_s
        return (
            link.min_rtt_s <= bounds.rtt_s * margin
            and link.loss <= bounds.loss * margin
            and not slow
        )
