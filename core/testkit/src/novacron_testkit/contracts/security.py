"""The laws of the channels between nodes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen
from novacron import (
    PeerProtocolError,
    SecureStream,
    Security,
    Stream,
    TransportError,
    Untrusted,
)

from novacron_testkit.contracts.support import Call, Contract
from novacron_testkit.contracts.transport import receive_all, receive_exactly, send_and_finish
from novacron_testkit.fakes import FakeWire

_MIB = 1 << 20
# What a stream may raise when somebody has tampered with it.
BROKEN = (TransportError, PeerProtocolError, Untrusted)
REFUSED = (Untrusted, TransportError)


@frozen(kw_only=True)
class TrustSetup:
    """The nodes of a security contract, each ready to speak.

    Attributes:
        alpha, beta: Trust each other. Their names differ.
        stranger: Bears beta's name, but its trust root is another one: it neither is trusted nor
            trusts. None of its bytes may be believed.
        intruder: As the stranger, but it trusts everybody that alpha does, so that only the other
            side can refuse it. None if such a node cannot be made: the tests with it are skipped.
    """

    alpha: Security
    beta: Security
    stranger: Security
    intruder: Security | None = None


class SecurityContract(Contract):
    """Subclass it, set ``provider`` and write `trust`."""

    def trust(self, tmp_path: Path) -> TrustSetup:
        """Make the nodes. Called once or more per test, always with an empty folder."""
        raise NotImplementedError("write trust(): two nodes that trust each other and a stranger")

    def _close(self, *streams: Stream) -> None:
        for stream in streams:
            stream.close()

    def _shake(
        self, wire: FakeWire, client: Security, server: Security, node: str
    ) -> tuple[SecureStream, SecureStream]:
        serving = Call(server.server, wire.right)
        near = Call(client.client, wire.left, node).result(self.deadline_s)
        return near, serving.result(self.deadline_s)

    @contextlib.contextmanager
    def _joined(
        self, setup: TrustSetup, wire: FakeWire | None = None
    ) -> Iterator[tuple[SecureStream, SecureStream, FakeWire]]:
        wire = wire or FakeWire()
        beta = setup.beta.identity().node
        near, far = self._shake(wire, setup.alpha, setup.beta, beta)
        try:
            yield near, far, wire
        finally:
            self._close(near, far)
            wire.close()

    def _refuse(
        self, client: Security, server: Security, node: str
    ) -> tuple[BaseException | None, BaseException | None]:
        """A handshake that must fail: what each side raised, at once or at its first use."""
        wire = FakeWire()

        def serve() -> bytes:
            stream = server.server(wire.right)
            try:
                return receive_all(stream)
            finally:
                stream.close()

        def call() -> bytes:
            stream = client.client(wire.left, node)
            try:
                stream.send([b"secret"])
                stream.finish()
                return receive_all(stream)
            finally:
                stream.close()

        serving, calling = Call(serve), Call(call)
        try:
            near = calling.error(self.deadline_s)
            far = serving.error(self.deadline_s)
        finally:
            wire.close()
        if far is None:
            assert serving.result(0) == b"", "bytes of an untrusted peer were delivered"
        return near, far

    def _is_closed(self, wire: FakeWire, ours: Stream, peer: Stream) -> None:
        """Who refused has closed its stream: it is of no more use, and the peer learns of it."""
        with pytest.raises(TransportError):
            Call(ours.send, [b"x"]).result(self.deadline_s)
        Call(_drain, peer).result(self.deadline_s)
        wire.close()

    def test_both_sides_know_each_other(self, tmp_path: Path) -> None:
        setup = self.trust(tmp_path)
        alpha, beta = setup.alpha.identity(), setup.beta.identity()
        assert alpha.node != beta.node
        assert alpha.fingerprint != beta.fingerprint
        assert alpha.trust_domain == beta.trust_domain
        with self._joined(setup) as (near, far, _):
            assert near.peer == beta
            assert far.peer == alpha

    def test_the_channel_says_what_protects_it(self, tmp_path: Path) -> None:
        with self._joined(self.trust(tmp_path)) as (near, far, _):
            assert near.channel == far.channel
            assert near.channel.protocol
            assert near.channel.cipher
            assert near.channel.key_exchange

    def test_bytes_arrive_in_order_from_several_buffers_of_any_kind(self, tmp_path: Path) -> None:
        with self._joined(self.trust(tmp_path)) as (near, far, _):
            Call(near.send, [b"one", bytearray(b"two"), b"", memoryview(b"three")]).result(
                self.deadline_s
            )
            Call(near.send, [b"!"]).result(self.deadline_s)
            got = Call(receive_exactly, far, 12).result(self.deadline_s)
            assert got == b"onetwothree!"

    def test_large_sends_run_both_ways_at_once(self, tmp_path: Path) -> None:
        # A wire with small buffers: an implementation that holds a lock while it sends hangs here.
        with self._joined(self.trust(tmp_path), FakeWire(64 * 1024)) as (near, far, _):
            data = {near: random.Random(1).randbytes(6 * _MIB), far: bytes(6 * _MIB)}
            sending = [Call(send_and_finish, stream, data[stream]) for stream in (near, far)]
            reading = {s: Call(receive_all, s) for s in (near, far)}
            assert reading[far].result(self.deadline_s) == data[near]
            assert reading[near].result(self.deadline_s) == data[far]
            for call in sending:
                call.result(self.deadline_s)

    def test_finishing_ends_one_direction_and_the_other_goes_on(self, tmp_path: Path) -> None:
        with self._joined(self.trust(tmp_path)) as (near, far, _):
            near.send([b"question"])
            near.finish()
            near.finish()
            assert Call(receive_all, far).result(self.deadline_s) == b"question"
            far.send([b"answer"])
            assert Call(receive_exactly, near, 6).result(self.deadline_s) == b"answer"
            far.finish()
            assert Call(receive_all, near).result(self.deadline_s) == b""

    def test_another_node_than_the_one_asked_for_is_untrusted(self, tmp_path: Path) -> None:
        setup = self.trust(tmp_path)
        for wrong in ("gamma", setup.alpha.identity().node):
            near, far = self._refuse(setup.alpha, setup.beta, wrong)
            assert isinstance(near, Untrusted), f"asked for {wrong}, met beta, got {near!r}"
            assert far is None or isinstance(far, REFUSED)

    def test_a_stranger_that_serves_is_untrusted(self, tmp_path: Path) -> None:
        setup = self.trust(tmp_path)
        near, far = self._refuse(setup.alpha, setup.stranger, setup.beta.identity().node)
        assert isinstance(near, Untrusted)
        assert isinstance(far, REFUSED)

    def test_a_stranger_that_connects_is_refused_on_both_sides(self, tmp_path: Path) -> None:
        setup = self.trust(tmp_path)
        near, far = self._refuse(setup.stranger, setup.alpha, setup.alpha.identity().node)
        assert isinstance(near, Untrusted)
        assert isinstance(far, REFUSED)

    def test_an_intruder_that_trusts_us_is_untrusted_all_the_same(self, tmp_path: Path) -> None:
        setup = self.trust(tmp_path)
        if setup.intruder is None:
            pytest.skip("trust() makes no intruder")
        near, far = self._refuse(setup.intruder, setup.alpha, setup.alpha.identity().node)
        assert isinstance(far, Untrusted), f"the server let the intruder in ({far!r})"
        assert isinstance(near, REFUSED)
        near, far = self._refuse(setup.alpha, setup.intruder, setup.beta.identity().node)
        assert isinstance(near, Untrusted), f"the client let the intruder in ({near!r})"
        assert far is None or isinstance(far, REFUSED)

    def test_a_peer_that_speaks_plaintext_is_refused_and_its_stream_closed(
        self, tmp_path: Path
    ) -> None:
        setup = self.trust(tmp_path)
        for greeting in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 64, b"\xff" * 64):
            wire = FakeWire()
            wire.left.send([greeting])
            wire.left.finish()
            with pytest.raises(REFUSED):
                Call(setup.beta.server, wire.right).result(self.deadline_s)
            self._is_closed(wire, wire.right, wire.left)
            wire = FakeWire()
            wire.right.send([greeting])
            wire.right.finish()
            with pytest.raises(REFUSED):
                Call(setup.alpha.client, wire.left, "beta").result(self.deadline_s)
            self._is_closed(wire, wire.left, wire.right)

    def test_an_untrusted_peer_leaves_our_stream_closed(self, tmp_path: Path) -> None:
        setup = self.trust(tmp_path)
        wire = FakeWire()
        serving = Call(setup.stranger.server, wire.right)
        with pytest.raises(Untrusted):
            Call(setup.alpha.client, wire.left, setup.beta.identity().node).result(self.deadline_s)
        self._is_closed(wire, wire.left, wire.right)
        serving.error(self.deadline_s)

    def test_a_handshake_with_a_silent_peer_ends_when_the_stream_is_closed(
        self, tmp_path: Path
    ) -> None:
        setup = self.trust(tmp_path)
        for silent in (True, False):
            wire = FakeWire()
            if silent:
                waiting = Call(setup.beta.server, wire.right)
            else:
                waiting = Call(setup.alpha.client, wire.left, "beta")
            assert not waiting.done.wait(0.05)
            wire.close()
            assert isinstance(waiting.error(self.deadline_s), REFUSED)

    def test_a_handshake_that_ends_at_any_byte_fails_cleanly(self, tmp_path: Path) -> None:
        setup = self.trust(tmp_path)
        beta = setup.beta.identity().node
        with self._joined(setup) as (_, _, wire):
            # The server may send more than its handshake at once (tickets): those bytes are past
            # the point, so only the beginning of its lane is cut.
            lengths = {"to_right": wire.to_right.sent, "to_left": wire.to_left.sent // 2}
        for lane, length in lengths.items():
            for at in sorted({0, 1, 5, *range(0, length, max(1, length // 16))}):
                wire = FakeWire()
                getattr(wire, lane).cut_after = at
                serving = Call(setup.beta.server, wire.right)
                calling = Call(setup.alpha.client, wire.left, beta)
                calls = {"to_right": (serving, calling), "to_left": (calling, serving)}[lane]
                receiver = calls[0].error(self.deadline_s)
                assert isinstance(receiver, REFUSED), f"{lane} cut at {at} gave {receiver!r}"
                wire.close()
                sender = calls[1].error(self.deadline_s)
                assert sender is None or isinstance(sender, REFUSED)
                if sender is None:
                    calls[1].result(0).close()

    def test_a_byte_changed_on_its_way_is_detected(self, tmp_path: Path) -> None:
        setup = self.trust(tmp_path)
        message = b"forty bytes that somebody wants to change"
        with self._joined(setup) as (near, _, wire):
            before = wire.to_right.sent
            near.send([message])
            length = wire.to_right.sent - before
        assert length > 0
        for at in range(length):
            with self._joined(setup) as (near, far, wire):
                wire.to_right.flip_at = wire.to_right.sent + at
                near.send([message])
                wire.to_right.end()
                # Not even a part of it may be delivered unless it was whole before that byte.
                got = bytearray()
                with pytest.raises(BROKEN):
                    Call(_collect, far, got).result(self.deadline_s)
                assert message.startswith(bytes(got))
                assert len(got) < len(message)

    def test_an_end_without_a_goodbye_is_detected(self, tmp_path: Path) -> None:
        with self._joined(self.trust(tmp_path)) as (near, far, wire):
            near.send([b"transfer 10"])
            wire.to_right.end()
            got = bytearray()
            with pytest.raises(BROKEN):
                Call(_collect, far, got).result(self.deadline_s)
            assert bytes(got) in (b"", b"transfer 10")

    def test_a_record_cut_short_is_detected(self, tmp_path: Path) -> None:
        setup = self.trust(tmp_path)
        for keep in (1, 5, 20):
            with self._joined(setup) as (near, far, wire):
                wire.to_right.end_after = wire.to_right.sent + keep
                near.send([b"a message of some length"])
                near.finish()
                got = bytearray()
                with pytest.raises(BROKEN):
                    Call(_collect, far, got).result(self.deadline_s)
                assert got == b""

    def test_the_wire_never_carries_the_plaintext(self, tmp_path: Path) -> None:
        wire = FakeWire(8 * _MIB)
        wire.to_right.record, wire.to_left.record = bytearray(), bytearray()
        with self._joined(self.trust(tmp_path), wire) as (near, far, _):
            question, answer = b"attack at dawn. " * 4096, b"no, sleep longer" * 4096
            near.send([question])
            assert Call(receive_exactly, far, len(question)).result(self.deadline_s) == question
            far.send([answer])
            assert Call(receive_exactly, near, len(answer)).result(self.deadline_s) == answer
            for lane in (wire.to_right, wire.to_left):
                assert lane.record is not None
                assert len(lane.record) >= len(question)
                assert b"attack at" not in lane.record
                assert b"sleep lon" not in lane.record

    def test_a_recorded_conversation_cannot_be_played_again(self, tmp_path: Path) -> None:
        setup = self.trust(tmp_path)
        wire = FakeWire()
        wire.to_right.record = bytearray()
        with self._joined(setup, wire) as (near, far, _):
            near.send([b"transfer 10"])
            assert Call(receive_exactly, far, 11).result(self.deadline_s) == b"transfer 10"
            recorded = bytes(wire.to_right.record)
        replay = FakeWire(8 * _MIB)
        replay.left.send([recorded])
        replay.left.finish()
        got = bytearray()

        def serve() -> None:
            stream = setup.beta.server(replay.right)
            try:
                _collect(stream, got)
            finally:
                stream.close()

        with pytest.raises(BROKEN):
            Call(serve).result(self.deadline_s)
        assert got == b"", "a recorded conversation was believed"
        replay.close()

    def test_closing_wakes_a_receiver_with_transport_error(self, tmp_path: Path) -> None:
        with self._joined(self.trust(tmp_path)) as (near, _, _):
            receiving = Call(near.receive_into, memoryview(bytearray(10)))
            assert not receiving.done.wait(0.1)
            near.close()
            assert isinstance(receiving.error(self.deadline_s), TransportError)

    def test_closing_wakes_a_sender_with_transport_error(self, tmp_path: Path) -> None:
        with self._joined(self.trust(tmp_path)) as (near, _, _):
            sending = Call(near.send, [bytes(8 * _MIB)])
            assert not sending.done.wait(0.2)
            near.close()
            assert isinstance(sending.error(self.deadline_s), TransportError)

    def test_closing_twice_is_once_and_closes_the_stream_below(self, tmp_path: Path) -> None:
        with self._joined(self.trust(tmp_path)) as (near, far, wire):
            near.close()
            near.close()
            for stream in (near, wire.left):
                with pytest.raises(TransportError):
                    Call(stream.send, [b"x"]).result(self.deadline_s)
            Call(_drain, far).result(self.deadline_s)

    def test_the_wire_breaking_gives_transport_error(self, tmp_path: Path) -> None:
        with self._joined(self.trust(tmp_path)) as (near, far, wire):
            receiving = Call(far.receive_into, memoryview(bytearray(10)))
            wire.cut()
            assert isinstance(receiving.error(self.deadline_s), TransportError)
            with pytest.raises(TransportError):
                Call(near.send, [b"x"]).result(self.deadline_s)

    def test_a_node_without_an_identity_says_how_to_enrol(self, tmp_path: Path) -> None:
        bare: Security = self.make(tmp_path, "nobody")
        with pytest.raises(Untrusted) as one:
            bare.identity()
        assert one.value.hint, "the error has no hint"


def _collect(stream: Stream, into: bytearray) -> None:
    room = memoryview(bytearray(64 * 1024))
    while count := stream.receive_into(room):
        into += room[:count]


def _drain(stream: Stream) -> None:
    """Read until there is nothing more, however that ends."""
    try:
        _collect(stream, bytearray())
    except BROKEN:
        return
