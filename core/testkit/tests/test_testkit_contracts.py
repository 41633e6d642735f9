"""The contracts ring: each mutant breaks one law, and the test of that law must fail on it.

The sound providers beside which the mutants stand are those that ``plugins new`` writes.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from attrs import evolve
from hypothesis import Phase, settings
from novacron import (
    BATCH_BYTES_MAX,
    DOMAINS,
    Batch,
    Buffer,
    Channel,
    Choice,
    Conflict,
    Fenced,
    LogEntry,
    MachineError,
    MachineState,
    NodeFacts,
    NodeReport,
    Obstacle,
    Ownership,
    PeerProtocolError,
    Refused,
    Stream,
    TransportError,
)
from novacron_testkit import MemoryTransport, MemoryTransportSettings, TransportContract
from novacron_testkit.contracts import compression, consensus, placement
from novacron_testkit.fakes import MemoryStream
from novacron_testkit.scaffold import new_plugin

Mutant = Callable[[Any], type]
MUTANTS: list[Any] = []


def mutant(domain: str, *laws: str) -> Callable[[Mutant], Mutant]:
    def add(make: Mutant) -> Mutant:
        for law in laws:
            MUTANTS.append(pytest.param(domain, law, make, id=f"{make.__name__}-{law[:40]}"))
        return make

    return add


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, ModuleType]]:
    folder = tmp_path_factory.mktemp("reference")
    modules = {}
    for domain in DOMAINS:
        source = new_plugin(domain, "reference", folder) / "src"
        sys.path.insert(0, str(source))
        modules[domain] = importlib.import_module(f"novacron_{domain}_reference.contract")
        sys.path.remove(str(source))
    yield modules
    for name in [name for name in sys.modules if name.split(".")[0].endswith("_reference")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def first_finding_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples as always; only the search for the smallest one that fails is left out."""
    for module in (compression, consensus, placement):
        found = settings(module._EXAMPLES, phases=(Phase.explicit, Phase.generate))
        monkeypatch.setattr(module, "_EXAMPLES", found)


@pytest.mark.parametrize(("domain", "law", "make"), MUTANTS)
def test_a_mutant_is_caught(
    domain: str, law: str, make: Mutant, sound: Mapping[str, Any], tmp_path: Path
) -> None:
    contract: type = sound[domain].ProviderContract
    if domain == "transport":
        contract = TransportContract
    reference = sys.modules[sound[domain].__name__.rpartition(".")[0]]
    broken = make(reference)
    members: dict[str, Any] = {"provider": broken, "deadline_s": 2.0}
    if domain == "machine":
        members["deadline_s"] = 4.0
    if domain == "security":
        members["trust"] = lambda self, path: _possessed(contract.trust(self, path), broken)
    held = type("TestMutant", (contract,), members)()
    with pytest.raises((Exception, pytest.fail.Exception)):
        getattr(held, law)(tmp_path)


def test_every_contract_has_mutants() -> None:
    assert {param.values[0] for param in MUTANTS} == set(DOMAINS)


# Compression.


def codec(reference: Any, encoder: type | None = None, decoder: type | None = None) -> type:
    class Broken(reference.Codec):
        def encoder(self, session: Any) -> Any:
            return (encoder or reference.Encoder)(1)

        def decoder(self, session: Any) -> Any:
            return (decoder or reference.Decoder)()

    return Broken


@mutant(
    "compression",
    "test_every_batch_comes_out_as_it_went_in",
    "test_real_pages_come_out_as_they_went_in",
)
def drops_the_last_byte(ref: Any) -> type:
    class Decoder(ref.Decoder):
        def decode(self, payload: Buffer) -> Batch:
            batch = super().decode(payload)
            return evolve(batch, pages=bytes(batch.pages)[:-1] + b"\x00")

    return codec(ref, decoder=Decoder)


@mutant("compression", "test_a_batch_without_pages_and_an_empty_batch_pass")
def forgets_the_layout(ref: Any) -> type:
    class Encoder(ref.Encoder):
        def encode(self, batch: Batch) -> Buffer:
            return super().encode(evolve(batch, layout=b""))

    return codec(ref, Encoder)


@mutant("compression", "test_the_largest_batch_passes")
def refuses_large_batches(ref: Any) -> type:
    class Decoder(ref.Decoder):
        def decode(self, payload: Buffer) -> Batch:
            batch = super().decode(payload)
            if batch.nbytes > BATCH_BYTES_MAX // 2:
                raise PeerProtocolError("too large for me")
            return batch

    return codec(ref, decoder=Decoder)


@mutant("compression", "test_pages_that_are_sent_again_unchanged_or_changed_a_little_pass")
def takes_equal_addresses_for_equal_pages(ref: Any) -> type:
    class Decoder(ref.Decoder):
        def __init__(self) -> None:
            self.seen: dict[bytes, Batch] = {}

        def decode(self, payload: Buffer) -> Batch:
            batch = super().decode(payload)
            return self.seen.setdefault(bytes(batch.addresses), batch)

    return codec(ref, decoder=Decoder)


