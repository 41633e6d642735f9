"""Runs the ways a stream can take between two processes, and measures them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import xxhash
from attrs import field, frozen, validators
from novacron import ConfigError, InternalError
from novacron_native_pages import Splitter, implementation
from novacron_security_tls import Authority

from novacron_bench._image import Image, write_image
from novacron_bench._worker import WorkerSetup, host_cpu_s, own_cpu_s

GIB: Final = 1 << 30
WAYS: Final = ("plain", "relay")
_WAIT_S: Final = 600.0
# How often to see whether the processes are still there.
_LOOK_S: Final = 0.5
_BLOCK_BYTES: Final = 1 << 20
_WORKER: Final = "from novacron_bench._worker import main; main()"


@frozen(kw_only=True)
class RelaySetup:
    """What to measure.

    Attributes:
        memory_bytes: Of the guest whose stream is made.
        zero_percent: Of its pages.
        stream: A stream to use instead, as a real guest wrote it.
        runs: How often each way is taken; the run of the median time counts.
        compression, transport, security: The providers.
        settings: Of the compression, instead of its defaults.
        window_bytes: The link's window.
    """

    memory_bytes: int = field(default=GIB, validator=validators.ge(1 << 20))
    zero_percent: float = field(default=21.0, validator=[validators.ge(0), validators.le(100)])
    stream: Path | None = None
    runs: int = field(default=1, validator=[validators.ge(1), validators.le(100)])
    compression: str = "zstd"
    transport: str = "tcp"
    security: str = "tls"
    settings: dict[str, Any] = field(factory=dict)
    window_bytes: int = field(default=16 << 20, validator=validators.ge(1 << 20))


@frozen(kw_only=True)
class WayResult:
    """What one way has cost; of several runs the one that took the median time.

    Attributes:
        seconds: From the first byte fed to the last byte checked.
        guest_bytes_per_s: Guest memory moved, zero pages included.
        stream_bytes_per_s: QEMU's stream.
        wire_bytes: Between the two processes.
        cpu_s_per_gib: CPU seconds of both processes per GiB of guest memory.
        source_cpu_s, destination_cpu_s: Of each process.
        bench_cpu_s: Of the process that feeds the stream and checks what arrives.
        others_cpu_s: Of everything else that ran on this host meanwhile, and of a hypervisor's
            other guests: what the rate might have been with.
        source_peak_bytes, destination_peak_bytes: The most resident memory, all of the process.
        source_threads, destination_threads: CPU seconds by thread.
    """

    seconds: float
    guest_bytes_per_s: float
    stream_bytes_per_s: float
    wire_bytes: int
    cpu_s_per_gib: float
    source_cpu_s: float
    destination_cpu_s: float
    bench_cpu_s: float
    others_cpu_s: float
    source_peak_bytes: int
    destination_peak_bytes: int
    source_threads: dict[str, float]
    destination_threads: dict[str, float]


@frozen(kw_only=True)
class RelayResult:
    """Both ways of the same stream.

    Attributes:
        image: What was moved.
        plain, relay: The ways.
        ratio: The relay's rate as a part of the plain one.
        cores: Of this host, as far as this process may use them.
        pages: The page kernels in use, ``c`` or ``numpy``.
    """

    image: Image
    plain: WayResult
    relay: WayResult
    ratio: float
    cores: int
    pages: str

    def to_json(self) -> dict[str, Any]:
        return attrs.asdict(
            self, value_serializer=lambda _, __, v: str(v) if isinstance(v, Path) else v
        )


def run_relay(setup: RelaySetup) -> RelayResult:
    """Measure. Raises ConfigError for what cannot be measured, InternalError if bytes were lost."""
    with tempfile.TemporaryDirectory(prefix="novacron-bench-") as name:
        folder = Path(name)
        image = _image(setup, folder)
        authority = Authority.create(folder / "ca")
        for node in ("source", "destination"):
            authority.issue(node, folder / node)
        digest = _digest(image.path)
        runs: dict[str, list[WayResult]] = {way: [] for way in WAYS}
        for number in range(setup.runs):
            for way in WAYS:
                place = folder / f"{way}{number}"
                place.mkdir()
                runs[way].append(_take(way, setup, image, digest, folder, place))
    plain, relay = (_median(runs[way]) for way in WAYS)
    return RelayResult(
        image=image,
        plain=plain,
        relay=relay,
        ratio=plain.seconds / relay.seconds,
        cores=len(os.sched_getaffinity(0)),
        pages=implementation(),
    )


def _image(setup: RelaySetup, folder: Path) -> Image:
    if setup.stream is None:
        return write_image(folder / "stream", setup.memory_bytes, zero_percent=setup.zero_percent)
    splitter = Splitter()
    with setup.stream.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            splitter.feed(block)
    seen = splitter.counters
    pages = seen.pages + seen.zero_pages
    if not pages:
        raise ConfigError(
            f"{setup.stream} holds no pages of a QEMU migration stream",
            hint='make one in the monitor of a guest: migrate "exec:cat > FILE"',
        )
    return Image(
        path=setup.stream,
        stream_bytes=seen.bytes,
        guest_bytes=pages * seen.page_size,
        zero_percent=100 * seen.zero_pages / pages,
    )


def _digest(path: Path) -> str:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


def _take(
    way: str, setup: RelaySetup, image: Image, digest: str, folder: Path, place: Path
) -> WayResult:
    """Send the stream once."""
    common = {
        "kind": way,
        "compression": setup.compression,
        "transport": setup.transport,
        "security": setup.security,
        "settings": setup.settings,
        "window_bytes": setup.window_bytes,
    }
    with (
        _listening(place / "in") as feed,
        _listening(place / "out") as drain,
        contextlib.ExitStack() as running,
    ):
        destination = running.enter_context(
            _worker(side="destination", local="out", folder=folder, place=place, **common)
        )
        peer = destination.answer()["listening"]
        source = running.enter_context(
            _worker(side="source", local="in", folder=folder, place=place, peer=peer, **common)
        )
        fed = _accept(feed, source, destination)
        sink = _Sink(drain)
        with fed, image.path.open("rb") as file:
            start, host_s, own_s = time.monotonic(), host_cpu_s(), own_cpu_s()
            fed.sendfile(file)
            fed.shutdown(socket.SHUT_WR)
            ended = sink.wait(source, destination)
            host_s, own_s = host_cpu_s() - host_s, own_cpu_s() - own_s
            sent, received = source.answer(), destination.answer()
    if sink.digest != digest:
        raise InternalError(
            f"the {way} way lost bytes: {sink.count} of {image.stream_bytes} arrived, or others"
        )
    seconds = ended - start
    cpu_s = sent["cpu_s"] + received["cpu_s"]
    return WayResult(
        seconds=seconds,
        guest_bytes_per_s=image.guest_bytes / seconds,
        stream_bytes_per_s=image.stream_bytes / seconds,
        wire_bytes=sent["wire_bytes"],
        cpu_s_per_gib=cpu_s / image.guest_bytes * GIB,
        source_cpu_s=sent["cpu_s"],
        destination_cpu_s=received["cpu_s"],
        bench_cpu_s=own_s,
        others_cpu_s=max(0.0, host_s - own_s - cpu_s),
        source_peak_bytes=sent["peak_bytes"],
        destination_peak_bytes=received["peak_bytes"],
        source_threads=sent["threads"],
        destination_threads=received["threads"],
    )


def _accept(listener: socket.socket, *workers: _Worker) -> socket.socket:
    listener.settimeout(_LOOK_S)
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        try:
            return listener.accept()[0]
        except TimeoutError:
            for worker in workers:
                worker.check()
    raise InternalError("a process of the bench does not begin")


class _Sink:
    """Stands for the destination's QEMU: takes the stream and hashes it."""

    def __init__(self, listener: socket.socket) -> None:
        self.count = 0
        self.digest = ""
        self._ended = 0.0
        self._listener = listener
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        hasher = xxhash.xxh3_128()
        block = memoryview(bytearray(_BLOCK_BYTES))
        stream, _ = self._listener.accept()
        with stream:
            while count := stream.recv_into(block):
                hasher.update(block[:count])
                self.count += count
        self._ended = time.monotonic()
        self.digest = hasher.hexdigest()

    def wait(self, *workers: _Worker) -> float:
        deadline = time.monotonic() + _WAIT_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(_LOOK_S)
            if self._thread.is_alive():
                for worker in workers:
                    worker.check()
        if not self.digest:
            raise InternalError(f"the stream did not end; {self.count} bytes arrived")
        return self._ended


class _Worker:
    def __init__(self, setup: WorkerSetup) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, json.dumps(attrs.asdict(setup))],
            stdout=subprocess.PIPE,
        )

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InternalError("a process of the bench failed; its own output says why")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def check(self) -> None:
        """Raises: InternalError if it has failed."""
        if self._process.poll():
            raise InternalError("a process of the bench failed; its own output says why")

    def close(self) -> None:
        if self._process.poll() is None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def _worker(*, side: str, local: str, folder: Path, place: Path, **more: Any) -> Iterator[_Worker]:
    setup = WorkerSetup(side=side, local=str(place / local), state=str(folder / side), **more)
    worker = _Worker(setup)
    try:
        yield worker
    finally:
        worker.close()


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(_WAIT_S)
        yield listener


def _median(results: list[WayResult]) -> WayResult:
    return sorted(results, key=lambda result: result.seconds)[len(results) // 2]
