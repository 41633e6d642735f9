"""What this package promises by itself; the transports' tests hold the rest."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from novacron_native_sockets import (
    Errors,
    Options,
    TcpStream,
    bbr_info,
    congestion_control,
    connect,
    listen,
    pace,
    restart_congestion_control,
    tcp_info,
)


class Broken(Exception):
    """What the network did."""

    def __init__(self, message: str, *, hint: str = "", **facts: object) -> None:
        super().__init__(message)
        self.hint = hint


class Wrong(Broken):
    """What the user wrote."""


ERRORS = Errors(Broken, Wrong)


@pytest.fixture
def streams() -> Iterator[tuple[TcpStream, TcpStream]]:
    listener = listen("127.0.0.1:0", Options(), ERRORS)
    near = connect(listener.address, 5.0, Options(), ERRORS)
    far = listener.accept()
    listener.close()
    yield near, far
    near.close()
    far.close()


def test_the_errors_raised_are_those_that_were_given() -> None:
    with pytest.raises(Wrong) as wrong:
        connect("nowhere", 1.0, Options(), ERRORS)
    assert "host:port" in wrong.value.hint
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(Broken, match="connection refused"):
        connect(address, 1.0, Options(), ERRORS)


def test_the_kernel_tells_of_a_connection(streams: tuple[TcpStream, TcpStream]) -> None:
    near, far = streams
    near.send([bytes(100_000)])
    left = 100_000
    while left:
        left -= far.receive_into(memoryview(bytearray(1 << 16)))
    near.send([b"x"])  # what has arrived was told by then
    far.receive_into(memoryview(bytearray(1)))
    with near.socket("looking at") as sock:
        info = tcp_info(sock)
    assert info.sent_bytes == 100_001
    assert 0 < info.arrived_bytes <= 100_002
    assert info.resent_bytes == 0
    assert not info.repairing
    assert info.congestion_window >= 1
    assert 500 < info.segment_bytes <= 65536
    assert 0 < info.min_rtt_s <= info.rtt_s < 5


def test_bbr_tells_its_own_figures_and_others_none() -> None:
    for name in ("bbr", "reno"):
        with socket.socket() as sock:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            except OSError:
                continue  # this kernel has it not
            assert congestion_control(sock) == name
            found = bbr_info(sock)
            assert (found is None) == (name != "bbr")
            assert found is None or found.rate >= 0


def test_a_congestion_control_that_begins_anew_is_still_the_same(
    streams: tuple[TcpStream, TcpStream],
) -> None:
    near, far = streams
    with near.socket("restarting") as sock:
        for name in ("bbr", "reno", "cubic"):
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            except OSError:
                continue  # this kernel has it not
            restart_congestion_control(sock)
            assert congestion_control(sock) == name
            found = bbr_info(sock)
            assert found is None or found.searching
    near.send([b"still here"])
    assert far.receive_into(memoryview(bytearray(16))) == 10


def test_a_pace_can_be_set_and_lifted() -> None:
    with socket.socket() as sock:
        for rate, kept in ((1_000_000, 1_000_000), (0, 1), (None, 2**64 - 1)):
            pace(sock, rate)
            raw = sock.getsockopt(socket.SOL_SOCKET, getattr(socket, "SO_MAX_PACING_RATE", 47), 8)
            assert int.from_bytes(raw, "little") == kept


def test_a_socket_cannot_be_had_of_a_closed_stream(streams: tuple[TcpStream, TcpStream]) -> None:
    near, _ = streams
    near.close()
    with (
        pytest.raises(Broken, match=r"measuring the stream to .*closed here"),
        near.socket("measuring"),
    ):
        pass


def test_closing_waits_for_those_who_have_the_socket(
    streams: tuple[TcpStream, TcpStream],
) -> None:
    near, _ = streams
    with near.socket("holding") as sock:
        closing = threading.Thread(target=near.close)
        closing.start()
        closing.join(5)
        assert sock.fileno() >= 0
    assert sock.fileno() == -1
