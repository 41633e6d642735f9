"""The TCP transport on real sockets."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron import ConfigError, NodeFacts, NovacronError, TransportError
from novacron_native_sockets import TcpListener, TcpStream
from novacron_transport_tcp import Settings, TcpTransport, parse_address

WAIT_S = 10.0


def transport(settings: Settings | None = None) -> TcpTransport:
    return TcpTransport(settings or Settings(), NodeFacts(name="alpha", state_dir=Path("/none")))


def pair(settings: Settings | None = None, address: str = "127.0.0.1:0") -> tuple[TcpStream, ...]:
    tcp = transport(settings)
    listener = tcp.listen(address)
    near = tcp.connect(listener.address, WAIT_S)
    far = listener.accept()
    listener.close()
    assert isinstance(near, TcpStream)
    assert isinstance(far, TcpStream)
    return near, far


@pytest.fixture
def streams() -> Iterator[tuple[TcpStream, ...]]:
    both = pair()
    yield both
    for stream in both:
        stream.close()


def receive(stream: TcpStream, count: int) -> bytes:
    received = bytearray(count)
    view = memoryview(received)
    while view:
        got = stream.receive_into(view)
        assert got, f"the peer finished {len(view)} bytes early"
        view = view[got:]
    return bytes(received)


class Worker(threading.Thread):
    """Runs a call and keeps what became of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.result: object = None
        self.error: NovacronError | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.call()
        except NovacronError as error:
            self.error = error

    def finish(self) -> None:
        self.join(WAIT_S)
        assert not self.is_alive(), "the call did not return"


def wait_until_blocked(worker: Worker) -> None:
    """Wait until the worker's thread sleeps in the kernel, as /proc tells it."""
    deadline = time.monotonic() + WAIT_S
    seen = 0
    while time.monotonic() < deadline:
        assert worker.is_alive(), "the call returned instead of blocking"
        stat = Path(f"/proc/self/task/{worker.native_id}/stat")
        # Asleep several times in a row: a moment's wait for the GIL does not count.
        seen = seen + 1 if stat.read_text().rpartition(")")[2].split()[0] == "S" else 0
        if seen == 20:
            return
        os.sched_yield()
        time.sleep(0.001)
    raise AssertionError("the call never blocked")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:7000", ("127.0.0.1", 7000)),
        ("[::1]:1", ("::1", 1)),
        ("[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
        ("node-1.site_a.example:80", ("node-1.site_a.example", 80)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, parts: tuple[str, int]) -> None:
    assert parse_address(text) == parts


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no port"),
        ("alpha", "no port"),
        (":7000", "no host"),
        ("alpha:", "not a number"),
        ("alpha:http", "not a number"),
        ("alpha:+1", "not a number"),
        ("alpha:\u0661", "not a number"),
        ("alpha:0", "between 1 and 65535"),
        ("alpha:65536", "between 1 and 65535"),
        ("alpha:9999999999", "not a number"),
        ("::1:7000", "brackets"),
        ("[::1:7000", "brackets"),
        ("::1]:7000", "brackets"),
        ("[alpha]:7000", "no IPv6 address"),
        ("[127.0.0.1]:7000", "no IPv6 address"),
        ("al pha:7000", "no host name"),
        ("tcp://alpha:7000", "brackets"),
        ("-alpha:1", "no host name"),
        ("alpha\n:1", "no host name"),
        ("alpha\0:1", "no host name"),
    ],
)
def test_what_is_no_address_is_refused_with_the_form_to_write(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        transport().connect(text, 1)
    assert "host:port" in caught.value.hint


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    try:
        host, port = parse_address(text, any_port=True)
    except ConfigError:
        return
    assert host
    assert 0 <= port <= 65535


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
def test_bytes_arrive_in_order_both_ways(address: str) -> None:
    near, far = pair(address=address)
    near.send([b"one", bytearray(b""), memoryview(b"two")])
    far.send([b"three"])
    assert receive(far, 6) == b"onetwo"
    assert receive(near, 5) == b"three"
    near.close()
    far.close()


def test_a_listener_on_every_ipv6_address_takes_ipv4_too() -> None:
    tcp = transport()
    listener = tcp.listen("[::]:0")
    near = tcp.connect(f"127.0.0.1:{parse_address(listener.address)[1]}", WAIT_S)
    far = listener.accept()
    near.send([b"x"])
    assert far.receive_into(memoryview(bytearray(4))) == 1
    for each in (near, far, listener):
        each.close()


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=2000), max_size=12))
def test_any_buffers_arrive_as_they_were_sent(buffers: list[bytes]) -> None:
    near, far = pair()
    near.send(buffers)
    near.finish()
    whole = b"".join(buffers)
    assert receive(far, len(whole)) == whole
    assert far.receive_into(memoryview(bytearray(1))) == 0
    near.close()
    far.close()


