"""The laws of a codec."""

from __future__ import annotations

import random
import struct
import sys
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from novacron import (
    BATCH_BYTES_MAX,
    Batch,
    Buffer,
    CodecSession,
    Compression,
    Decoder,
    Encoder,
    Pressure,
    ProtocolError,
)

from novacron_testkit.contracts.support import Call, Contract, measured

_MIB = 1 << 20
_PAGE = 4096
# What a frame may be longer than the packed batch, and memory more than a batch.
_EXPANSION = 64 * 1024
_ALLOWANCE = 3 * BATCH_BYTES_MAX + 8 * _MIB
_BOMB_BYTES = 96 * _MIB

_TEXT = (
    b"The quick migration moved a running machine over the lazy network, page after page, "
    b"and the guest noticed nothing but a short pause. "
)


def plain(batch: Batch) -> tuple[bytes, bytes, bytes]:
    """The batch's contents as values that can be compared."""
    return bytes(batch.layout), bytes(batch.addresses), bytes(batch.pages)


def numbered(pages: bytes, first: int = 0, page: int = _PAGE, layout: bytes = b"") -> Batch:
    """A batch of equal pages with addresses that count up."""
    count = len(pages) // page
    addresses = struct.pack(f"<{count}Q", *range(first * page, (first + count) * page, page))
    return Batch(layout=layout, addresses=addresses, pages=pages[: count * page])


