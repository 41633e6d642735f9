"""Replays page traces through codecs, without a hypervisor or a link: what each rung is worth."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import attrs
from attrs import field, frozen
from novacron import Batch, CodecSession, InternalError, NodeFacts, PluginManager, Pressure
from novacron_dwcp.pump import DIGEST_BYTES, chain

from novacron_bench._trace import read_trace
from novacron_bench._worker import provider

GIB: Final = 1 << 30
_ADAPT_S: Final = 0.1
_NAME: Final = "trace"


@frozen(kw_only=True)
class Rungs:
    """One trace through one codec.

    Attributes:
        trace: Its name, with what the destination had: ``kv cold``, ``kv warm``, ``kv sibling``.
        raw_bytes, wire_bytes: Before and after.
        have_bytes: That the destination said it holds, which cross the link too.
        pages: With content or without.
        encode_s, decode_s: CPU seconds of the calls.
        peak_bytes: The most that the process grew by; both sides together, stores in files too as
            far as they were in memory.
        rungs: By rung: pages, raw_bytes, wire_bytes, seconds; empty if the codec does not tell.
    """

    trace: str
    compression: str
    raw_bytes: int
    wire_bytes: int
    have_bytes: int
    pages: int
    encode_s: float
    decode_s: float
    peak_bytes: int
    rungs: Mapping[str, Mapping[str, float]] = field(factory=dict)

    @property
    def ratio(self) -> float:
        return self.raw_bytes / max(self.wire_bytes + self.have_bytes, 1)

    def to_json(self) -> dict[str, Any]:
        return attrs.asdict(self) | {"ratio": round(self.ratio, 3)}


class Replay:
    """Two nodes' codecs in one process, with state folders of their own."""

    def __init__(self, manager: PluginManager, compression: str, settings: Mapping[str, Any]):
        self._folder = tempfile.TemporaryDirectory(prefix="novacron-ladder-")
        self.compression = compression
        self._providers = {
            name: provider(
                manager,
                "compression",
                compression,
                NodeFacts(name=name, state_dir=Path(self._folder.name) / name),
                settings,
            )
            for name in "ab"
        }
        self._count = 0

    def close(self) -> None:
        self._folder.cleanup()

    def run(
        self,
        title: str,
        trace: Path,
        *,
        machine: str = _NAME,
        memory_bytes: int = GIB,
        rate_bytes_per_s: float,
        backwards: bool = False,
    ) -> Rungs:
        """Encode a trace at one node and decode it at the other; every batch is compared.

        Args:
            machine: Another name is another machine, of the same tenant.
            rate_bytes_per_s: Of the link that the encoder is to believe in.
            backwards: From ``b`` to ``a``.
        Raises: InternalError if a batch came out wrong.
        """
        self._count += 1

        def session(role: Literal["source", "destination"], peer: str) -> CodecSession:
            return CodecSession(
                session=f"ladder-{self._count}",
                machine=machine,
                driver="qemu",
                peer=peer,
                tenant="",
                memory_bytes=memory_bytes,
                role=role,
            )

        here, there = ("b", "a") if backwards else ("a", "b")
        _reset_peak()
        before = _memory("VmRSS")
        decoder = self._providers[there].decoder(session("destination", here))
        have: bytes = _ask(decoder, "have")() or b""
        encoder = self._providers[here].encoder(session("source", there))
        if have:
            _ask(encoder, "peer_has")(have)
        figures = _Figures(rate_bytes_per_s)
        sent, got = bytes(DIGEST_BYTES), bytes(DIGEST_BYTES)
        for _, batch in read_trace(trace):
            payload = figures.encode(encoder, batch)
            decoded = figures.decode(decoder, payload)
            sent, got = chain(sent, batch), chain(got, decoded)
            if sent != got:
                raise InternalError(f"{self.compression} gave back another batch than it was given")
        rungs = _ask(encoder, "figures")() or {}
        peak = max(0, _memory("VmHWM") - before)
        for side in (encoder, decoder):
            _ask(side, "ended")(True)
        return Rungs(
            trace=title,
            compression=self.compression,
            raw_bytes=figures.raw_bytes,
            wire_bytes=figures.wire_bytes,
            have_bytes=len(have),
            pages=figures.pages,
            encode_s=round(figures.encode_s, 3),
            decode_s=round(figures.decode_s, 3),
            peak_bytes=peak,
            rungs={name: dict(values) for name, values in rungs.items()},
        )


class _Figures:
    """Counts, and tells the encoder how a link of that rate would keep up."""

    def __init__(self, rate_bytes_per_s: float) -> None:
        self._rate = rate_bytes_per_s
        self.raw_bytes = self.wire_bytes = self.pages = 0
        self.encode_s = self.decode_s = 0.0
        # One clock for the pretended copy: the encoder works, then the link takes its time.
        self._clock_s = self._free_at_s = 0.0
        self._encode_s = self._wait_s = self._told_at_s = 0.0

    def encode(self, encoder: Any, batch: Batch) -> Any:
        began_s = time.process_time()
        payload = encoder.encode(batch)
        took_s = time.process_time() - began_s
        self.raw_bytes += batch.nbytes
        self.wire_bytes += len(payload)
        self.pages += batch.page_count
        self.encode_s += took_s
        self._clock_s += took_s
        self._encode_s += took_s
        wait_s = max(0.0, self._free_at_s - self._clock_s)
        self._clock_s += wait_s
        self._wait_s += wait_s
        self._free_at_s = self._clock_s + len(payload) / self._rate
        if self._clock_s - self._told_at_s >= _ADAPT_S:
            encoder.adapt(
                Pressure(encode_s=self._encode_s, link_wait_s=self._wait_s, read_wait_s=0.0)
            )
            self._encode_s = self._wait_s = 0.0
            self._told_at_s = self._clock_s
        return payload

    def decode(self, decoder: Any, payload: Any) -> Batch:
        began_s = time.process_time()
        decoded: Batch = decoder.decode(payload)
        self.decode_s += time.process_time() - began_s
        return decoded


def _ask(codec: Any, method: str) -> Callable[..., Any]:
    """A method that a codec may have."""
    found: Callable[..., Any] = getattr(codec, method, lambda *_: None)
    return found


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> None:
    """Begin to look for the highest memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def replay(
    manager: PluginManager,
    traces: Sequence[Path],
    compression: str,
    settings: Mapping[str, Any],
    *,
    rate_bytes_per_s: float,
) -> list[Rungs]:
    """Replay each cold trace, and after it the warm one and with a sibling, if they are there.

    ``warm``: the machine went from a to b, and comes back later. ``sibling``: another machine of
    the same image had come to b before.
    """
    found = []
    for cold in traces:
        stem = cold.name.removesuffix(".cold.trace")
        warm, sibling = (cold.with_name(f"{stem}.{kind}.trace") for kind in ("warm", "sibling"))
        pair = Replay(manager, compression, settings)
        try:
            found.append(pair.run(f"{stem} cold", cold, rate_bytes_per_s=rate_bytes_per_s))
            if warm.exists():
                found.append(
                    pair.run(
                        f"{stem} warm", warm, rate_bytes_per_s=rate_bytes_per_s, backwards=True
                    )
                )
        finally:
            pair.close()
        if sibling.exists():
            pair = Replay(manager, compression, settings)
            try:
                pair.run("", sibling, machine="sibling", rate_bytes_per_s=rate_bytes_per_s)
                found.append(pair.run(f"{stem} sibling", cold, rate_bytes_per_s=rate_bytes_per_s))
            finally:
                pair.close()
    return found
