"""What a lab is made of: links and sites as values, checked when they are made."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from attrs import Attribute, evolve, field, frozen
from novacron import ConfigError

from novacron_lab._trace import mean_bytes_per_s

Engine = Literal["auto", "emulator", "netem", "veth"]

SITES_MAX: Final = 16
PATHS_MAX: Final = 8
QUEUE_BYTES_DEFAULT: Final = 1_000_000
QUEUE_BYTES_MAX: Final = 1 << 30
MTU_MIN: Final = 1280  # IPv6 wants it
REORDER_BY_MIN_S: Final = 0.001
_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,7}", re.ASCII)
_LAB: Final = re.compile(r"[a-z][a-z0-9-]{0,23}", re.ASCII)


def _share(instance: object, attribute: Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(
            f"{attribute.name} is {value:g}, and a share is from 0 to 1", hint="1 % is 0.01"
        )


def _seconds(instance: object, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None and not 0 <= value <= 600:
        raise ConfigError(f"{attribute.name} is {value:g}, not from 0 to 600 seconds")


def _moment(instance: object, attribute: Attribute[float], value: float) -> None:
    if not 0 <= value <= 1e6:
        raise ConfigError(f"{attribute.name} is {value:g}, not from 0 to 1,000,000 seconds")


@frozen(kw_only=True)
class Bursts:
    """Loss in bursts (the Gilbert-Elliott model): before each packet the state may change.

    Attributes:
        begin: Chance that a burst begins, 0 to 1 per packet.
        end: Chance that it ends, 0 to 1 per packet; 1 / end packets is its mean length.
        loss: Share of the packets that are lost in a burst.
    """

    begin: float = field(validator=_share)
    end: float = field(validator=_share)
    loss: float = field(default=1.0, validator=_share)


@frozen(kw_only=True)
class Outage:
    """The link is down: what would leave the queue meanwhile is gone.

    Attributes:
        begin_s: Seconds after the lab came up.
        length_s: For so many seconds.
    """

    begin_s: float = field(validator=_moment)
    length_s: float = field(validator=_moment)

    def __attrs_post_init__(self) -> None:
        if self.length_s < 1e-9:
            raise ConfigError("an outage of no length", hint="10+30 is one at 10 s for 30 s")


@frozen(kw_only=True)
class LinkSpec:
    """One direction of a link. Without arguments it adds nothing to what the machine takes itself.

    Attributes:
        rate_bit_per_s: Of IP packets, headers counted and no Ethernet framing. None: no limit.
        delay_s: One way.
        jitter_s: More or less delay by up to so much, uniform; the order stays.
        loss: Share of packets, at random, 0 to 1; between bursts if there are bursts.
        bursts: Loss in bursts, besides.
        queue_bytes: Before the bottleneck, drop-tail. None: one bandwidth-delay product of the
            round trip, at least 1 MB.
        reorder: Share of packets that come late and are overtaken.
        reorder_by_s: How late. None: a quarter of the delay, at least 1 ms.
        trace: A delivery trace in place of the rate, repeated for ever: mahimahi's format (each
            line the millisecond in which 1500 bytes may leave) or CSV of ``t_s,mbps``.
        outages: Known beforehand.
        engine: "emulator" is ours, "netem" the kernel's, "veth" a bare cable without any figures;
            "auto" is netem where the kernel has it and it can do all of this, else the emulator.
    """

    rate_bit_per_s: float | None = None
    delay_s: float = field(default=0.0, validator=_seconds)
    jitter_s: float = field(default=0.0, validator=_seconds)
    loss: float = field(default=0.0, validator=_share)
    bursts: Bursts | None = None
    queue_bytes: int | None = None
    reorder: float = field(default=0.0, validator=_share)
    reorder_by_s: float | None = field(default=None, validator=_seconds)
    trace: Path | None = None
    outages: tuple[Outage, ...] = ()
    engine: Engine = "auto"

    def __attrs_post_init__(self) -> None:
        rate = self.rate_bit_per_s
        if rate is not None and not 1e3 <= rate <= 1e12:
            raise ConfigError(
                f"rate_bit_per_s is {rate:g}, not from 1000 to 1e12", hint="100 Mbit/s are 100e6"
            )
        if rate is not None and self.trace is not None:
            raise ConfigError("a link has a rate or a trace, not both", hint="leave one out")
        queue = self.queue_bytes
        if queue is not None and not 3000 <= queue <= QUEUE_BYTES_MAX:
            raise ConfigError(f"queue_bytes is {queue}, not from 3000 to {QUEUE_BYTES_MAX}")
        if self.engine == "veth" and evolve(self, engine="auto") != LinkSpec():
            raise ConfigError(
                "a link of engine veth is a bare cable and has no figures",
                hint="leave the figures out, or the engine",
            )

    @classmethod
    def wan(
        cls,
        *,
        rate_mbit: float | None = None,
        rtt_ms: float = 0.0,
        loss_percent: float = 0.0,
        queue_bytes: int | None = None,
    ) -> LinkSpec:
        """A link as people talk of it; half of the round trip is this direction's delay."""
        return cls(
            rate_bit_per_s=None if rate_mbit is None else rate_mbit * 1e6,
            delay_s=rtt_ms / 2e3,
            loss=loss_percent / 100,
            queue_bytes=queue_bytes,
        )

    def mean_rate_bytes_per_s(self) -> float:
        """Of the rate or the trace; 0 if there is no limit."""
        if self.trace is not None:
            return mean_bytes_per_s(self.trace)
        return (self.rate_bit_per_s or 0.0) / 8

    def queue_for(self, round_trip_s: float) -> int:
        """Bytes of the queue, the default worked out."""
        if self.queue_bytes is not None:
            return self.queue_bytes
        product = self.mean_rate_bytes_per_s() * round_trip_s
        return min(max(int(product), QUEUE_BYTES_DEFAULT), QUEUE_BYTES_MAX)

    @property
    def late_s(self) -> float:
        """How late a reordered packet comes."""
        if self.reorder_by_s is not None:
            return self.reorder_by_s
        return max(self.delay_s / 4, REORDER_BY_MIN_S)


