"""A wide-area link in user space: a TCP proxy with a rate and a delay, which needs no root.

Each way is one virtual wire that all connections share: a chunk leaves when the wire is free, takes
its size divided by the rate, and arrives half a round trip later. What is on its way is bounded, so
a sender that is too fast is held back as a full path would hold it back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from types import TracebackType
from typing import Final, Self

from attrs import field, frozen, validators
from novacron import ConfigError, TransportError

Address = tuple[str, int]

_BITS: Final = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_SHAPE: Final = re.compile(r"(\d+(?:\.\d+)?)([kmg]?bit),(\d+(?:\.\d+)?)(us|ms|s)")
# What a wire may catch up after this process was scheduled late; less would cost rate.
_BURST_S: Final = 0.004
# A chunk takes about this long on the wire: short for a smooth flow, long for the sake of Python.
_CHUNK_S: Final = 0.001
# Not -m: the package may have imported this module already, and Python warns then.
_MAIN: Final = "from novacron_demo.wan import main; main()"
_NOTICE_S: Final = 0.2
_RESET: Final = struct.pack("ii", 1, 0)


@frozen(kw_only=True)
class Wan:
    """What a link is like.

    Attributes:
        rate_bit_per_s: Payload, each way.
        round_trip_s: Half of it each way.
    """

    rate_bit_per_s: float = field(validator=[validators.ge(1e4), validators.le(1e11)])
    round_trip_s: float = field(validator=[validators.ge(0), validators.le(60)])

    @classmethod
    def parse(cls, text: str) -> Wan:
        """What ``100mbit,80ms`` says: rate and round trip. Raises ConfigError."""
        match = _SHAPE.fullmatch(text.strip().lower())
        hint = "say the rate and the round trip, as in 100mbit,80ms"
        if match is None:
            raise ConfigError(f"{text!r} does not describe a link", hint=hint)
        rate, bits, delay, seconds = match.groups()
        try:
            return cls(
                rate_bit_per_s=float(rate) * _BITS[bits],
                round_trip_s=float(delay) * _SECONDS[seconds],
            )
        except ValueError as error:
            raise ConfigError(
                f"{text!r} is no link that can be made: {error}", hint=hint
            ) from error

    @property
    def rate_bytes_per_s(self) -> float:
        return self.rate_bit_per_s / 8

    @property
    def product_bytes(self) -> int:
        """The bandwidth-delay product."""
        return int(self.rate_bytes_per_s * self.round_trip_s)

    @property
    def chunk_bytes(self) -> int:
        return min(256 << 10, max(1448, int(self.rate_bytes_per_s * _CHUNK_S)))

    def __str__(self) -> str:
        return f"{self.rate_bit_per_s / 1e6:g} Mbit/s, {self.round_trip_s * 1e3:g} ms"


class _Wire:
    """One way of the link."""

    def __init__(self, wan: Wan) -> None:
        self._rate = wan.rate_bytes_per_s
        self._delay_s = wan.round_trip_s / 2
        # With the half of the product that the delay holds this makes one product in all.
        self._queue_s = max(wan.round_trip_s / 2, 0.005)
        self._free_at = 0.0
        self._lock = threading.Lock()
        self.carried = 0

    def wait_s(self) -> float:
        """How long to let the queue drain before more may enter it."""
        return self._free_at - time.monotonic() - self._queue_s

    def admit(self, count: int) -> float:
        """Take so many bytes; when they arrive at the far end."""
        with self._lock:
            now, takes_s = time.monotonic(), count / self._rate
            self._free_at = max(now - _BURST_S, self._free_at) + takes_s
            self.carried += count
            # What was caught up shortens the queue, never the way.
            return max(self._free_at, now + takes_s) + self._delay_s


class _Pipe:
    """One way of one connection: a thread that reads and one that writes."""

    def __init__(
        self, connection: _Connection, wire: _Wire, source: socket.socket, sink: socket.socket
    ) -> None:
        self._connection = connection
        self._wire = wire
        self._source = source
        self._sink = sink
        self._changed = threading.Condition()
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued = 0

    def read(self) -> None:
        link = self._connection.link
        chunk = link.wan.chunk_bytes
        bound = max(link.wan.product_bytes, 4 * chunk, 64 << 10)
        broken = self._connection.broken
        while not broken.is_set():
            with self._changed:
                while self._queued >= bound and not broken.is_set():
                    self._changed.wait(_NOTICE_S)
            while (wait := self._wire.wait_s()) > 0 and not broken.wait(wait):
                pass
            try:
                data = self._source.recv(chunk)
            except TimeoutError:
                continue
            except OSError:
                self._connection.reset()
                return
            due = self._wire.admit(len(data))
            with self._changed:
                self._queue.append((due, data))
                self._queued += len(data)
                self._changed.notify()
            if not data:
                return

    def write(self) -> None:
        broken = self._connection.broken
        while not broken.is_set():
            with self._changed:
                while not self._queue and not broken.is_set():
                    self._changed.wait(_NOTICE_S)
                if broken.is_set():
                    return
                due = self._queue[0][0]
            if broken.wait(max(0.0, due - time.monotonic())):
                return
            while not self._connection.link.flows.wait(_NOTICE_S):
                if broken.is_set():
                    return
            if not self._deliver(self._take_due()):
                return

    def _take_due(self) -> list[bytes]:
        now = time.monotonic()
        parts: list[bytes] = []
        with self._changed:
            while self._queue and self._queue[0][0] <= now and (not parts or parts[-1]):
                parts.append(self._queue.popleft()[1])
        return parts

    def _deliver(self, parts: list[bytes]) -> bool:
        data = b"".join(parts)
        view = memoryview(data)
        try:
            while view and not self._connection.broken.is_set():
                with contextlib.suppress(TimeoutError):
                    view = view[self._sink.send(view) :]
            if parts and not parts[-1]:
                self._sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._connection.reset()
            return False
        with self._changed:
            self._queued -= len(data)
            self._changed.notify()
        return not (parts and not parts[-1])


class _Connection:
    """A client's connection and the one that we made for it to the target."""

    def __init__(self, link: WanLink, client: socket.socket) -> None:
        self.link = link
        self.broken = threading.Event()
        self._sockets = [client]
        self._lock = threading.Lock()

    def run(self) -> None:
        try:
            # A handshake crosses the path and back before the first byte may leave.
            if self.broken.wait(self.link.wan.round_trip_s) or not self._connect():
                return
            client, target = self._sockets
            there = _Pipe(self, self.link.there, client, target)
            back = _Pipe(self, self.link.back, target, client)
            threads = [
                threading.Thread(target=work, daemon=True, name="novacron-wan")
                for work in (there.write, back.read, back.write)
            ]
            for thread in threads:
                thread.start()
            there.read()
            for thread in threads:
                thread.join()
        finally:
            self._close()
            self.link.forget(self)

    def _connect(self) -> bool:
        try:
            target = socket.create_connection(self.link.target, timeout=5)
        except OSError:
            self.reset()
            return False
        self.link.tune(target)
        with self._lock:
            self._sockets.append(target)
        if self.broken.is_set():
            self.reset()
            return False
        return True

    def reset(self) -> None:
        """Break both sides at once, as seen by both peers; what was on its way is lost."""
        self.broken.set()
        with self._lock:
            for side in self._sockets:
                with contextlib.suppress(OSError):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                # Wakes whoever reads here; whoever writes looks up by the timeout. The reset
                # itself is sent at close.
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RD)

    def _close(self) -> None:
        with self._lock:
            for side in self._sockets:
                side.close()


