"""Blocks of disks as batches, and what a destination holds: without QEMU."""

from __future__ import annotations

import random
import struct

import pytest
from novacron_dwcp import Batch
from novacron_qemu.blocks import (
    BLOCK_BYTES,
    KEY_BYTES,
    MARK,
    PAGE,
    BatchMaker,
    BlocksRefused,
    Extent,
    Have,
    Held,
    HeldDisk,
    HeldPlace,
    address_of,
    digest_of,
    extents_of,
    holds_blocks,
)

SIZES = (1 << 30, 1 << 20)


def batch_of(*extents: Extent) -> Batch:
    maker = BatchMaker()
    for extent in extents:
        maker.add(extent)
    return maker.take()


def applied(disk: bytearray, extents: list[Extent]) -> None:
    for extent in extents:
        data = bytes(extent.length) if extent.data is None else bytes(extent.data)
        disk[extent.offset : extent.offset + extent.length] = data


def test_extents_of_any_place_and_length_come_out_as_they_went_in() -> None:
    chance = random.Random(1)
    for _ in range(50):
        disk, other = bytearray(1 << 20), bytearray(1 << 20)
        extents = []
        for _ in range(chance.randrange(1, 6)):
            offset = chance.randrange(1 << 20)
            length = chance.randrange(1, min(70_000, (1 << 20) - offset) + 1)
            data = chance.choice([None, chance.randbytes(length)])
            extents.append(Extent(1, offset, length, data))
        batch = batch_of(*extents)
        assert holds_blocks(batch)
        found = extents_of(Batch.unpack(batch.pack()), SIZES)
        applied(disk, extents)
        applied(other, found)
        assert disk == other


def test_pages_bear_addresses_above_all_memory() -> None:
    batch = batch_of(Extent(1, 8192, 2 * PAGE, bytes(2 * PAGE)))
    first, second = struct.unpack("<2Q", batch.addresses)
    assert (first, second) == (address_of(1, 8192), address_of(1, 12288))
    assert first >> 63 == 1


def test_zeros_cost_a_record_however_many_they_are() -> None:
    batch = batch_of(Extent(0, 0, 1 << 30, None))
    assert (batch.nbytes < 64, len(batch.pages)) == (True, 0)


def record(kind: int, disk: int, length: int, offset: int, zero: int = 0) -> bytes:
    return struct.pack("<BBH", MARK, 1, 0) + struct.pack("<BBHIQ", kind, disk, zero, length, offset)


@pytest.mark.parametrize(
    "batch",
    [
        Batch(b""),
        Batch(bytes([MARK])),
        Batch(struct.pack("<BBH", MARK, 9, 0)),
        Batch(record(3, 0, 0, 0)),
        Batch(record(3, 2, 1, 0)),
        Batch(record(3, 1, 1, 1 << 20)),
        Batch(record(3, 0, 1, 0, zero=1)),
        Batch(record(9, 0, 1, 0)),
        Batch(record(3, 0, 1, 0) + b"more"),
        Batch(record(2, 0, 9, 0) + b"eight by"),
        Batch(record(1, 0, PAGE, 0)),
        Batch(record(1, 0, PAGE, 0), struct.pack("<Q", 0), bytes(PAGE)),
        Batch(record(1, 0, PAGE, 512), struct.pack("<Q", address_of(0, 512)), bytes(PAGE)),
        Batch(record(3, 0, 1, 0), struct.pack("<Q", address_of(0, 0)), bytes(PAGE)),
        Batch(record(1, 0, PAGE, 0), struct.pack("<Q", address_of(0, 0)), bytes(512)),
    ],
)
def test_a_batch_that_is_not_sound_is_refused(batch: Batch) -> None:
    with pytest.raises(BlocksRefused):
        extents_of(batch, SIZES)


def told(disk: bytes, key: bytes = bytes(KEY_BYTES)) -> HeldDisk:
    """What a destination says of a disk."""
    numbers, digests = bytearray(), bytearray()
    for number in range(-(-len(disk) // BLOCK_BYTES)):
        block = disk[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
        if any(block):
            numbers += number.to_bytes(4, "little")
            digests += digest_of(block, key)
    return HeldDisk(
        disk=0, size_bytes=len(disk), key=key, blocks=bytes(numbers), digests=bytes(digests)
    )


def test_the_target_ends_with_what_was_written_whatever_it_held() -> None:
    chance = random.Random(2)
    for _ in range(40):
        size = 10 * BLOCK_BYTES + chance.choice([0, 512, 5000])
        target = bytearray(chance.choice([bytes(size), chance.randbytes(size)]))
        held = Held(size, told(bytes(target), chance.randbytes(KEY_BYTES)))
        source = bytearray(target)
        for block in range(0, size, BLOCK_BYTES):
            fill = chance.choice([None, b"\0", b"\1"])
            if fill is not None:
                end = min(size, block + BLOCK_BYTES)
                source[block:end] = fill * (end - block)
        # A mirror says every block at least once, then what was written since, of any length.
        writes = [(at, min(BLOCK_BYTES, size - at)) for at in range(0, size, BLOCK_BYTES)]
        for _ in range(5):
            at = chance.randrange(size - 600)
            writes.append((at, chance.randrange(1, 600)))
        for number, (at, length) in enumerate(writes):
            if number >= len(writes) - 5:
                source[at : at + length] = chance.randbytes(length)
            data = bytes(source[at : at + length])
            if any(data):
                for offset, count, piece in held.differing(at, data):
                    target[offset : offset + count] = bytes(count) if piece is None else piece
            else:
                for offset, count in held.zeroed(at, length):
                    target[offset : offset + count] = bytes(count)
        assert target == source


def test_what_the_target_has_is_not_sent_again() -> None:
    disk = random.Random(3).randbytes(4 * BLOCK_BYTES)
    held = Held(len(disk), told(disk))
    assert list(held.differing(0, disk)) == []
    changed = disk[:BLOCK_BYTES] + b"x" + disk[BLOCK_BYTES + 1 :]
    found = list(held.differing(0, changed))
    assert [(offset, length) for offset, length, _ in found] == [(BLOCK_BYTES, BLOCK_BYTES)]
    assert list(held.differing(0, changed)) == []
    assert list(held.zeroed(BLOCK_BYTES, BLOCK_BYTES)) == [(BLOCK_BYTES, BLOCK_BYTES)]
    assert list(held.zeroed(BLOCK_BYTES, BLOCK_BYTES)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"block_bytes": 4096},
        {"block_bytes": 3 << 16},
        {"block_bytes": 0},
        {"key": b"short"},
        {"blocks": b"abc"},
        {"digests": b"\0" * 15},
    ],
)
def test_a_word_on_disks_that_does_not_add_up_is_refused(changes: dict[str, object]) -> None:
    held = HeldDisk(disk=0, size_bytes=1 << 20, **changes)  # type: ignore[arg-type]
    with pytest.raises(BlocksRefused):
        Have.unpack(Have(disks=[held]).pack())


def test_a_word_on_disks_is_bounded_and_read_back() -> None:
    have = Have(
        disks=[told(bytes(range(256)) * 1024)], places=[HeldPlace(disk=1, name="d", proof="p")]
    )
    assert Have.unpack(have.pack()) == have
    for said in (b"", b"\xc1", b"\x90", bytes(8 << 20)):
        with pytest.raises(BlocksRefused):
            Have.unpack(said)
    beyond = HeldDisk(disk=0, size_bytes=BLOCK_BYTES, blocks=b"\x09\0\0\0", digests=b"d" * 16)
    with pytest.raises(BlocksRefused, match="more of its disk"):
        Held(BLOCK_BYTES, beyond)