@frozen(kw_only=True)
class Site:
    """One host of the lab.

    Attributes:
        name: As in the links.
        number: From 1, in the order in which the sites were named.
        namespace: For `ip netns exec`.
        addresses: IPv4, one per path; every site reaches ``addresses[0]`` of every other one.
        addresses6: The same in IPv6.
    """

    name: str
    number: int
    namespace: str
    addresses: tuple[str, ...]
    addresses6: tuple[str, ...]

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def address6(self) -> str:
        return self.addresses6[0]


@frozen(kw_only=True)
class LabPath:
    """One path between two sites, both directions.

    Attributes:
        a, b: The sites, in the order of the lab.
        number: 0 unless the sites are joined several times over.
        there: From a to b.
        back: From b to a.
    """

    a: str
    b: str
    number: int
    there: LinkSpec
    back: LinkSpec

    def wire(self, source: str) -> str:
        """The name of a direction: ``a>b``, or ``a>b/1`` for the second path."""
        sink = self.b if source == self.a else self.a
        return f"{source}>{sink}" + (f"/{self.number}" if self.number else "")

    def device(self, site: str) -> str:
        """The name of this path's network device in a site: ``to-b``."""
        peer = self.b if site == self.a else self.a
        return f"to-{peer}" + (f"-{self.number}" if self.number else "")

    @property
    def round_trip_s(self) -> float:
        return self.there.delay_s + self.back.delay_s

    def directions(self) -> Iterator[tuple[str, str, LinkSpec]]:
        yield self.a, self.b, self.there
        yield self.b, self.a, self.back


def check_lab_name(name: str) -> None:
    if not _LAB.fullmatch(name):
        raise ConfigError(
            f"{name!r:.40} is no name of a lab",
            hint="up to 24 lower-case letters, digits and dashes, a letter first",
        )


def check_sites(sites: Sequence[str]) -> None:
    for name in sites:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r:.40} is no name of a site",
                hint="up to 8 lower-case letters and digits, a letter first",
            )
    if not 2 <= len(sites) <= SITES_MAX or len(set(sites)) < len(sites):
        raise ConfigError(
            f"the sites are {', '.join(sites) or 'none'}; a lab has 2 to {SITES_MAX} different ones"
        )


def paths_of(
    sites: Sequence[str],
    links: LinkSpec | Mapping[tuple[str, str], LinkSpec | Sequence[LinkSpec]],
) -> tuple[LabPath, ...]:
    """All paths of a full mesh; a pair that the links do not name gets a link without figures."""
    named = {} if isinstance(links, LinkSpec) else dict(links)
    default = links if isinstance(links, LinkSpec) else LinkSpec()
    for pair in named:
        if pair[0] == pair[1] or not set(pair) <= set(sites):
            raise ConfigError(
                f"a link joins {' and '.join(pair)}, which are not two sites of the lab",
                hint=f"the sites are {', '.join(sites)}",
            )
    made = []
    for a, b in itertools.combinations(sites, 2):
        there = _each(named.get((a, b), named.get((b, a), default)))
        back = _each(named.get((b, a), named.get((a, b), default)))
        if len(there) != len(back) or not 1 <= len(there) <= PATHS_MAX:
            raise ConfigError(
                f"{a} and {b} have {len(there)} paths there and {len(back)} back",
                hint=f"as many there as back, 1 to {PATHS_MAX}",
            )
        for number, (one, other) in enumerate(zip(there, back, strict=True)):
            if one.engine != other.engine:
                raise ConfigError(
                    f"the engine from {a} to {b} is {one.engine}, and {other.engine} back",
                    hint="a path has one engine",
                )
            made.append(LabPath(a=a, b=b, number=number, there=one, back=other))
    return tuple(made)


def _each(links: LinkSpec | Sequence[LinkSpec]) -> Sequence[LinkSpec]:
    return [links] if isinstance(links, LinkSpec) else links
