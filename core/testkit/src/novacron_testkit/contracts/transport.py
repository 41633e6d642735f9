"""The laws of a transport."""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from novacron import Buffer, ConfigError, Listener, Stream, Transport, TransportError

from novacron_testkit.contracts.support import Call, Contract, short_folder

_MIB = 1 << 20
# More than any transport may swallow while nobody reads.
_NOBODY_READS_BYTES = 96 * _MIB


def receive_exactly(stream: Stream, count: int) -> bytes:
    """So many bytes; fewer if the peer finishes before."""
    data = bytearray(count)
    view = memoryview(data)
    got = 0
    while got < count:
        more = stream.receive_into(view[got:])
        assert 0 <= more <= count - got, f"receive_into said {more} for {count - got} bytes of room"
        if more == 0:
            break
        got += more
    return bytes(view[:got])


def receive_all(stream: Stream) -> bytes:
    """Everything until the peer has finished."""
    data = bytearray()
    room = memoryview(bytearray(256 * 1024))
    while count := stream.receive_into(room):
        data += room[:count]
    return bytes(data)


def send_and_finish(stream: Stream, *buffers: Buffer) -> None:
    stream.send(buffers)
    stream.finish()


def _send_in_pieces(stream: Stream, data: bytes) -> None:
    for at in range(0, len(data), 777):
        stream.send([data[at : at + 777]])