@mutant("compression", "test_a_frame_is_the_callers_and_stays_as_it_is")
def writes_all_frames_into_one_buffer(ref: Any) -> type:
    class Encoder(ref.Encoder):
        def __init__(self, level: int) -> None:
            super().__init__(level)
            self.room = bytearray(8 << 20)

        def encode(self, batch: Batch) -> Buffer:
            payload = super().encode(batch)
            self.room[: len(payload)] = payload
            return memoryview(self.room)[: len(payload)]

    return codec(ref, Encoder)


@mutant("compression", "test_a_batch_is_not_kept")
def keeps_the_batch(ref: Any) -> type:
    class Encoder(ref.Encoder):
        def __init__(self, level: int) -> None:
            super().__init__(level)
            self.kept: dict[int, tuple[Batch, Buffer]] = {}

        def encode(self, batch: Batch) -> Buffer:
            if id(batch) not in self.kept:
                self.kept[id(batch)] = batch, super().encode(batch)
            return self.kept[id(batch)][1]

    return codec(ref, Encoder)


@mutant("compression", "test_a_frame_is_at_most_64_kib_longer_than_its_batch")
def pads_its_frames(ref: Any) -> type:
    class Encoder(ref.Encoder):
        def encode(self, batch: Batch) -> Buffer:
            return bytes(super().encode(batch)) + bytes(100_000)

    return codec(ref, Encoder)


@mutant("compression", "test_sessions_do_not_touch_each_other")
def shares_its_state(ref: Any) -> type:
    count = [0]

    class Encoder(ref.Encoder):
        def encode(self, batch: Batch) -> Buffer:
            count[0] += 1
            return struct.pack("<I", count[0]) + bytes(super().encode(batch))

    class Decoder(ref.Decoder):
        def __init__(self) -> None:
            self.count = 0

        def decode(self, payload: Buffer) -> Batch:
            self.count += 1
            if struct.unpack_from("<I", payload) != (self.count,):
                raise PeerProtocolError("out of order")
            return super().decode(bytes(payload)[4:])

    return codec(ref, Encoder, Decoder)


@mutant("compression", "test_adapting_never_breaks_a_round_trip")
def changes_its_format_when_it_adapts(ref: Any) -> type:
    class Encoder(ref.Encoder):
        raw = False

        def adapt(self, pressure: Any) -> None:
            self.raw = pressure.encode_s > pressure.link_wait_s

        def encode(self, batch: Batch) -> Buffer:
            return batch.pack() if self.raw else super().encode(batch)

    return codec(ref, Encoder)


@mutant("compression", "test_a_payload_may_be_any_kind_of_buffer")
def takes_bytes_only(ref: Any) -> type:
    class Decoder(ref.Decoder):
        def decode(self, payload: Buffer) -> Batch:
            if not isinstance(payload, bytes):
                raise TypeError("bytes only")
            return super().decode(payload)

    return codec(ref, decoder=Decoder)


@mutant("compression", "test_a_frame_cut_at_any_byte_is_refused")
def takes_what_is_there(ref: Any) -> type:
    class Decoder(ref.Decoder):
        def decode(self, payload: Buffer) -> Batch:
            with suppress(PeerProtocolError):
                return super().decode(payload)
            return Batch()

    return codec(ref, decoder=Decoder)


@mutant(
    "compression",
    "test_a_frame_cut_at_any_byte_is_refused",
    "test_a_mutated_frame_gives_peer_protocol_error_or_a_bounded_batch",
    "test_garbage_is_refused_or_bounded",
)
def lets_zlib_errors_out(ref: Any) -> type:
    class Decoder(ref.Decoder):
        def decode(self, payload: Buffer) -> Batch:
            return Batch.unpack(zlib.decompress(payload))

    return codec(ref, decoder=Decoder)


@mutant("compression", "test_a_bomb_is_refused_before_its_memory_is_allocated")
def inflates_before_it_looks(ref: Any) -> type:
    class Decoder(ref.Decoder):
        def decode(self, payload: Buffer) -> Batch:
            try:
                return Batch.unpack(zlib.decompress(payload))
            except zlib.error as error:
                raise PeerProtocolError("unsound") from error

    return codec(ref, decoder=Decoder)


@mutant("compression", "test_memory_stays_bounded_over_many_batches")
def keeps_every_frame(ref: Any) -> type:
    class Encoder(ref.Encoder):
        def __init__(self, level: int) -> None:
            super().__init__(level)
            self.all: list[Buffer] = []

        def encode(self, batch: Batch) -> Buffer:
            self.all.append(super().encode(batch))
            return self.all[-1]

    return codec(ref, Encoder)


# Transport. The mutants stand beside the transport in memory, which leaves no sockets behind.


