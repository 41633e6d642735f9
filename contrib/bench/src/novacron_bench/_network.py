"""The link of a benchmark: a lab of two sites, ``a`` and ``b``, and its figures in words."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from attrs import field, frozen, validators
from novacron import ConfigError, TransportError

_SHAPE: Final = re.compile(
    r"(?P<rate>\d+(?:\.\d+)?)(?P<bits>[kmg])bit,(?P<rtt>\d+(?:\.\d+)?)ms"
    r"(?:,(?P<loss>\d+(?:\.\d+)?)%)?"
)
_ALLOWED: Final = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
_BITS: Final = {"k": 1e3, "m": 1e6, "g": 1e9}
PRESETS: Final = {
    "lan": "10gbit,0.35ms",
    "metro": "1gbit,50ms,0.1%",
    "country": "200mbit,80ms,0.5%",
    "continent": "100mbit,150ms,1%",
    "ocean": "100mbit,300ms,2%",
    "veth": "veth",
}


@frozen(kw_only=True)
class LinkFigures:
    """What a link is like.

    Attributes:
        rate_bit_per_s: Each way; 0 for an unshaped virtual cable.
        rtt_ms: Round trip, half of it each way.
        loss_percent: Of the packets, at random, each way.
    """

    rate_bit_per_s: float = field(validator=(validators.ge(0.0), validators.le(1e11)))
    rtt_ms: float = field(default=0.0, validator=(validators.ge(0.0), validators.le(60e3)))
    loss_percent: float = field(default=0.0, validator=(validators.ge(0.0), validators.lt(100.0)))

    @classmethod
    def parse(cls, text: str) -> LinkFigures:
        """``200mbit,80ms,0.5%``, a preset's name, or ``veth``. Raises ConfigError."""
        said = PRESETS.get(text.strip().lower(), text.strip().lower())
        if said == "veth":
            return cls(rate_bit_per_s=0)
        match = _SHAPE.fullmatch(said)
        hint = f"write it like 200mbit,80ms,0.5%, or take one of {', '.join(PRESETS)}"
        if match is None:
            raise ConfigError(f"{text!r:.60} does not describe a link", hint=hint)
        try:
            return cls(
                rate_bit_per_s=float(match["rate"]) * _BITS[match["bits"]],
                rtt_ms=float(match["rtt"]),
                loss_percent=float(match["loss"] or 0),
            )
        except ValueError as error:
            raise ConfigError(f"{text!r:.60} is no link that can be made", hint=hint) from error

    @property
    def product_bytes(self) -> int:
        """The bandwidth-delay product."""
        return int(self.rate_bit_per_s / 8 * self.rtt_ms / 1e3)

    def __str__(self) -> str:
        if not self.rate_bit_per_s:
            return "veth"
        rate, unit = self.rate_bit_per_s / 1e6, "mbit"
        if rate >= 1000:
            rate, unit = rate / 1000, "gbit"
        loss = f",{self.loss_percent:g}%" if self.loss_percent else ""
        return f"{rate:g}{unit},{self.rtt_ms:g}ms{loss}"


@frozen
class Wire:
    """Bytes that entered the link: from ``a`` to ``b``, and back."""

    there: int
    back: int

    def __sub__(self, other: Wire) -> Wire:
        return Wire(self.there - other.there, self.back - other.back)


def _allow(congestion: str) -> None:
    """Namespaces may only default to algorithms that the host lists as allowed."""
    try:
        allowed = _ALLOWED.read_text().split()
        if congestion not in allowed:
            _ALLOWED.write_text(" ".join([*allowed, congestion]))
    except OSError as error:
        raise TransportError(
            f"this host cannot use {congestion}: {error.strerror}",
            hint="run as root, and see net.ipv4.tcp_available_congestion_control",
        ) from error


class Network:
    """A lab that is up. Use it in a ``with`` statement: nothing of it is left afterwards.

    Raises: NovacronError, with the cure, if it cannot be made here.
    """

    def __init__(self, figures: LinkFigures, *, name: str, seed: int = 1) -> None:
        from novacron_lab import Lab, LinkSpec

        self.figures = figures
        if figures.rate_bit_per_s:
            spec = LinkSpec.wan(
                rate_mbit=figures.rate_bit_per_s / 1e6,
                rtt_ms=figures.rtt_ms,
                loss_percent=figures.loss_percent,
            )
        else:
            spec = LinkSpec(engine="veth")
        self._lab = Lab.up(name, ("a", "b"), spec, seed=seed, congestion_control="bbr")

    def command(self, side: str, argv: Sequence[str]) -> list[str]:
        """The argument vector that runs a program at a place."""
        return list(self._lab.command(side, argv))

    def address(self, side: str) -> str:
        return self._lab.site(side).address

    def wire(self) -> Wire:
        """What has entered the link so far."""
        stats = self._lab.stats()
        return Wire(stats["a>b"].in_bytes, stats["b>a"].in_bytes)

    def set_tcp(self, congestion: str, read_bytes: int, write_bytes: int) -> None:
        """What programs at both places find who do not choose for themselves."""
        settings = {
            "tcp_congestion_control": congestion,
            "tcp_rmem": f"4096 131072 {read_bytes}",
            "tcp_wmem": f"4096 16384 {write_bytes}",
            # A move must not profit from what the one before it learnt about the path.
            "tcp_no_metrics_save": "1",
        }
        _allow(congestion)
        for side in "ab":
            argv = ["sysctl", "-qw", *(f"net.ipv4.{key}={v}" for key, v in settings.items())]
            ran = subprocess.run(
                self.command(side, argv), capture_output=True, text=True, timeout=20
            )
            if ran.returncode:
                raise TransportError(
                    f"TCP at {side} cannot be set: {ran.stderr.strip()}",
                    hint=f"has this kernel {congestion}? see "
                    "net.ipv4.tcp_available_congestion_control",
                )

    def outage(self, seconds: float) -> None:
        self._lab.outage("a", "b", seconds)

    def set_rate(self, bit_per_s: float) -> None:
        self._lab.set_link("a", "b", rate_bit_per_s=bit_per_s)

    def close(self) -> None:
        self._lab.down()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
