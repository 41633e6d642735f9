"""Messages and requests over streams: bounds, hostile bytes, streams that break, answers in any
order."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import socket
import threading
from collections.abc import Iterator, Sequence

import msgspec
import pytest
from attrs import define
from hypothesis import given
from hypothesis import strategies as st
from novacron_agreement import Reason
from novacron_agreement.client import Client, Unanswered
from novacron_agreement.forwarding import (
    Kind,
    Outcome,
    Remote,
    Request,
    Settle,
    decode_answer,
    decode_request,
    serve,
)
from novacron_agreement.peers import HEADER, OUTBOX_BYTES, FrameError, Outbox, Peers, frames


@define(eq=False)
class SocketStream:
    """A stream over one end of a pair of sockets."""

    socket: socket.socket

    def send(self, buffers: Sequence[bytes]) -> None:
        self.socket.sendall(b"".join(buffers))

    def receive_into(self, buffer: memoryview) -> int:
        return self.socket.recv_into(buffer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def pair() -> Iterator[tuple[SocketStream, SocketStream]]:
    left, right = socket.socketpair()
    with left, right:
        yield SocketStream(left), SocketStream(right)


def framed(*payloads: bytes) -> bytes:
    return b"".join(HEADER.pack(len(one)) + one for one in payloads)


@define
class Bytes:
    """A stream that gives certain bytes in certain pieces."""

    data: bytes
    piece: int = 1 << 20

    def send(self, buffers: Sequence[bytes]) -> None:
        raise AssertionError

    def receive_into(self, buffer: memoryview) -> int:
        given, self.data = self.data[: self.piece], self.data[self.piece :]
        buffer[: len(given)] = given
        return len(given)

    def close(self) -> None:
        pass


@given(st.lists(st.binary(max_size=200), max_size=20), st.integers(1, 50))
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    payloads: list[bytes], piece: int
) -> None:
    assert list(frames(Bytes(framed(*payloads), piece), 200)) == payloads


def test_a_frame_that_is_too_long_is_refused_before_it_is_stored() -> None:
    stream = Bytes(framed(b"fine") + HEADER.pack(1 << 31) + b"x" * 100)
    found = frames(stream, 1000)
    assert next(found) == b"fine"
    with pytest.raises(FrameError, match="2147483648 bytes"):
        next(found)


def test_a_stream_that_ends_within_a_frame_is_an_error() -> None:
    with pytest.raises(FrameError, match="within a frame"):
        list(frames(Bytes(framed(b"whole")[:-1]), 1000))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_sound_request_or_answer_or_refused(data: bytes) -> None:
    for decode in (decode_request, decode_answer):
        with contextlib.suppress(FrameError):
            decode(data)


def test_requests_that_were_changed_are_sound_or_refused() -> None:
    chance = random.Random(6)
    sound = msgspec.msgpack.encode(Request(7, "propose", b"command" * 10))
    for _ in range(3000):
        data = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(FrameError):
            decode_request(bytes(data))


def test_what_a_peer_does_not_read_is_dropped_and_not_kept_without_end() -> None:
    outbox = Outbox()
    for _ in range(40):
        outbox.put(b"x" * (1 << 20))
    assert outbox.dropped > 0
    kept = 0
    while taken := outbox.take(wait=False):
        kept += sum(map(len, taken[1::2]))
    assert kept <= OUTBOX_BYTES + (2 << 20)
    outbox.put(b"again")
    assert outbox.take() == [HEADER.pack(5), b"again"]
    outbox.wake()
    assert outbox.take() == []
    outbox.end()
    assert outbox.take() is None


def test_messages_arrive_with_their_senders_name_and_a_broken_stream_is_dialled_anew() -> None:
    got: queue.Queue[tuple[str, bytes]] = queue.Queue()
    streams: queue.Queue[socket.socket] = queue.Queue()

    def never(peer: str, address: str) -> SocketStream:
        raise AssertionError("it only receives")

    def deliver(name: str, message: bytes) -> None:
        got.put((name, message))

    receiver = Peers(never, deliver)

    def open_stream(peer: str, address: str) -> SocketStream:
        assert (peer, address) == ("b", "there")
        left, right = socket.socketpair()
        streams.put(left)
        streams.put(right)
        stream = SocketStream(right)

        def receive() -> None:
            with contextlib.suppress(OSError):  # the test has closed it
                receiver.receive_from("a", stream)

        threading.Thread(target=receive, daemon=True).start()
        return SocketStream(left)

    sender = Peers(open_stream, lambda *_: None)
    sender.know({"b": "there"})
    sender.send("b", b"one")
    assert got.get(timeout=10) == ("a", b"one")
    assert sender.states() == {"b": ""}
    left = streams.get()
    left.shutdown(socket.SHUT_RDWR)
    while True:  # what is sent until it is noticed is lost
        sender.send("b", b"two")
        with contextlib.suppress(queue.Empty):
            assert got.get(timeout=0.05) == ("a", b"two")
            break
    sender.close()
    receiver.close()
    left.close()
    while not streams.empty():
        streams.get().close()


def test_a_peer_that_cannot_be_reached_costs_nobody_a_wait_and_is_named() -> None:
    tried = threading.Event()

    def open_stream(peer: str, address: str) -> SocketStream:
        tried.set()
        raise ConnectionRefusedError("nobody listens")

    peers = Peers(open_stream, lambda *_: None)
    for _ in range(100):
        peers.send("b", b"x")
    assert tried.wait(10)
    while peers.states()["b"] != "nobody listens":
        peers.send("b", b"x")
    peers.close()


def echo(kind: Kind, command: bytes, settle: Settle) -> None:
    settle(Outcome(answer=kind.encode() + b":" + command))


def test_many_requests_under_way_are_answered_in_any_order() -> None:
    with pair() as (ours, theirs):
        held: list[tuple[bytes, Settle]] = []
        all_here = threading.Event()

        def submit(kind: Kind, command: bytes, settle: Settle) -> None:
            held.append((command, settle))
            if len(held) == 20:
                all_here.set()

        server = threading.Thread(target=serve, args=(theirs, submit))
        server.start()
        remote = Remote(ours)
        got: queue.Queue[tuple[int, bytes]] = queue.Queue()

        def ask(number: int) -> None:
            remote.ask("query", b"%d" % number, lambda found: got.put((number, found.answer)))

        for number in range(20):
            ask(number)
        assert all_here.wait(10)
        for command, settle in reversed(held):
            settle(Outcome(answer=b"answer to " + command))
        found = [got.get(timeout=10) for _ in range(20)]
        assert found == [(n, b"answer to %d" % n) for n in reversed(range(20))]
        remote.close()
        server.join(10)


def test_when_the_stream_breaks_whoever_waits_is_in_doubt_and_so_is_whoever_comes_later() -> None:
    with pair() as (ours, theirs):
        remote = Remote(ours)
        got: queue.Queue[Outcome] = queue.Queue()
        remote.ask("propose", b"x", got.put)
        theirs.close()
        assert got.get(timeout=10).reason == Reason.UNCERTAIN
        assert remote.broken.wait(10)
        remote.ask("propose", b"y", got.put)
        assert got.get(timeout=10).reason == Reason.UNCERTAIN


def test_a_server_closes_a_stream_that_carries_no_requests() -> None:
    with pytest.raises(FrameError):
        serve(Bytes(framed(b"no request")), echo)


@define(eq=False)
class Members:
    """Members of which one leads, each behind a stream of its own."""

    leader: str
    asked: list[str]
    sockets: list[socket.socket]

    def open_stream(self, name: str) -> SocketStream:
        left, right = socket.socketpair()
        self.sockets += [left, right]

        def submit(kind: Kind, command: bytes, settle: Settle) -> None:
            self.asked.append(name)
            if command == b"senseless":
                settle(Outcome(Reason.INVALID, b"it makes no sense"))
            elif name != self.leader:
                settle(Outcome(Reason.NOT_LEADER, leader=self.leader))
            else:
                echo(kind, command, settle)

        threading.Thread(target=serve, args=(SocketStream(right), submit), daemon=True).start()
        return SocketStream(left)


def client_of(members: Members) -> Client:
    return Client(members.open_stream, lambda: ["a", "b", "c"], lambda: None)


def test_a_client_is_sent_to_the_leader_and_stays_with_it() -> None:
    members = Members("c", [], [])
    client = client_of(members)

    async def work() -> None:
        assert await client.ask("propose", b"1", 10) == b"propose:1"
        assert await client.ask("query", b"2", 10) == b"query:2"
        members.leader = "b"
        assert await client.ask("query", b"3", 10) == b"query:3"

    asyncio.run(work())
    assert members.asked == ["a", "c", "c", "c", "b"]
    client.close()
    for one in members.sockets:
        one.close()


def test_what_makes_no_sense_is_not_asked_again() -> None:
    members = Members("a", [], [])
    client = client_of(members)
    with pytest.raises(Unanswered, match="it makes no sense") as caught:
        asyncio.run(client.ask("manage", b"senseless", 10))
    assert not caught.value.in_doubt
    assert members.asked == ["a"]
    client.close()
    for one in members.sockets:
        one.close()


def test_a_client_that_reaches_nobody_says_what_was_wrong() -> None:
    def open_stream(name: str) -> SocketStream:
        raise ConnectionRefusedError(f"nobody listens at {name}")

    client = Client(open_stream, lambda: ["a"], lambda: None)
    with pytest.raises(Unanswered, match="nobody listens at a") as caught:
        asyncio.run(client.ask("propose", b"x", 0.1))
    assert not caught.value.in_doubt