def transport(stream: type[MemoryStream]) -> type:
    class Broken(MemoryTransport):
        def connect(self, address: str, timeout_s: float) -> MemoryStream:
            near = super().connect(address, timeout_s)
            near.__class__ = stream
            return near

    return Broken


@mutant("transport", "test_several_buffers_of_any_kind_arrive_one_after_the_other")
def sends_the_buffers_in_another_order(_: Any) -> type:
    class Broken(MemoryStream):
        def send(self, buffers: Sequence[Buffer]) -> None:
            super().send(sorted(buffers, key=len))

    return transport(Broken)


@mutant("transport", "test_a_send_larger_than_any_buffer_arrives_whole")
def drops_the_tail_of_a_large_send(_: Any) -> type:
    class Broken(MemoryStream):
        def send(self, buffers: Sequence[Buffer]) -> None:
            super().send([memoryview(buffer)[: 1 << 20] for buffer in buffers])

    return transport(Broken)


@mutant("transport", "test_thousands_of_buffers_in_one_send_arrive")
def sends_the_first_1024_buffers(_: Any) -> type:
    class Broken(MemoryStream):
        def send(self, buffers: Sequence[Buffer]) -> None:
            super().send(buffers[:1024])

    return transport(Broken)


@mutant("transport", "test_a_sender_blocks_while_nobody_reads_and_goes_on_when_somebody_does")
def swallows_everything(_: Any) -> type:
    class Broken(MemoryTransport):
        def __init__(self, settings: MemoryTransportSettings, node: NodeFacts) -> None:
            super().__init__(evolve(settings, capacity_bytes=1 << 30), node)

    return Broken


@mutant(
    "transport",
    "test_finishing_ends_one_direction_and_the_other_goes_on",
    "test_bytes_sent_before_the_finish_all_arrive",
)
def finishes_nothing(_: Any) -> type:
    class Broken(MemoryStream):
        def finish(self) -> None:
            pass

    return transport(Broken)


@mutant("transport", "test_finishing_ends_one_direction_and_the_other_goes_on")
def finishes_both_directions(_: Any) -> type:
    class Broken(MemoryStream):
        def finish(self) -> None:
            self.close()

    return transport(Broken)


@mutant(
    "transport",
    "test_closing_wakes_a_receiver_with_transport_error",
    "test_closing_wakes_a_sender_with_transport_error",
    "test_a_closed_stream_gives_transport_error_and_closing_twice_is_once",
)
def does_not_close(_: Any) -> type:
    class Broken(MemoryStream):
        def close(self) -> None:
            pass

    return transport(Broken)


@mutant("transport", "test_closing_wakes_a_receiver_with_transport_error")
def takes_its_own_close_for_the_peers_end(_: Any) -> type:
    class Broken(MemoryStream):
        def receive_into(self, buffer: memoryview) -> int:
            with suppress(TransportError):
                return super().receive_into(buffer)
            return 0

    return transport(Broken)


@mutant("transport", "test_a_closed_stream_gives_transport_error_and_closing_twice_is_once")
def complains_of_a_second_close(_: Any) -> type:
    class Broken(MemoryStream):
        closed = False

        def close(self) -> None:
            if self.closed:
                raise TransportError("closed already")
            self.closed = True
            super().close()

    return transport(Broken)


@mutant("transport", "test_a_peer_that_vanishes_makes_sending_fail")
def sends_into_the_void(_: Any) -> type:
    class Broken(MemoryStream):
        def send(self, buffers: Sequence[Buffer]) -> None:
            with suppress(TransportError):
                super().send(buffers)

    return transport(Broken)


@mutant(
    "transport",
    "test_connecting_to_nobody_gives_transport_error_in_time_that_names_the_address",
)
def lets_the_systems_error_out(_: Any) -> type:
    class Broken(MemoryTransport):
        def connect(self, address: str, timeout_s: float) -> MemoryStream:
            try:
                return super().connect(address, timeout_s)
            except TransportError as error:
                raise ConnectionRefusedError(str(error)) from error

    return Broken


@mutant(
    "transport",
    "test_connecting_to_nobody_gives_transport_error_in_time_that_names_the_address",
)
def names_no_address(_: Any) -> type:
    class Broken(MemoryTransport):
        def connect(self, address: str, timeout_s: float) -> MemoryStream:
            try:
                return super().connect(address, timeout_s)
            except TransportError as error:
                raise TransportError("no luck") from error

    return Broken


@mutant("transport", "test_an_address_that_is_taken_gives_transport_error")
def takes_what_is_taken(_: Any) -> type:
    class Broken(MemoryTransport):
        def listen(self, address: str) -> Any:
            self.settings.network.leave(address)
            return super().listen(address)

    return Broken


@mutant("transport", "test_an_address_that_is_none_gives_config_error")
def takes_any_address(_: Any) -> type:
    class Broken(MemoryTransport):
        def _check(self, address: str) -> str:
            return address

    return Broken


# Security.


def _possessed(setup: Any, broken: type) -> Any:
    for node in (setup.alpha, setup.beta, setup.stranger, setup.intruder):
        node.__class__ = broken
    return setup


