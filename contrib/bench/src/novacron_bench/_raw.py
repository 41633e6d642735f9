"""What a link carries by itself: bytes that nothing can shrink, between two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import field, frozen, validators
from novacron import ConfigError, InternalError
from novacron_security_tls import Authority

from novacron_bench._competitor import BUFFERS, CONGESTION, end
from novacron_bench._network import LinkFigures, Network

_WORKER: Final = "from novacron_bench._raw_worker import main; main()"
_BEGIN_S: Final = 60.0


@frozen(kw_only=True)
class Carrier:
    """A transport, with the congestion control that it is to use.

    A transport that chooses for itself is held to it by its own setting; to every other the
    system's default is set.
    """

    transport: str
    congestion: str = field(default="bbr", validator=validators.in_(CONGESTION))

    @classmethod
    def parse(cls, text: str) -> Carrier:
        """``amst`` or ``tcp:cubic``. Raises ConfigError."""
        transport, _, congestion = text.partition(":")
        try:
            return cls(transport=transport, congestion=congestion or "bbr")
        except ValueError as error:
            raise ConfigError(
                f"{text!r:.60}: {congestion!r} is no congestion control",
                hint=f"take one of {', '.join(CONGESTION)}",
            ) from error

    @property
    def name(self) -> str:
        return f"{self.transport}/{self.congestion}"


@frozen(kw_only=True)
class Carried:
    """One measurement.

    Attributes:
        link, carrier, run: What was measured.
        seconds: How long bytes were offered.
        payload_bytes: That the other side has taken.
        goodput_bit_per_s: Of payload, the start and its ramp included.
        steady_bit_per_s: The same without the first quarter.
        share, steady_share: As parts of the link's rate; None on a link without a rate.
        wire_bytes: That entered the link towards the receiver.
        overhead: Wire bytes beyond the payload, as a part of it; headers, TLS, what was sent again.
        resent: Of the bytes that streams sent, the part that they sent again.
        frames_resent_bytes: Of frames that went over a second stream because the first one died.
        streams: The most that were alive at once.
        killed: Streams that the bench broke.
        rtt_ms, floor_ms: The round trip meanwhile (median), and without queues.
        cpu_s: Of both processes.
        reason: Why it failed, if it did.
    """

    link: str
    carrier: str
    run: int
    seconds: float = 0.0
    payload_bytes: int = 0
    goodput_bit_per_s: float = 0.0
    steady_bit_per_s: float = 0.0
    share: float | None = None
    steady_share: float | None = None
    wire_bytes: int = 0
    overhead: float = 0.0
    resent: float = 0.0
    frames_resent_bytes: int = 0
    streams: int = 0
    killed: int = 0
    rtt_ms: float = 0.0
    floor_ms: float = 0.0
    cpu_s: float = 0.0
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return attrs.asdict(self)


def carry(
    links: Sequence[LinkFigures],
    carriers: Sequence[Carrier],
    *,
    seconds: float,
    runs: int,
    kill_every_s: float = 0.0,
    buffers: str = "system",
) -> Iterator[Carried]:
    """Measure every carrier on every link, in turn. A failure is a result with its reason."""
    with tempfile.TemporaryDirectory(prefix="nvb-", dir="/tmp") as name:
        folder = Path(name)
        authority = Authority.create(folder / "ca")
        for side in "ab":
            authority.issue(side, folder / side)
        for link in links:
            with Network(link, name=f"nvb{os.getpid() % 1_000_000}") as network:
                for run in range(1, runs + 1):
                    for carrier in carriers:
                        common: dict[str, Any] = {
                            "link": str(link), "carrier": carrier.name, "run": run
                        }  # fmt: skip
                        try:
                            network.set_tcp(carrier.congestion, *BUFFERS[buffers])
                            said = _once(network, carrier, folder, seconds, kill_every_s)
                        except InternalError as error:
                            yield Carried(**common, reason=str(error))
                            continue
                        yield _judged(common, said, link)


def _judged(common: dict[str, Any], said: dict[str, Any], link: LinkFigures) -> Carried:
    goodput = 8 * said["payload_bytes"] / said["seconds"]
    steady = 8 * said["steady_bytes"] / said["steady_s"]
    rate = link.rate_bit_per_s
    return Carried(
        **common,
        **{
            key: said[key]
            for key in (
                *("seconds", "payload_bytes", "wire_bytes", "resent", "frames_resent_bytes"),
                *("streams", "killed", "rtt_ms", "floor_ms", "cpu_s"),
            )
        },
        goodput_bit_per_s=goodput,
        steady_bit_per_s=steady,
        share=goodput / rate if rate else None,
        steady_share=steady / rate if rate else None,
        overhead=said["wire_bytes"] / max(said["all_bytes"], 1) - 1,
    )


def _once(
    network: Network, carrier: Carrier, folder: Path, seconds: float, kill_every_s: float
) -> dict[str, Any]:
    setup = {
        "state": str(folder),
        "transport": carrier.transport,
        "congestion": carrier.congestion,
        "seconds": seconds,
        "kill_every_s": kill_every_s,
        "window_bytes": max(16 << 20, 4 * network.figures.product_bytes),
    }
    far = _start(network, "b", setup | {"side": "b", "address": network.address("b")})
    near = None
    try:
        listening = _line(far)["listening"]
        before = network.wire()
        near = _start(network, "a", setup | {"side": "a", "address": listening})
        said = _line(near)
        wire = network.wire() - before
        said["cpu_s"] = round(said["cpu_s"] + _line(far)["cpu_s"], 2)
    finally:
        for process in (near, far):
            if process is not None:
                end(process)
                if process.stdout is not None:
                    process.stdout.close()
    return said | {"wire_bytes": wire.there}


def _start(network: Network, side: str, setup: dict[str, Any]) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", _WORKER, json.dumps(setup)]
    return subprocess.Popen(network.command(side, argv), stdout=subprocess.PIPE, process_group=0)


def _line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise InternalError("a process of the bench failed; its own output says why")
    said: dict[str, Any] = json.loads(line)
    return said