class WanLink:
    """A shaped link to ``target``: connect to ``address`` instead.

    Args:
        wan: What the link is like.
        target: Where connections go.
        listen: Where they come from; port 0 lets the system choose.
    Raises: TransportError if the address cannot be had.
    """

    def __init__(self, wan: Wan, target: Address, listen: Address = ("127.0.0.1", 0)) -> None:
        self.wan = wan
        self.target = target
        self.there = _Wire(wan)
        self.back = _Wire(wan)
        self.flows = threading.Event()
        self.flows.set()
        self._up = True
        self._closed = False
        self._connections: set[_Connection] = set()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._listener = socket.socket()
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.tune(self._listener)
            self._listener.settimeout(None)
            self._listener.bind(listen)
            self._listener.listen(64)
        except OSError as error:
            self._listener.close()
            raise TransportError(
                f"the shaped link cannot listen on {listen[0]}:{listen[1]}: {error.strerror}",
                hint="choose another port, or 0",
            ) from error
        host, port = self._listener.getsockname()
        self.address: Address = (host, port)
        self._acceptor = threading.Thread(target=self._accept, daemon=True, name="novacron-wan")
        self._acceptor.start()

    def tune(self, sock: socket.socket) -> None:
        """Keep the system's buffers small beside the link's own, which they would lengthen."""
        size = min(1 << 20, max(64 << 10, self.wan.product_bytes // 4))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The longest that a break can go unnoticed by a thread that writes.
        sock.settimeout(_NOTICE_S)

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes that entered the link so far: towards the target, and back."""
        return (self.there.carried, self.back.carried)

    @property
    def connections(self) -> int:
        return len(self._connections)

    def cut(self) -> None:
        """Break every connection; new ones may come at once."""
        with self._lock:
            open_now = list(self._connections)
        for connection in open_now:
            connection.reset()

    def down(self) -> None:
        """Break every connection and refuse new ones until `up`."""
        self._up = False
        self.cut()

    def up(self) -> None:
        self._up = True

    def freeze(self) -> None:
        """Let nothing arrive, and tell nobody, until `thaw`."""
        self.flows.clear()

    def thaw(self) -> None:
        self.flows.set()

    def close(self) -> None:
        """Break everything and stop listening. Twice is once."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(5)
        self.cut()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(5)

    def forget(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.discard(connection)
            self._threads.discard(threading.current_thread())

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._up or self._closed:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                continue
            self.tune(client)
            connection = _Connection(self, client)
            thread = threading.Thread(target=connection.run, daemon=True, name="novacron-wan")
            with self._lock:
                self._connections.add(connection)
                self._threads.add(thread)
            if not self._up:  # it went down in between
                connection.reset()
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class WanProcess:
    """A `WanLink` in a process of its own, so that it takes no time from its user's threads.

    The process ends when this object is closed or its owner dies.
    """

    def __init__(self, wan: Wan, target: Address, listen: Address = ("127.0.0.1", 0)) -> None:
        shape = f"{wan.rate_bit_per_s:.0f}bit,{wan.round_trip_s * 1e6:.0f}us"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _MAIN, "run", shape, _text(target), _text(listen)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C is for the owner, who then closes this
        )
        self.wan = wan
        try:
            host, port = self._answer()["address"]
        except BaseException:
            self.close()
            raise
        self.address: Address = (str(host), int(port))

    def cut(self) -> None:
        self._ask("cut")

    def down(self) -> None:
        self._ask("down")

    def up(self) -> None:
        self._ask("up")

    def freeze(self) -> None:
        self._ask("freeze")

    def thaw(self) -> None:
        self._ask("thaw")

    @property
    def carried(self) -> tuple[int, int]:
        there, back = self._ask("carried")["carried"]
        return (there, back)

    def close(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, command: str) -> dict[str, list[int]]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command.encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: it was closed by us
            raise TransportError("the shaped link's process is gone") from error
        return self._answer()

    def _answer(self) -> dict[str, list[int]]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise TransportError(
                "the shaped link's process ended; its own output says why",
                hint="choose another port, or 0",
            )
        answer: dict[str, list[int]] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@frozen(kw_only=True)
class Measured:
    """What a link did when it was measured; compare with what was asked for.

    Attributes:
        rate_bit_per_s: Payload that arrived, one way, over the middle of the transfer.
        round_trip_ms: Of a small message on the idle link, the median.
        loaded_round_trip_ms: The same while the link is full: the queue shows.
        connect_ms: To the first byte back from a new connection, less one round trip.
        cpu_percent: Of one core, while the link was full in one direction.
    """

    rate_bit_per_s: float
    round_trip_ms: float
    loaded_round_trip_ms: float
    connect_ms: float
    cpu_percent: float


def measure(wan: Wan, seconds: float = 3.0) -> Measured:
    """Make a link, fill it, and say what it did."""
    arrived = [0]
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_serve, args=(server, arrived), daemon=True).start()
        host, port = server.getsockname()
        with WanLink(wan, (host, port)) as link:
            begin = time.monotonic()
            with socket.create_connection(link.address) as small:
                small.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                small.sendall(b"E")
                first = _ping(small)
                connect_s = time.monotonic() - begin - first
                idle = _median([_ping(small) for _ in range(9)])
                with socket.create_connection(link.address) as bulk:
                    bulk.sendall(b"S")
                    stop = threading.Event()
                    sender = threading.Thread(target=_flood, args=(bulk, stop), daemon=True)
                    sender.start()
                    # The start is not counted: buffers fill faster than the link carries.
                    stop.wait(0.5 + 2 * wan.round_trip_s)
                    cpu, clock, count = time.process_time(), time.monotonic(), arrived[0]
                    loaded: list[float] = []
                    while time.monotonic() - clock < seconds:
                        loaded.append(_ping(small))
                    passed = time.monotonic() - clock
                    rate = (arrived[0] - count) * 8 / passed
                    cpu = (time.process_time() - cpu) / passed
                    stop.set()
                    link.cut()
                    sender.join(5)
    return Measured(
        rate_bit_per_s=rate,
        round_trip_ms=idle * 1e3,
        loaded_round_trip_ms=_median(loaded) * 1e3,
        connect_ms=connect_s * 1e3,
        cpu_percent=cpu * 100,
    )


def _serve(server: socket.socket, arrived: list[int]) -> None:
    """The far end of a measurement: echoes, or swallows, as the first byte asks."""
    while True:
        try:
            peer, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_serve_one, args=(peer, arrived), daemon=True).start()