def test_thousands_of_buffers_and_wide_items_go_out_in_one_call(
    streams: tuple[TcpStream, ...],
) -> None:
    near, far = streams
    wide = memoryview(bytearray(range(256)) * 4).cast("I")
    buffers = [bytes([i % 251]) * (i % 700) for i in range(5000)]
    sender = Worker(lambda: near.send([wide, *buffers]))
    whole = wide.tobytes() + b"".join(buffers)
    assert receive(far, len(whole)) == whole
    sender.finish()
    assert sender.error is None


def test_a_sender_waits_while_the_peer_does_not_read(streams: tuple[TcpStream, ...]) -> None:
    near, far = streams
    size = 64 << 20
    sender = Worker(lambda: near.send([bytes(size)]))
    wait_until_blocked(sender)
    assert receive(far, size) == bytes(size)
    sender.finish()
    assert sender.error is None


def test_both_sides_send_more_than_the_path_holds_at_once(streams: tuple[TcpStream, ...]) -> None:
    size = 32 << 20
    senders = [Worker(lambda stream=stream: stream.send([bytes(size)])) for stream in streams]
    receivers = [Worker(lambda stream=stream: receive(stream, size)) for stream in streams]
    for worker in senders + receivers:
        worker.finish()
        assert worker.error is None


def test_after_finish_the_peer_reads_an_end_and_may_still_send(
    streams: tuple[TcpStream, ...],
) -> None:
    near, far = streams
    near.send([b"last"])
    near.finish()
    near.finish()
    assert receive(far, 4) == b"last"
    assert far.receive_into(memoryview(bytearray(8))) == 0
    far.send([b"answer"])
    assert receive(near, 6) == b"answer"
    with pytest.raises(TransportError):
        near.send([b"more"])


def test_close_wakes_a_receiver(streams: tuple[TcpStream, ...]) -> None:
    near, _ = streams
    receiver = Worker(lambda: near.receive_into(memoryview(bytearray(8))))
    wait_until_blocked(receiver)
    near.close()
    receiver.finish()
    assert isinstance(receiver.error, TransportError)
    assert "closed here" in receiver.error.message


def test_close_wakes_a_sender(streams: tuple[TcpStream, ...]) -> None:
    near, _ = streams
    sender = Worker(lambda: near.send([bytes(64 << 20)]))
    wait_until_blocked(sender)
    near.close()
    sender.finish()
    assert isinstance(sender.error, TransportError)


def test_close_wakes_an_accept() -> None:
    listener = transport().listen("127.0.0.1:0")
    accept = Worker(listener.accept)
    wait_until_blocked(accept)
    listener.close()
    listener.close()
    accept.finish()
    assert isinstance(accept.error, TransportError)
    with pytest.raises(TransportError, match="closed here"):
        listener.accept()


def test_a_closed_stream_refuses_every_call_and_closing_twice_is_once(
    streams: tuple[TcpStream, ...],
) -> None:
    near, _ = streams
    near.close()
    near.close()
    near.finish()
    calls: tuple[Callable[[], object], ...] = (
        lambda: near.send([b"x"]),
        lambda: near.receive_into(memoryview(bytearray(1))),
    )
    for call in calls:
        with pytest.raises(TransportError, match="closed here"):
            call()


def test_a_descriptor_is_given_back_only_after_the_last_call_has_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        near, far = pair()
        receiver = Worker(lambda near=near: near.receive_into(memoryview(bytearray(8))))
        wait_until_blocked(receiver)
        near.close()
        far.close()
        receiver.finish()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_reset_by_the_peer_names_the_address_and_the_cause(
    streams: tuple[TcpStream, ...],
) -> None:
    near, far = streams
    # Data that the peer never reads makes its close a reset.
    near.send([b"unread"])
    wait_for_data = memoryview(bytearray(1))
    assert far.receive_into(wait_for_data) == 1
    far.close()
    with pytest.raises(TransportError, match="connection reset by peer") as caught:
        near.receive_into(memoryview(bytearray(1)))
    assert near.peer_address in caught.value.message
    assert caught.value.facts["errno"] == errno.ECONNRESET
    assert caught.value.hint


def test_nobody_listening_is_said_with_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(TransportError, match=f"127.0.0.1:{port}: connection refused") as caught:
        transport().connect(f"127.0.0.1:{port}", WAIT_S)
    assert "is the node running" in caught.value.hint