@cache
def real_pages() -> dict[str, bytes]:
    """1 MiB of each kind of content that guests' memories are made of."""
    text = (_TEXT * (_MIB // len(_TEXT) + 1))[:_MIB]
    with open(sys.executable, "rb") as file:
        file.seek(64 * 1024)
        code = file.read(_MIB)
    code = (code * (_MIB // max(1, len(code)) + 1))[:_MIB]
    noise = random.Random(1).randbytes(_MIB)
    mixed = b"".join(
        kind[at : at + _PAGE]
        for at in range(0, _MIB, _PAGE * 4)
        for kind in (text, code, noise, bytes(_MIB))
    )
    return {"text": text, "code": code, "noise": noise, "zeros": bytes(_MIB), "mixed": mixed}


_sessions = count(1)


def leaving() -> CodecSession:
    """The source's side of a new session, as a kernel would tell it."""
    number = next(_sessions)
    return CodecSession(
        session=f"mig-{number}",
        machine=f"m-{number}",
        driver="fake",
        peer="beta",
        tenant="",
        memory_bytes=64 << 20,
        role="source",
    )


def arriving(session: CodecSession) -> CodecSession:
    """The destination's side of the same session."""
    return evolve(session, peer="alpha", role="destination")


def pair(codec: Compression) -> tuple[Encoder, Decoder]:
    """Both sides of a new session."""
    session = leaving()
    return codec.encoder(session), codec.decoder(arriving(session))


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Any sound batch, most of them small."""
    count = draw(st.integers(0, 12))
    page = draw(st.sampled_from((0, 1, 7, 64, 512, _PAGE)))
    addresses = draw(st.lists(st.integers(0, 2**64 - 1), min_size=count, max_size=count))
    seed = draw(st.binary(max_size=64))
    size = count * page
    pages = (seed * (size // len(seed) + 1))[:size] if seed else bytes(size)
    layout = draw(st.binary(max_size=200))
    kind = draw(st.sampled_from((bytes, bytearray, memoryview)))
    return Batch(
        layout=kind(layout),
        addresses=kind(struct.pack(f"<{count}Q", *addresses)),
        pages=kind(pages),
    )


_EXAMPLES = settings(
    max_examples=80,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class CompressionContract(Contract):
    """Subclass it, set ``provider``; override `bombs` with the worst frames you can think of."""

    def bombs(self, tmp_path: Path) -> Iterable[bytes]:
        """Payloads that would decode to far more than ``BATCH_BYTES_MAX``, made by hand."""
        return ()

    def _pass(self, tmp_path: Path, stream: Sequence[Batch]) -> None:
        codec = self.make(tmp_path)
        encoder, decoder = pair(codec)
        for number, batch in enumerate(stream):
            payload = encoder.encode(batch)
            assert plain(decoder.decode(payload)) == plain(batch), f"batch {number} came out wrong"

    def test_every_batch_comes_out_as_it_went_in(self, tmp_path: Path) -> None:
        @_EXAMPLES
        @given(st.lists(batches(), min_size=1, max_size=6))
        def check(stream: list[Batch]) -> None:
            self._pass(tmp_path, stream)

        check()

    def test_real_pages_come_out_as_they_went_in(self, tmp_path: Path) -> None:
        self._pass(
            tmp_path,
            [
                numbered(pages, first=number * 256, layout=kind.encode())
                for number, (kind, pages) in enumerate(real_pages().items())
            ],
        )

    def test_a_batch_without_pages_and_an_empty_batch_pass(self, tmp_path: Path) -> None:
        self._pass(
            tmp_path, [Batch(), Batch(layout=b"only a layout"), Batch(), Batch(layout=_TEXT)]
        )

    def test_the_largest_batch_passes(self, tmp_path: Path) -> None:
        count = BATCH_BYTES_MAX // (_PAGE + 8)
        for pages in (random.Random(2).randbytes(count * _PAGE), bytes(count * _PAGE)):
            room = BATCH_BYTES_MAX - count * (_PAGE + 8)
            self._pass(tmp_path, [numbered(pages, layout=b"x" * room)])

    def test_pages_that_are_sent_again_unchanged_or_changed_a_little_pass(
        self, tmp_path: Path
    ) -> None:
        rng = random.Random(3)
        memory = bytearray(real_pages()["mixed"][: 64 * _PAGE])
        stream = []
        for _ in range(12):
            for _ in range(8):
                memory[rng.randrange(len(memory))] = rng.randrange(256)
            first = rng.randrange(32)
            some = bytes(memory[first * _PAGE : (first + 32) * _PAGE])
            stream.append(numbered(some, first=first))
            stream.append(numbered(some, first=first))
        # One address twice in one batch, and the same address with another page size.
        twice = struct.pack("<2Q", 0, 0)
        stream.append(Batch(addresses=twice, pages=bytes(memory[: 2 * _PAGE])))
        stream.append(Batch(addresses=twice, pages=bytes(memory[:128])))
        stream.append(numbered(bytes(memory)))
        self._pass(tmp_path, stream)

    def test_a_frame_is_at_most_64_kib_longer_than_its_batch(self, tmp_path: Path) -> None:
        encoder = self.make(tmp_path).encoder(leaving())
        count = BATCH_BYTES_MAX // (_PAGE + 8)
        worst = random.Random(4).randbytes(count * _PAGE)
        for batch in (numbered(worst), numbered(worst[: 64 * _PAGE]), Batch(), Batch(b"x" * 100)):
            payload = encoder.encode(batch)
            assert len(payload) <= len(batch.pack()) + _EXPANSION

    def test_a_frame_is_the_callers_and_stays_as_it_is(self, tmp_path: Path) -> None:
        codec = self.make(tmp_path)
        encoder, decoder = pair(codec)
        stream = [numbered(pages[: 64 * _PAGE]) for pages in real_pages().values()] * 2
        payloads = [encoder.encode(batch) for batch in stream]
        # All were encoded before the first is decoded: none may have been written over.
        for batch, payload in zip(stream, payloads, strict=True):
            assert plain(decoder.decode(payload)) == plain(batch)

    def test_a_batch_is_not_kept(self, tmp_path: Path) -> None:
        codec = self.make(tmp_path)
        encoder, decoder = pair(codec)
        pages = bytearray(real_pages()["text"][: 16 * _PAGE])
        addresses = bytearray(numbered(bytes(pages)).addresses)
        batch = Batch(addresses=addresses, pages=pages)
        for filler in (0x11, 0x22, 0x33):
            expected = plain(batch)
            payload = bytes(encoder.encode(batch))
            # The caller uses its buffers again, as a driver does.
            pages[:] = bytes([filler]) * len(pages)
            assert plain(decoder.decode(payload)) == expected

    def test_sessions_do_not_touch_each_other(self, tmp_path: Path) -> None:
        codec = self.make(tmp_path)
        pairs = [pair(codec) for _ in range(3)]
        kinds = list(real_pages().values())
        for turn in range(4):
            for number, (encoder, decoder) in enumerate(pairs):
                pages = kinds[(turn + number) % len(kinds)][: 32 * _PAGE]
                batch = numbered(pages, first=turn)
                assert plain(decoder.decode(encoder.encode(batch))) == plain(batch)

    def test_the_session_may_run_in_another_thread_than_the_one_that_made_it(
        self, tmp_path: Path
    ) -> None:
        codec = self.make(tmp_path)
        encoder, decoder = pair(codec)
        batch = numbered(real_pages()["code"])
        payload = Call(encoder.encode, batch).result(self.deadline_s)
        assert plain(Call(decoder.decode, payload).result(self.deadline_s)) == plain(batch)

    def test_adapting_never_breaks_a_round_trip(self, tmp_path: Path) -> None:
        codec = self.make(tmp_path)
        encoder, decoder = pair(codec)
        rng = random.Random(5)
        extremes = (0.0, 1e-9, 0.5, 1.0, 1e9)
        mixed = real_pages()["mixed"]
        for number in range(60):
            encoder.adapt(
                Pressure(
                    encode_s=rng.choice(extremes),
                    link_wait_s=rng.choice(extremes),
                    read_wait_s=rng.choice(extremes),
                )
            )
            first = rng.randrange(200)
            batch = numbered(mixed[first * _PAGE : (first + 16) * _PAGE], first=number % 7)
            assert plain(decoder.decode(encoder.encode(batch))) == plain(batch)

    def test_a_payload_may_be_any_kind_of_buffer(self, tmp_path: Path) -> None:
        for kind in (bytes, bytearray, memoryview):
            codec = self.make(tmp_path)
            encoder, decoder = pair(codec)
            batch = numbered(real_pages()["text"][: 8 * _PAGE], layout=b"layout")
            payload: Buffer = kind(bytes(encoder.encode(batch)))
            assert plain(decoder.decode(payload)) == plain(batch)

    def _decode(self, codec: Any, before: Sequence[bytes], payload: bytes) -> Batch | None:
        """A decoder in the state after ``before`` meets a payload; None if it refuses it."""
        decoder = codec.decoder(arriving(leaving()))
        for sound in before:
            decoder.decode(sound)
        try:
            batch = decoder.decode(payload)
        except ProtocolError:
            return None
        except Exception as error:
            pytest.fail(
                f"{payload[:40]!r}… ({len(payload)} bytes) gave {type(error).__name__}: {error}; "
                "only ProtocolError may come of a bad payload"
            )
        assert isinstance(batch, Batch)
        assert batch.nbytes <= BATCH_BYTES_MAX, f"a payload gave {batch.nbytes} bytes"
        assert len(batch.addresses) % 8 == 0
        assert not len(batch.pages) or (
            batch.page_count and len(batch.pages) % batch.page_count == 0
        ), "the batch's pages do not fit its addresses"
        return batch

    def _frames(self, codec: Any) -> tuple[list[Batch], list[bytes]]:
        encoder = codec.encoder(leaving())
        pages = real_pages()["code"][: 2 * 512] + real_pages()["noise"][:512] + bytes(512)
        small = numbered(pages, page=512, layout=b"layout")
        changed = numbered(pages[:100] + b"!" + pages[101:], page=512)
        return [small, changed], [bytes(encoder.encode(batch)) for batch in (small, changed)]

    def test_a_frame_cut_at_any_byte_is_refused(self, tmp_path: Path) -> None:
        codec = self.make(tmp_path)
        sound, frames = self._frames(codec)
        for index, frame in enumerate(frames):
            for length in range(len(frame)):
                batch = self._decode(codec, frames[:index], frame[:length])
                # Only a cut that takes nothing away may pass.
                assert batch is None or plain(batch) == plain(sound[index]), (
                    f"a frame cut after {length} of {len(frame)} bytes gave another batch"
                )

    def test_a_mutated_frame_gives_peer_protocol_error_or_a_bounded_batch(
        self, tmp_path: Path
    ) -> None:
        codec = self.make(tmp_path)
        _, frames = self._frames(codec)
        rng = random.Random(6)
        with measured() as memory:
            for turn in range(1500):
                index = turn % len(frames)
                frame = bytearray(frames[index])
                for _ in range(rng.choice((1, 1, 2, 8))):
                    # The beginning is where lengths and kinds are.
                    at = rng.randrange(min(len(frame), rng.choice((8, 32, len(frame)))))
                    frame[at] = rng.choice((frame[at] ^ (1 << rng.randrange(8)), 0, 255))
                if turn % 10 == 0:
                    frame += rng.randbytes(rng.randrange(40))
                self._decode(codec, frames[:index], bytes(frame))
        assert memory.peak_bytes <= _ALLOWANCE, f"a mutated frame cost {memory.peak_bytes} bytes"

    def test_garbage_is_refused_or_bounded(self, tmp_path: Path) -> None:
        codec = self.make(tmp_path)
        rng = random.Random(7)
        for length in (*range(40), 100, 1000, 65536):
            self._decode(codec, (), rng.randbytes(length))
            self._decode(codec, (), bytes(length))
            self._decode(codec, (), b"\xff" * length)

    def test_a_bomb_is_refused_before_its_memory_is_allocated(self, tmp_path: Path) -> None:
        codec = self.make(tmp_path)
        payloads = [bytes(bomb) for bomb in self.bombs(tmp_path)]
        packer = zlib.compressobj(1)
        payloads.append(packer.compress(bytes(_BOMB_BYTES)) + packer.flush())
        count = _BOMB_BYTES // _PAGE
        try:
            # Made by our own encoder, which does not have to agree to it.
            payloads.append(bytes(codec.encoder(leaving()).encode(numbered(bytes(count * _PAGE)))))
        except Exception:
            payloads.append(b"")
        for payload in payloads:
            with measured() as memory:
                assert self._decode(codec, (), payload) is None, "a bomb was decoded"
            # The payload itself was there before.
            assert memory.peak_bytes <= _ALLOWANCE, (
                f"{len(payload)} bytes made the decoder take {memory.peak_bytes}"
            )

    def test_memory_stays_bounded_over_many_batches(self, tmp_path: Path) -> None:
        codec = self.make(tmp_path)
        encoder, decoder = pair(codec)
        noise = random.Random(8)
        decoder.decode(encoder.encode(numbered(noise.randbytes(_MIB))))
        with measured() as memory:
            for _ in range(48):
                # The same addresses over and over: even a codec with a page store has enough.
                decoder.decode(encoder.encode(numbered(noise.randbytes(_MIB))))
        assert memory.peak_bytes <= _ALLOWANCE, f"48 batches of 1 MiB cost {memory.peak_bytes}"