def _serve_one(peer: socket.socket, arrived: list[int]) -> None:
    buffer = bytearray(256 << 10)
    with peer, contextlib.suppress(OSError):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        echo = peer.recv(1) == b"E"
        while count := peer.recv_into(buffer):
            if echo:
                peer.sendall(memoryview(buffer)[:count])
            else:
                arrived[0] += count


def _ping(sock: socket.socket) -> float:
    begin = time.monotonic()
    sock.sendall(b"ping")
    left = 4
    while left:
        got = len(sock.recv(left))
        if not got:
            raise TransportError("the link ended while it was measured")
        left -= got
    return time.monotonic() - begin


def _flood(sock: socket.socket, stop: threading.Event) -> None:
    block = bytes(64 << 10)
    with contextlib.suppress(OSError):
        while not stop.is_set():
            sock.sendall(block)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return (host, int(port))


def _run(wan: Wan, target: Address, listen: Address) -> None:
    """Serve a `WanProcess`: commands on standard input, an answer for each on standard output."""
    with WanLink(wan, target, listen) as link:
        _say({"address": list(link.address)})
        for line in sys.stdin:
            command = line.strip()
            if command in ("cut", "down", "up", "freeze", "thaw"):
                getattr(link, command)()
            _say({"carried": list(link.carried)})


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="novacron_demo.wan", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="serve a link until standard input ends")
    run.add_argument("shape", type=Wan.parse)
    run.add_argument("target", type=_address)
    run.add_argument("listen", type=_address, nargs="?", default=("127.0.0.1", 0))
    measured = commands.add_parser("measure", help="print what a link really does on this host")
    measured.add_argument("shape", type=Wan.parse, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "run":
        _run(arguments.shape, arguments.target, arguments.listen)
        return
    for shape in arguments.shape:
        did = measure(shape)
        sys.stdout.write(
            f"{shape}: {did.rate_bit_per_s / 1e6:.1f} Mbit/s, "
            f"round trip {did.round_trip_ms:.1f} ms idle and {did.loaded_round_trip_ms:.1f} ms "
            f"full, connect {did.connect_ms:.1f} ms, {did.cpu_percent:.0f} % of a core\n"
        )


if __name__ == "__main__":
    main()