class TransportContract(Contract):
    """Subclass it, set ``provider``; and `listen_address` if the usual ones will not do."""

    connect_timeout_s: ClassVar[float] = 3.0

    def listen_address(self, transport: Transport, folder: Path) -> str:
        """An address to listen at. Tries loopback, memory, a unix socket."""
        for address in ("127.0.0.1:0", "memory:0", f"unix:{folder}/s", f"{folder}/s"):
            try:
                transport.listen(address).close()
            except (ConfigError, TransportError):
                continue
            return address
        pytest.fail("override listen_address: the transport takes none of the usual addresses")

    @contextlib.contextmanager
    def listening(self, tmp_path: Path) -> Iterator[tuple[Transport, Listener]]:
        with short_folder() as folder:
            transport: Transport = self.make(tmp_path)
            listener = transport.listen(self.listen_address(transport, folder))
            try:
                yield transport, listener
            finally:
                listener.close()

    @contextlib.contextmanager
    def pair(self, tmp_path: Path) -> Iterator[tuple[Stream, Stream]]:
        """Both ends of a new stream: who connected, who accepted."""
        with self.listening(tmp_path) as (transport, listener):
            accepting = Call(listener.accept)
            near: Stream = Call(transport.connect, listener.address, self.connect_timeout_s).result(
                self.deadline_s
            )
            far = accepting.result(self.deadline_s)
            try:
                yield near, far
            finally:
                near.close()
                far.close()

    def _in_time(self, call: Any, *args: Any) -> Any:
        return Call(call, *args).result(self.deadline_s)

    def test_bytes_arrive_in_order_both_ways(self, tmp_path: Path) -> None:
        with self.pair(tmp_path) as (near, far):
            for stream, peer in ((near, far), (far, near)):
                data = random.Random(1).randbytes(200_000)
                sending = Call(_send_in_pieces, stream, data)
                assert self._in_time(receive_exactly, peer, len(data)) == data
                sending.result(self.deadline_s)

    def test_several_buffers_of_any_kind_arrive_one_after_the_other(self, tmp_path: Path) -> None:
        with self.pair(tmp_path) as (near, far):
            buffers = [b"one", bytearray(b"two"), b"", memoryview(b"-three-")[1:-1], b"four"]
            self._in_time(near.send, buffers)
            self._in_time(near.send, [])
            self._in_time(near.send, [b""])
            self._in_time(near.send, [b"."])
            assert self._in_time(receive_exactly, far, 16) == b"onetwothreefour."

    def test_thousands_of_buffers_in_one_send_arrive(self, tmp_path: Path) -> None:
        with self.pair(tmp_path) as (near, far):
            buffers = [number.to_bytes(4, "big") * (number % 5) for number in range(5000)]
            whole = b"".join(buffers)
            sending = Call(near.send, buffers)
            assert self._in_time(receive_exactly, far, len(whole)) == whole
            sending.result(self.deadline_s)

    def test_a_send_larger_than_any_buffer_arrives_whole(self, tmp_path: Path) -> None:
        with self.pair(tmp_path) as (near, far):
            data = random.Random(2).randbytes(24 * _MIB)
            sending = Call(send_and_finish, near, data[:100], data[100:])
            got = self._in_time(receive_all, far)
            sending.result(self.deadline_s)
            assert len(got) == len(data)
            assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()

    def test_receiving_stores_no_more_than_there_is_room_for(self, tmp_path: Path) -> None:
        with self.pair(tmp_path) as (near, far):
            self._in_time(near.send, [b"abc"])
            room = bytearray(b"....")
            for expected in (b".a..", b".b..", b".c.."):
                assert self._in_time(far.receive_into, memoryview(room)[1:2]) == 1
                assert bytes(room) == expected

    def test_both_directions_run_at_once(self, tmp_path: Path) -> None:
        with self.pair(tmp_path) as (near, far):
            data = {near: random.Random(3).randbytes(8 * _MIB), far: bytes(8 * _MIB)}
            calls = [Call(send_and_finish, stream, data[stream]) for stream in (near, far)]
            reading = {s: Call(receive_all, s) for s in (near, far)}
            assert reading[far].result(self.deadline_s) == data[near]
            assert reading[near].result(self.deadline_s) == data[far]
            for call in calls:
                call.result(self.deadline_s)

    def test_a_sender_blocks_while_nobody_reads_and_goes_on_when_somebody_does(
        self, tmp_path: Path
    ) -> None:
        with self.pair(tmp_path) as (near, far):
            piece = random.Random(4).randbytes(256 * 1024)
            count = _NOBODY_READS_BYTES // len(piece)
            accepted = [0]

            def pour() -> None:
                for _ in range(count):
                    near.send([piece])
                    accepted[0] += 1
                near.finish()

            pouring = Call(pour)
            # A transport that takes everything is done with it long before this.
            assert not pouring.done.wait(1.5), (
                f"{_NOBODY_READS_BYTES} bytes were taken and nobody reads them"
            )
            assert accepted[0] < count
            digest, total = hashlib.sha256(), 0
            room = memoryview(bytearray(_MIB))
            while got := self._in_time(far.receive_into, room):
                digest.update(room[:got])
                total += got
            pouring.result(self.deadline_s)
            assert total == count * len(piece)
            assert digest.digest() == hashlib.sha256(piece * count).digest()

    def test_finishing_ends_one_direction_and_the_other_goes_on(self, tmp_path: Path) -> None:
        with self.pair(tmp_path) as (near, far):
            self._in_time(near.send, [b"question"])
            near.finish()
            near.finish()
            assert self._in_time(receive_all, far) == b"question"
            self._in_time(far.send, [b"answer"])
            assert self._in_time(receive_exactly, near, 6) == b"answer"
            far.finish()
            assert self._in_time(near.receive_into, memoryview(bytearray(1))) == 0

    def test_bytes_sent_before_the_finish_all_arrive(self, tmp_path: Path) -> None:
        with self.pair(tmp_path) as (near, far):
            data = random.Random(5).randbytes(_MIB)
            sending = Call(send_and_finish, near, data)
            assert self._in_time(receive_all, far) == data
            sending.result(self.deadline_s)

    def test_a_peer_that_vanishes_ends_receiving(self, tmp_path: Path) -> None:
        with self.pair(tmp_path) as (near, far):
            receiving = Call(near.receive_into, memoryview(bytearray(10)))
            far.close()
            error = receiving.error(self.deadline_s)
            assert error is None or isinstance(error, TransportError)
            assert error is not None or receiving.result(0) == 0

    def test_a_peer_that_vanishes_makes_sending_fail(self, tmp_path: Path) -> None:
        with self.pair(tmp_path) as (near, far):
            piece = bytes(256 * 1024)

            def pour() -> None:
                for _ in range(_NOBODY_READS_BYTES // len(piece)):
                    near.send([piece])

            pouring = Call(pour)
            assert self._in_time(far.receive_into, memoryview(bytearray(10))) > 0
            far.close()
            assert isinstance(pouring.error(self.deadline_s), TransportError)

    def test_closing_wakes_a_receiver_with_transport_error(self, tmp_path: Path) -> None:
        with self.pair(tmp_path) as (near, _):
            receiving = Call(near.receive_into, memoryview(bytearray(10)))
            assert not receiving.done.wait(0.1)
            near.close()
            assert isinstance(receiving.error(self.deadline_s), TransportError)

    def test_closing_wakes_a_sender_with_transport_error(self, tmp_path: Path) -> None:
        with self.pair(tmp_path) as (near, _):
            sending = Call(near.send, [bytes(_NOBODY_READS_BYTES)])
            assert not sending.done.wait(0.3)
            near.close()
            assert isinstance(sending.error(self.deadline_s), TransportError)

    def test_closing_a_listener_wakes_accept_with_transport_error(self, tmp_path: Path) -> None:
        with self.listening(tmp_path) as (_, listener):
            accepting = Call(listener.accept)
            assert not accepting.done.wait(0.1)
            listener.close()
            assert isinstance(accepting.error(self.deadline_s), TransportError)
            assert isinstance(Call(listener.accept).error(self.deadline_s), TransportError)

    def test_a_closed_stream_gives_transport_error_and_closing_twice_is_once(
        self, tmp_path: Path
    ) -> None:
        with self.pair(tmp_path) as (near, far):
            for stream in (near, far):
                stream.close()
                stream.close()
            with pytest.raises(TransportError):
                self._in_time(near.send, [b"x"])
            with pytest.raises(TransportError):
                self._in_time(near.receive_into, memoryview(bytearray(1)))

    def test_closing_a_listener_twice_is_once(self, tmp_path: Path) -> None:
        with self.listening(tmp_path) as (_, listener):
            listener.close()
            listener.close()

    def test_streams_outlive_their_listener(self, tmp_path: Path) -> None:
        with self.listening(tmp_path) as (transport, listener):
            accepting = Call(listener.accept)
            near = self._in_time(transport.connect, listener.address, self.connect_timeout_s)
            far = accepting.result(self.deadline_s)
            listener.close()
            try:
                self._in_time(near.send, [b"still here"])
                assert self._in_time(receive_exactly, far, 10) == b"still here"
            finally:
                near.close()
                far.close()

    def test_connecting_to_nobody_gives_transport_error_in_time_that_names_the_address(
        self, tmp_path: Path
    ) -> None:
        with self.listening(tmp_path) as (transport, listener):
            address = listener.address
            listener.close()
            begun = time.monotonic()
            with pytest.raises(TransportError) as one:
                self._in_time(transport.connect, address, 2.0)
            assert time.monotonic() - begun < 4.0
            assert address in str(one.value), "the error does not name the address"

    def test_an_address_that_is_taken_gives_transport_error(self, tmp_path: Path) -> None:
        with self.listening(tmp_path) as (transport, listener), pytest.raises(TransportError):
            transport.listen(listener.address).close()

    def test_an_address_that_is_none_gives_config_error(self, tmp_path: Path) -> None:
        transport: Transport = self.make(tmp_path)
        for address in ("", "\x00"):
            with pytest.raises(ConfigError):
                transport.listen(address).close()

    def test_streams_of_one_listener_do_not_touch_each_other(self, tmp_path: Path) -> None:
        with self.listening(tmp_path) as (transport, listener):
            pairs: list[tuple[Stream, Stream]] = []
            try:
                for _ in range(4):
                    accepting = Call(listener.accept)
                    near = self._in_time(
                        transport.connect, listener.address, self.connect_timeout_s
                    )
                    pairs.append((near, accepting.result(self.deadline_s)))
                for number, (near, _) in enumerate(pairs):
                    self._in_time(near.send, [bytes([number]) * 100])
                pairs[0][0].close()
                for number, (_, far) in reversed(list(enumerate(pairs))):
                    if number:
                        assert self._in_time(receive_exactly, far, 100) == bytes([number]) * 100
            finally:
                for near, far in pairs:
                    near.close()
                    far.close()

    def test_both_ends_say_who_is_at_the_other(self, tmp_path: Path) -> None:
        with self.listening(tmp_path) as (_, listener):
            assert listener.address
        with self.pair(tmp_path) as (near, far):
            assert isinstance(near.peer_address, str)
            assert near.peer_address
            assert isinstance(far.peer_address, str)