def test_a_peer_that_does_not_answer_is_given_up_within_the_timeout() -> None:
    # A full backlog drops the next connection's first packet, as a firewall would.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = f"127.0.0.1:{full.getsockname()[1]}"
        waiting = []
        started = time.monotonic()
        with pytest.raises(TransportError, match=r"no answer within 0\.3 s"):  # noqa: PT012
            for _ in range(8):
                waiting.append(transport().connect(address, 0.3))
        assert time.monotonic() - started < 5
        for stream in waiting:
            stream.close()


def test_a_name_without_an_address_is_said() -> None:
    with pytest.raises(TransportError, match="has no address"):
        transport().connect("no-such-host.invalid:7000", WAIT_S)


def test_a_taken_address_is_said() -> None:
    listener = transport().listen("127.0.0.1:0")
    with pytest.raises(TransportError, match="address already in use") as caught:
        transport().listen(listener.address)
    assert "another process" in caught.value.hint
    listener.close()


def test_an_address_of_another_host_is_said() -> None:
    with pytest.raises(TransportError, match="cannot assign requested address"):
        transport().listen("192.0.2.1:7000")


def test_a_connection_that_breaks_before_it_is_accepted_does_not_stop_the_listener() -> None:
    tcp = transport()
    listener = tcp.listen("127.0.0.1:0")
    host, port = parse_address(listener.address)
    with socket.create_connection((host, port)) as rude:
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    near = tcp.connect(listener.address, WAIT_S)
    near.send([b"x"])
    buffer = memoryview(bytearray(1))
    for _ in range(2):
        far = listener.accept()
        try:
            count = far.receive_into(buffer)
        except TransportError:
            continue
        finally:
            far.close()
        assert count == 1
        break
    near.close()
    listener.close()


def test_accept_goes_on_after_the_process_had_no_descriptors_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tcp = transport()
    listener = tcp.listen("127.0.0.1:0")
    near = tcp.connect(listener.address, WAIT_S)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    warned = threading.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warned.set()

    watch = Watch()
    logging.getLogger("novacron_native_sockets").addHandler(watch)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        accept = Worker(listener.accept)
        assert warned.wait(WAIT_S)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        logging.getLogger("novacron_native_sockets").removeHandler(watch)
    accept.finish()
    assert isinstance(accept.result, TcpStream)
    for each in (accept.result, near, listener):
        each.close()


def test_the_settings_reach_both_ends() -> None:
    settings = Settings(
        congestion_control="reno",
        max_rate_bytes_s=5_000_000_000,
        unsent_bytes=70_000,
        keepalive_idle_s=7,
        keepalive_interval_s=3,
        keepalive_probes=2,
        unacknowledged_timeout_s=4.5,
    )
    both = pair(settings)
    for stream in both:
        sock = stream._handle.sock
        tcp = {
            "nodelay": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            "idle": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            "interval": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            "probes": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            "timeout_ms": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            "unsent": sock.getsockopt(socket.IPPROTO_TCP, 25),
        }
        assert tcp == {
            "nodelay": 1,
            "idle": 7,
            "interval": 3,
            "probes": 2,
            "timeout_ms": 4500,
            "unsent": 70_000,
        }
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)[:5] == b"reno\0"
        rate = sock.getsockopt(socket.SOL_SOCKET, 47, 8)
        assert int.from_bytes(rate, "little") == 5_000_000_000
        stream.close()


def test_a_congestion_control_that_the_kernel_lacks_is_said_and_done_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    near, far = pair(Settings(congestion_control="novacronic"))
    near.send([b"x"])
    assert receive(far, 1) == b"x"
    assert "congestion control 'novacronic' is not to be had" in caplog.text
    near.close()
    far.close()


def test_a_paced_stream_keeps_near_its_rate() -> None:
    near, far = pair(Settings(max_rate_bytes_s=8_000_000))
    size = 4_000_000
    sender = Worker(lambda: near.send([bytes(size)]))
    started = time.monotonic()
    receive(far, size)
    took = time.monotonic() - started
    sender.finish()
    near.close()
    far.close()
    # The first window may go out at once.
    assert took > 0.3


@pytest.mark.parametrize("wrong", [{"unsent_bytes": -1}, {"backlog": 0}, {"keepalive_idle_s": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r">"):
        Settings(**wrong)  # type: ignore[arg-type]


def test_the_listener_says_where_it_listens() -> None:
    listener = transport().listen("[::1]:0")
    assert isinstance(listener, TcpListener)
    host, port = parse_address(listener.address)
    assert host == "::1"
    assert port > 0
    listener.close()
