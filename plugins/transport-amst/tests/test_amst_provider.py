"""The AMST transport on real sockets: its gauge, its addresses, its settings."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from novacron import ConfigError, NodeFacts, PathReading, TransportError
from novacron_native_sockets import TcpStream
from novacron_transport_amst import AmstTransport, Settings

WAIT_S = 10.0


def transport(**settings: Any) -> AmstTransport:
    return AmstTransport(Settings(**settings), NodeFacts(name="alpha", state_dir=Path("/none")))


def pair(amst: AmstTransport, address: str = "127.0.0.1:0") -> tuple[Any, Any]:
    listener = amst.listen(address)
    near = amst.connect(listener.address, WAIT_S)
    far = listener.accept()
    listener.close()
    return near, far


@pytest.fixture
def streams() -> Iterator[tuple[Any, Any]]:
    both = pair(transport())
    yield both
    for stream in both:
        stream.close()


def send_all(near: TcpStream, far: TcpStream, size: int) -> None:
    sender = threading.Thread(target=near.send, args=([bytes(size)],))
    sender.start()
    room = memoryview(bytearray(1 << 20))
    while size:
        size -= far.receive_into(room)
    sender.join(WAIT_S)


def has_bbr() -> bool:
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
        except OSError:
            return False
    return True


def test_a_gauge_tells_what_went_over_a_stream_and_how_long_a_round_trip_takes(
    streams: tuple[Any, Any],
) -> None:
    near, far = streams
    size = 4 << 20
    send_all(near, far, size)
    reading = near.gauge.read()
    assert isinstance(reading, PathReading)
    assert size <= reading.sent_bytes < 2 * size
    assert 0 < reading.delivered_bytes <= reading.sent_bytes + 1  # the first packet counts as one
    assert 0 < reading.min_rtt_s <= reading.rtt_s < 1
    assert reading.rate_bytes_per_s > 1 << 20
    assert reading.unsent_bytes == 0


def test_bbr_is_used_where_it_is_to_be_had_and_the_systems_choice_elsewhere(
    streams: tuple[Any, Any],
) -> None:
    used = streams[0].gauge.read().congestion_control
    assert used == "bbr" if has_bbr() else used


def test_a_congestion_control_that_is_named_is_used_on_both_ends() -> None:
    for stream in pair(transport(congestion_control="reno")):
        assert stream.gauge.read().congestion_control == "reno"
        stream.close()


def test_the_gauge_of_a_closed_stream_says_that_it_is_gone(streams: tuple[Any, Any]) -> None:
    near, _ = streams
    near.close()
    with pytest.raises(TransportError, match="closed here"):
        near.gauge.read()
    with pytest.raises(TransportError, match="closed here"):
        near.gauge.pace(1000)


def test_a_pace_reaches_the_socket_and_so_does_what_may_wait_in_it(
    streams: tuple[Any, Any],
) -> None:
    near, _ = streams
    near.gauge.pace(50_000_000)
    with near.socket("looking at") as sock:
        assert int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 47, 8), "little") == 50_000_000
        assert sock.getsockopt(socket.IPPROTO_TCP, 25) == 500_000
    near.gauge.pace(None)
    with near.socket("looking at") as sock:
        assert int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 47, 8), "little") == 2**64 - 1


def test_streams_come_from_the_local_addresses_in_turn() -> None:
    amst = transport(local_addresses=["127.0.0.2", "127.0.0.3"])
    listener = amst.listen("127.0.0.1:0")
    seen = []
    for _ in range(4):
        near = amst.connect(listener.address, WAIT_S)
        far = listener.accept()
        seen.append(far.peer_address.rpartition(":")[0])
        near.close()
        far.close()
    listener.close()
    assert seen == ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"]


def test_several_local_addresses_make_as_many_streams() -> None:
    amst = transport(local_addresses=["127.0.0.2", "127.0.0.3", "127.0.0.4"], streams_max=2)
    assert amst.steering().decide(0.0, [], backlog=True).streams == 3


def test_a_local_address_of_another_family_than_the_peers_is_said() -> None:
    amst = transport(local_addresses=["::1"])
    with pytest.raises(TransportError, match="from ::1: no address of the same family"):
        amst.connect("127.0.0.1:9", 1.0)


def test_a_local_address_that_this_host_has_not_is_said() -> None:
    with pytest.raises(TransportError, match=r"from 192\.0\.2\.1: cannot assign"):
        transport(local_addresses=["192.0.2.1"]).connect("127.0.0.1:9", 1.0)


def test_ipv6_works_with_a_local_address_too() -> None:
    near, far = pair(transport(local_addresses=["::1"]), "[::1]:0")
    send_all(near, far, 100_000)
    near.close()
    far.close()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"local_addresses": ["eth0"]}, "'eth0' is no IP address"),
        ({"streams_min": 5, "streams_max": 4}, "streams_max 4 is less than streams_min 5"),
    ],
)
def test_settings_that_contradict_are_refused_with_what_to_write(
    wrong: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        transport(**wrong)
    assert refused.value.hint


@pytest.mark.parametrize(
    "wrong", [{"streams_max": 0}, {"streams_max": 65}, {"share_max": 0.0}, {"share_max": 1.1}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Settings(**wrong)