@mutant("security", "test_another_node_than_the_one_asked_for_is_untrusted")
def does_not_compare_names(ref: Any) -> type:
    class Anybody(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = str.__hash__

    class Broken(ref.TlsSecurity):
        def client(self, stream: Stream, node: str) -> Any:
            return super().client(stream, Anybody(node))

    return Broken


@mutant(
    "security",
    "test_an_intruder_that_trusts_us_is_untrusted_all_the_same",
    "test_a_stranger_that_serves_is_untrusted",
    "test_a_stranger_that_connects_is_refused_on_both_sides",
    "test_an_untrusted_peer_leaves_our_stream_closed",
)
def trusts_every_authority(ref: Any) -> type:
    class Broken(ref.TlsSecurity):
        def _context(self) -> Any:
            context = super()._context()
            context.set_verify(ref.SSL.VERIFY_PEER, lambda *_: True)
            return context

    return Broken


class Plain:
    """A stream that says that it is protected."""

    def __init__(self, below: Stream, peer: Any) -> None:
        self.below = below
        self.peer = peer
        self.channel = Channel(protocol="none", cipher="none", key_exchange="none")
        for name in ("send", "receive_into", "finish", "close"):
            setattr(self, name, getattr(below, name))


@mutant(
    "security",
    "test_the_wire_never_carries_the_plaintext",
    "test_a_byte_changed_on_its_way_is_detected",
    "test_an_end_without_a_goodbye_is_detected",
    "test_a_record_cut_short_is_detected",
    "test_a_recorded_conversation_cannot_be_played_again",
    "test_both_sides_know_each_other",
    "test_a_peer_that_speaks_plaintext_is_refused_and_its_stream_closed",
)
def protects_nothing(ref: Any) -> type:
    class Broken(ref.TlsSecurity):
        def _protect(self, stream: Stream, node: str | None) -> Any:
            return Plain(stream, self.identity())

    return Broken


def security(ref: Any, stream: type) -> type:
    class Broken(ref.TlsSecurity):
        def _protect(self, below: Stream, node: str | None) -> Any:
            secure = super()._protect(below, node)
            secure.__class__ = stream
            return secure

    return Broken


@mutant(
    "security",
    "test_an_end_without_a_goodbye_is_detected",
    "test_a_record_cut_short_is_detected",
)
def takes_any_end_for_a_goodbye(ref: Any) -> type:
    class Broken(ref.TlsStream):
        def receive_into(self, buffer: memoryview) -> int:
            try:
                return int(super().receive_into(buffer))
            except TransportError as error:
                if "goodbye" in str(error):
                    return 0
                raise

    return security(ref, Broken)


@mutant("security", "test_large_sends_run_both_ways_at_once")
def holds_its_lock_while_it_sends(ref: Any) -> type:
    class Broken(ref.TlsStream):
        def _seal(self, piece: bytes) -> None:
            with self._lock:
                self._tls.sendall(piece)
                self._below.send(self._sealed())

    return security(ref, Broken)


@mutant(
    "security",
    "test_an_untrusted_peer_leaves_our_stream_closed",
    "test_a_peer_that_speaks_plaintext_is_refused_and_its_stream_closed",
)
def leaves_a_refused_stream_open(ref: Any) -> type:
    class Open:
        def __init__(self, below: Any) -> None:
            self.send, self.receive_into = below.send, below.receive_into
            self.finish, self.peer_address = below.finish, below.peer_address

        def close(self) -> None:
            pass

    class Broken(ref.TlsSecurity):
        def _protect(self, stream: Stream, node: str | None) -> Any:
            return super()._protect(Open(stream), node)

    return Broken


@mutant(
    "security",
    "test_closing_wakes_a_receiver_with_transport_error",
    "test_closing_wakes_a_sender_with_transport_error",
    "test_closing_twice_is_once_and_closes_the_stream_below",
)
def does_not_close_below(ref: Any) -> type:
    class Broken(ref.TlsStream):
        def close(self) -> None:
            pass

    return security(ref, Broken)


@mutant("security", "test_finishing_ends_one_direction_and_the_other_goes_on")
def says_no_goodbye(ref: Any) -> type:
    class Broken(ref.TlsStream):
        def finish(self) -> None:
            self._below.finish()

    return security(ref, Broken)


# Machines.


def driver(ref: Any, machine: type) -> type:
    class Broken(ref.ToyDriver):
        async def open(self, spec: Any, home: Path) -> Any:
            opened = await super().open(spec, home)
            opened.__class__ = machine
            return opened

    return Broken


@mutant("machine", "test_pause_is_a_pause_and_a_second_resume_is_refused")
def says_paused_and_goes_on(ref: Any) -> type:
    class Broken(ref.ToyMachine):
        said = False

        async def pause(self) -> None:
            self.said = True

        async def state(self) -> MachineState:
            return MachineState.PAUSED if self.said else await super().state()

        async def digest(self) -> str:
            return "0" * 64

    return driver(ref, Broken)


@mutant("machine", "test_pause_is_a_pause_and_a_second_resume_is_refused")
def resumes_twice(ref: Any) -> type:
    class Broken(ref.ToyMachine):
        async def resume(self) -> None:
            with suppress(Conflict):
                await super().resume()

    return driver(ref, Broken)


@mutant("machine", "test_a_running_machine_refuses_start_resume_digest_and_receive")
def gives_a_digest_while_it_runs(ref: Any) -> type:
    class Broken(ref.ToyMachine):
        async def digest(self) -> str:
            return "0" * 64

    return driver(ref, Broken)


@mutant("machine", "test_a_node_that_restarts_finds_its_machine_again")
def forgets_its_process(ref: Any) -> type:
    class Broken(ref.ToyMachine):
        started = False

        async def _spawn(self, state: str) -> None:
            await super()._spawn(state)
            self.started = True

        async def state(self) -> MachineState:
            return await super().state() if self.started else MachineState.STOPPED

    return driver(ref, Broken)


def examining(ref: Any, *found: Obstacle, spoils: bool = False) -> type:
    class Broken(ref.ToyDriver):
        def __init__(self, settings: Any, node: NodeFacts) -> None:
            super().__init__(settings, node)
            self.folder = node.state_dir

        async def examine(self, spec: Any, origin: Mapping[str, Any]) -> Sequence[Obstacle]:
            if spoils:
                assert origin["driver"] == spec.driver  # a stranger's word, taken as true
                (self.folder / "looked").touch()
            return found

    return Broken


LOOKS = "test_what_stands_in_the_way_is_told_with_its_cure_and_nothing_is_changed"


@mutant("machine", LOOKS)
def knows_no_cure(ref: Any) -> type:
    return examining(ref, Obstacle(code="disk.no-room", what="the disk is full", cure=""))


@mutant("machine", LOOKS)
def makes_up_an_obstacle(ref: Any) -> type:
    return examining(ref, Obstacle(code="disk.no-room", what="the disk is full", cure="wait"))


@mutant("machine", LOOKS)
def tells_what_json_cannot_hold(ref: Any) -> type:
    facts = {"path": Path("/")}
    return examining(ref, Obstacle(code="a.b", what="it is so", cure="", blocks=False, facts=facts))


@mutant("machine", LOOKS, "test_a_stranger_may_say_anything_of_a_machine_that_is_to_come")
def leaves_a_file_and_trusts_a_stranger(ref: Any) -> type:
    return examining(ref, spoils=True)


def moving(ref: Any, *, outgoing: type | None = None, incoming: type | None = None) -> type:
    class Broken(ref.ToyMachine):
        async def send(self, limits: Any) -> Any:
            made = await super().send(limits)
            made.__class__ = outgoing or ref.ToyOutgoing
            made.machine = self
            return made

        async def receive(self, origin: Mapping[str, Any]) -> Any:
            made = await super().receive(origin)
            made.__class__ = incoming or ref.ToyIncoming
            return made

    return driver(ref, Broken)


@mutant(
    "machine",
    "test_a_running_machine_moves_and_its_memory_arrives_whole",
    "test_a_paused_machine_moves_too",
    "test_a_machine_moves_there_and_back_again",
)
def loses_a_page(ref: Any) -> type:
    class Broken(ref.ToyOutgoing):
        def read(self) -> Batch | None:
            batch = super().read()
            if batch is not None and self._sequence > 2 and batch.pages:
                return evolve(batch, pages=b"\xaa" * len(batch.pages))
            return batch

    return moving(ref, outgoing=Broken)


@mutant("machine", "test_the_destination_does_not_run_before_it_is_resumed")
def runs_as_soon_as_it_has_arrived(ref: Any) -> type:
    class Broken(ref.ToyIncoming):
        async def finish(self) -> None:
            await super().finish()
            await self._machine.resume()

    return moving(ref, incoming=Broken)


@mutant(
    "machine",
    "test_the_source_stays_paused_and_can_be_resumed_until_it_is_told_otherwise",
    "test_an_arrival_may_be_abandoned_when_it_is_whole_but_not_resumed",
)
def stops_the_source_at_the_switch_over(ref: Any) -> type:
    class Broken(ref.ToyOutgoing):
        def read(self) -> Batch | None:
            batch: Batch | None = super().read()
            if batch is None:
                with suppress(MachineError):
                    ref._ask(self._home, "stop")
            return batch

    return moving(ref, outgoing=Broken)


@mutant("machine", "test_the_guest_runs_on_while_it_is_copied")
def pauses_to_copy(ref: Any) -> type:
    class Broken(ref.ToyOutgoing):
        def read(self) -> Batch | None:
            with suppress(Conflict):
                ref._ask(self._home, "pause")
            return super().read()  # type: ignore[no-any-return]

    return moving(ref, outgoing=Broken)


@mutant(
    "machine",
    "test_an_abandoned_arrival_leaves_nothing_and_a_retry_works",
    "test_hostile_batches_are_refused_and_leave_nothing",
)
def leaves_files_behind(ref: Any) -> type:
    class Broken(ref.ToyIncoming):
        async def abandon(self) -> None:
            await self._machine.stop()

    return moving(ref, incoming=Broken)


@mutant("machine", "test_hostile_batches_are_refused_and_leave_nothing")
def lets_a_struct_error_out(ref: Any) -> type:
    class Broken(ref.ToyIncoming):
        def write(self, batch: Batch) -> None:
            ref._LAYOUT.unpack(batch.layout)
            super().write(batch)

    return moving(ref, incoming=Broken)


@mutant("machine", "test_finishing_before_everything_was_written_is_refused")
def loads_what_has_come(ref: Any) -> type:
    class Broken(ref.ToyIncoming):
        async def finish(self) -> None:
            self._missing, self._ended = set(), True
            await super().finish()

    return moving(ref, incoming=Broken)


@mutant(
    "machine",
    "test_a_move_cancelled_in_the_midst_leaves_the_machine_whole",
    "test_a_move_cancelled_before_its_first_batch_leaves_the_machine_whole",
)
def stops_the_machine_when_cancelled(ref: Any) -> type:
    class Broken(ref.ToyOutgoing):
        async def cancel(self) -> None:
            await super().cancel()
            await self.machine.stop()

    return moving(ref, outgoing=Broken)


@mutant("machine", "test_a_setting_that_does_not_exist_is_named")
def takes_any_setting(ref: Any) -> type:
    class Broken(ref.ToyDriver):
        def check(self, spec: Any) -> None:
            super().check(evolve(spec, settings={}))

    return Broken


@mutant("machine", "test_an_origin_that_says_nothing_sound_is_refused_or_taken_but_is_no_crash")
def believes_the_origin(ref: Any) -> type:
    class Broken(ref.ToyMachine):
        async def receive(self, origin: Mapping[str, Any]) -> Any:
            if origin["pages"] * 4096 != self.spec.memory_bytes:
                raise Refused("another size")
            return await super().receive(origin)

    return driver(ref, Broken)


# Consensus.


@mutant(
    "consensus",
    "test_the_expected_epoch_must_hold",
    "test_any_sequence_of_calls_agrees_with_the_model",
)
def ignores_the_expected_epoch(ref: Any) -> type:
    class Broken(ref.FileRegister):
        async def advance(self, record: Ownership, *, expected_epoch: int | None) -> None:
            await super().advance(record, expected_epoch=None)

    return Broken


@mutant(
    "consensus",
    "test_an_epoch_that_is_not_higher_is_fenced",
    "test_the_same_epoch_with_another_owner_or_session_is_fenced",
    "test_of_many_that_advance_at_once_exactly_one_wins",
)
def takes_the_same_epoch_again(ref: Any) -> type:
    class Broken(ref.FileRegister):
        async def advance(self, record: Ownership, *, expected_epoch: int | None) -> None:
            held = await self.read(record.machine)
            if held and held.epoch == record.epoch:
                self._save({**self._load(), record.machine: record})
            else:
                await super().advance(record, expected_epoch=expected_epoch)

    return Broken


@mutant("consensus", "test_writing_what_holds_already_succeeds_whatever_was_expected")
def refuses_a_repeat(ref: Any) -> type:
    class Broken(ref.FileRegister):
        async def advance(self, record: Ownership, *, expected_epoch: int | None) -> None:
            if await self.read(record.machine) == record:
                raise Fenced("that holds already")
            await super().advance(record, expected_epoch=expected_epoch)

    return Broken


@mutant("consensus", "test_repeating_a_record_that_was_overtaken_is_fenced")
def remembers_what_was_once_written(ref: Any) -> type:
    class Broken(ref.FileRegister):
        def __init__(self, settings: Any, node: NodeFacts) -> None:
            super().__init__(settings, node)
            self.past: list[Ownership] = []

        async def advance(self, record: Ownership, *, expected_epoch: int | None) -> None:
            if record not in self.past:
                await super().advance(record, expected_epoch=expected_epoch)
                self.past.append(record)

    return Broken


@mutant("consensus", "test_of_many_that_advance_at_once_exactly_one_wins")
def looks_and_then_writes(ref: Any) -> type:
    class Broken(ref.FileRegister):
        async def advance(self, record: Ownership, *, expected_epoch: int | None) -> None:
            held = await self.read(record.machine)
            if record.epoch <= (held.epoch if held else 0):
                raise Fenced("too late")
            await asyncio.sleep(0)
            self._save({**self._load(), record.machine: record})

    return Broken


@mutant(
    "consensus",
    "test_a_record_outlives_a_reopening",
    "test_any_sequence_of_calls_agrees_with_the_model",
)
def keeps_its_records_in_memory(ref: Any) -> type:
    class Broken(ref.FileRegister):
        def __init__(self, settings: Any, node: NodeFacts) -> None:
            super().__init__(settings, node)
            self.memory: dict[str, Ownership] = {}

        def _load(self) -> dict[str, Ownership]:
            return dict(self.memory)

        def _save(self, records: dict[str, Ownership]) -> None:
            self.memory = records

    return Broken


@mutant("consensus", "test_a_record_outlives_a_process_that_is_killed_right_after_it")
def writes_when_it_is_closed(ref: Any) -> type:
    class Broken(keeps_its_records_in_memory(ref)):  # type: ignore[misc]
        def __init__(self, settings: Any, node: NodeFacts) -> None:
            super().__init__(settings, node)
            self.memory = ref.FileRegister._load(self)

        async def close(self) -> None:
            ref.FileRegister._save(self, self.memory)

    return Broken


@mutant("consensus", "test_forgetting_at_another_epoch_is_fenced")
def forgets_at_any_epoch(ref: Any) -> type:
    class Broken(ref.FileRegister):
        async def forget(self, machine: str, *, epoch: int) -> None:
            held = await self.read(machine)
            await super().forget(machine, epoch=held.epoch if held else epoch)

    return Broken


@mutant("consensus", "test_owned_by_names_all_machines_of_a_node_and_no_others_by_name")
def names_owners_that_begin_alike(ref: Any) -> type:
    class Broken(ref.FileRegister):
        async def owned_by(self, node: str) -> Sequence[Ownership]:
            records = self._load().values()
            return sorted((r for r in records if r.owner.startswith(node)), key=lambda r: r.machine)

    return Broken


@mutant("consensus", "test_a_damaged_register_is_an_error_and_never_reads_as_empty")
def takes_damage_for_nothing(ref: Any) -> type:
    class Broken(ref.FileRegister):
        def _load(self) -> dict[str, Ownership]:
            with suppress(OSError):
                return dict(super()._load())
            return {}

    return Broken


@mutant("consensus", "test_a_record_that_cannot_be_written_is_an_error_and_changes_nothing")
def says_nothing_of_a_full_disk(ref: Any) -> type:
    class Broken(ref.FileRegister):
        def _save(self, records: dict[str, Ownership]) -> None:
            with suppress(OSError):
                super()._save(records)

    return Broken


# Placement.


@mutant(
    "placement",
    "test_the_choice_is_the_same_whatever_the_order_of_the_candidates",
    "test_equal_candidates_are_told_apart_the_same_way_every_time",
)
def takes_the_first_that_fits(ref: Any) -> type:
    class Broken(ref.LeastLoaded):
        def choose(self, machine: Any, candidates: Sequence[NodeReport]) -> Choice:
            for candidate in candidates:
                if not self._unfit(machine, candidate):
                    return Choice(node=candidate.node, reason="it came first")
            raise Refused("none")

    return Broken


@mutant(
    "placement",
    "test_no_machine_is_sent_where_its_memory_or_its_driver_is_missing",
    "test_when_none_will_do_the_refusal_names_each_candidate",
)
def ignores_memory(ref: Any) -> type:
    class Broken(ref.LeastLoaded):
        def _unfit(self, machine: Any, candidate: NodeReport) -> str:
            return "" if machine.driver in candidate.drivers else "no driver"

    return Broken


@mutant("placement", "test_no_machine_is_sent_where_its_memory_or_its_driver_is_missing")
def takes_a_driver_that_sounds_alike(ref: Any) -> type:
    class Broken(ref.LeastLoaded):
        def _unfit(self, machine: Any, candidate: NodeReport) -> str:
            alike = any(machine.driver.startswith(driver) for driver in candidate.drivers)
            enough = candidate.free_memory_bytes >= machine.memory_bytes
            return "" if alike and enough else "no"

    return Broken


@mutant(
    "placement",
    "test_every_other_candidate_is_rejected_with_a_reason_and_the_choice_has_one",
)
def gives_no_reasons(ref: Any) -> type:
    class Broken(ref.LeastLoaded):
        def choose(self, machine: Any, candidates: Sequence[NodeReport]) -> Choice:
            return evolve(super().choose(machine, candidates), rejected={})

    return Broken


@mutant("placement", "test_when_none_will_do_the_refusal_names_each_candidate")
def refuses_without_names(ref: Any) -> type:
    class Broken(ref.LeastLoaded):
        def choose(self, machine: Any, candidates: Sequence[NodeReport]) -> Choice:
            try:
                return super().choose(machine, candidates)  # type: ignore[no-any-return]
            except Refused:
                raise Refused("none will do") from None

    return Broken


@mutant("placement", "test_no_candidates_is_a_refusal")
def falls_over_nothing(ref: Any) -> type:
    class Broken(ref.LeastLoaded):
        def choose(self, machine: Any, candidates: Sequence[NodeReport]) -> Choice:
            return Choice(node=candidates[0].node if candidates else "", reason="so it is")

    return Broken


@mutant("placement", "test_a_candidate_with_plenty_of_everything_is_chosen")
def never_finds_anything(ref: Any) -> type:
    class Broken(ref.LeastLoaded):
        def _unfit(self, machine: Any, candidate: NodeReport) -> str:
            return "never"

    return Broken


@mutant("placement", "test_the_candidates_are_left_as_they_are")
def sorts_the_callers_list(ref: Any) -> type:
    class Broken(ref.LeastLoaded):
        def choose(self, machine: Any, candidates: Any) -> Choice:
            candidates.sort(key=lambda c: c.node)
            return super().choose(machine, candidates)  # type: ignore[no-any-return]

    return Broken


# Compliance.


@mutant(
    "compliance",
    "test_a_changed_field_is_found_and_named",
    "test_a_flipped_bit_anywhere_is_found_or_changes_nothing",
)
def believes_the_digests(ref: Any) -> type:
    class Broken(ref.ChainedLog):
        def verify(self) -> int:
            previous, count = "0" * 64, 0
            for count, entry in enumerate(self.entries(), 1):
                if entry.previous != previous:
                    raise Refused(f"entry {count}")
                previous = entry.digest
            return count

    return Broken


@mutant(
    "compliance",
    "test_a_removed_entry_is_found_and_named",
    "test_entries_in_another_order_are_found_and_named",
    "test_a_doubled_entry_is_found_and_named",
)
def looks_at_each_entry_alone(ref: Any) -> type:
    class Broken(ref.ChainedLog):
        def _wrong(self, line: bytes, sequence: int, previous: str) -> str:
            said = super()._wrong(line, sequence, previous)
            return "" if "out of order" in said else str(said)

    return Broken


@mutant("compliance", "test_a_removed_entry_is_found_and_named")
def names_no_entry(ref: Any) -> type:
    class Broken(ref.ChainedLog):
        def verify(self) -> int:
            try:
                return int(super().verify())
            except Refused:
                raise Refused("the chain is broken") from None

    return Broken


@mutant("compliance", "test_what_is_read_is_what_was_appended")
def gives_the_entry_before_too(ref: Any) -> type:
    class Broken(ref.ChainedLog):
        def entries(self, *, after: int = 0) -> Iterator[LogEntry]:
            yield from super().entries(after=max(0, after - 1))

    return Broken


@mutant("compliance", "test_an_entry_says_what_happened_where_and_when")
def writes_local_time(ref: Any) -> type:
    class Broken(ref.ChainedLog):
        async def append(self, *args: Any) -> LogEntry:
            entry = await super().append(*args)
            return evolve(entry, time=entry.time.replace("+00:00", "+02:00"))

    return Broken


@mutant(
    "compliance",
    "test_an_entry_outlives_a_process_that_is_killed_right_after_it",
    "test_the_log_outlives_a_reopening_and_goes_on_where_it_was",
)
def keeps_its_entries_in_memory(ref: Any) -> type:
    class Broken(ref.ChainedLog):
        def __init__(self, settings: Any, node: NodeFacts) -> None:
            super().__init__(settings, node)
            self.memory: list[bytes] = []

        def _write(self, line: bytes) -> None:
            self.memory.append(line.rstrip(b"\n"))

        def _lines(self) -> list[bytes]:
            return self.memory

    return Broken


@mutant("compliance", "test_entries_count_from_one_and_each_holds_the_digest_of_the_one_before")
def chains_nothing(ref: Any) -> type:
    class Broken(ref.ChainedLog):
        async def append(self, *args: Any) -> LogEntry:
            self._head = (self._head or self._find_head())[0], "0" * 64
            return await super().append(*args)  # type: ignore[no-any-return]

    return Broken


@mutant("compliance", "test_appends_at_once_all_get_their_place")
def forgets_the_head_between_appends(ref: Any) -> type:
    class Broken(ref.ChainedLog):
        async def append(self, *args: Any) -> LogEntry:
            head = self._head or self._find_head()
            await asyncio.sleep(0)
            self._head = head
            return await super().append(*args)  # type: ignore[no-any-return]

    return Broken


@mutant("compliance", "test_an_entry_that_cannot_be_written_is_an_oserror_and_is_not_added")
def goes_on_when_the_disk_is_full(ref: Any) -> type:
    class Broken(ref.ChainedLog):
        def _write(self, line: bytes) -> None:
            with suppress(OSError):
                super()._write(line)

    return Broken


@mutant("compliance", "test_appending_leaves_the_earlier_entries_on_disk_as_they_are")
def writes_itself_anew(ref: Any) -> type:
    class Broken(ref.ChainedLog):
        def __init__(self, settings: Any, node: NodeFacts) -> None:
            super().__init__(settings, node)
            if self._file.exists():
                os.truncate(self._file, len(self._file.read_bytes()) - 2)
                self._file.write_bytes(self._file.read_bytes() + b" }\n")

    return Broken
