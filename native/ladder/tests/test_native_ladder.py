"""The rungs: what goes in comes out, both stores stay alike, and C and twin say the same."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import novacron_native_ladder
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_native_ladder import (
    DecodeProblem,
    LadderFormatError,
    Parts,
    Places,
    Rung,
    StoreTableError,
    _twin,
)

try:
    from novacron_native_ladder import _c
except ImportError:  # installed without a compiler: then the twin is tested alone
    IMPLEMENTATIONS: list[ModuleType] = [_twin]
else:
    IMPLEMENTATIONS = [_c, _twin]

both = pytest.mark.parametrize("ladder", IMPLEMENTATIONS, ids=lambda m: m.__name__[-4:])
pairs = pytest.mark.parametrize(
    ("sender", "receiver"),
    list(product(IMPLEMENTATIONS, repeat=2)),
    ids=lambda m: m.__name__[-4:],
)
compared = pytest.mark.skipif(len(IMPLEMENTATIONS) == 1, reason="there is no C part installed")
PAGE = 128
PLACES = Places(count_at=0, addresses_at=8, pages_at=1 << 16)


def page_file(capacity: int = 100, page_size: int = PAGE) -> Any:
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(PLACES.pages_at + capacity * page_size)
    return file


def store(ladder: ModuleType, file: Any, capacity: int = 100, **options: Any) -> Any:
    chosen = {"page_size": PAGE, "seed": 7, "by_content": True, **options}
    return ladder.Store(file.fileno(), PLACES, capacity=capacity, **chosen)


def contents(file: Any) -> tuple[int, bytes]:
    """How many slots a file says it has, and its bytes."""
    file.seek(0)
    data = file.read()
    return struct.unpack_from("<Q", data)[0], data


def addresses(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def noise(number: int, page_size: int = PAGE) -> bytes:
    return random.Random(number).randbytes(page_size)


def kept(parts: Parts) -> Parts:
    """The parts as they go over a wire."""
    return Parts(*map(bytes, parts))


Batch = tuple[list[int], list[bytes]]


def histories(rng: random.Random, batches: int, page_size: int = PAGE) -> Iterator[Batch]:
    """What a guest does: pages are written, repeated, copied, changed a little, and zeroed."""
    memory: dict[int, bytes] = {}
    somewhere = [rng.choice([n * page_size, rng.randrange(1 << 64)]) for n in range(40)]
    for _ in range(batches):
        where, pages = [], []
        for _ in range(rng.randrange(12)):
            address = rng.choice(somewhere)
            old = memory.get(address, bytes(page_size))
            kind = rng.randrange(6)
            if kind == 0:
                page = bytes([rng.randrange(3)]) * page_size
            elif kind == 1:
                page = old
            elif kind == 2 and memory:
                page = rng.choice(list(memory.values()))
            elif kind == 3:
                page = noise(rng.randrange(30), page_size)
            else:
                changed = bytearray(old)
                for _ in range(rng.randrange(1, 9)):
                    changed[rng.randrange(page_size)] = rng.randrange(256)
                page = bytes(changed)
            memory[address] = page
            where.append(address)
            pages.append(page)
        yield where, pages


def offered(ladder: ModuleType, numbers: Sequence[int], file: Any) -> Any:
    """These pages of noise as what the receiver has in a file of its own."""
    for place, number in enumerate(numbers):
        os.pwrite(file.fileno(), noise(number), place * PAGE)
    origin = np.zeros(len(numbers), np.uint32)
    return ladder.Origins([file.fileno()], origin, np.arange(len(numbers), dtype=np.uint64) * PAGE)


def hashed(numbers: Sequence[int], seed: int = 7) -> Any:
    return np.array([xxhash.xxh64_intdigest(noise(n), seed) for n in numbers], np.uint64)


def test_the_implementation_in_use_is_named():
    expected = "c" if len(IMPLEMENTATIONS) == 2 else "python"
    assert novacron_native_ladder.implementation() == expected


@pairs
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    capacity=st.sampled_from([0, 1, 7, 100]),
    content=st.booleans(),
    delta=st.booleans(),
)
def test_any_history_comes_back_and_both_stores_stay_alike(
    sender, receiver, seed, capacity, content, delta
):
    rng = random.Random(seed)
    with page_file(capacity) as here, page_file(capacity) as there, page_file() as other:
        source = store(sender, here, capacity)
        destination = store(receiver, there, capacity, by_content=False, seed=9)
        numbers = range(10, 25)
        references = sender.References(hashed(numbers))
        origins = offered(receiver, numbers, other)
        for where, pages in histories(rng, 12):
            encoded = source.encode(
                addresses(*where), b"".join(pages), references, content=content, delta=delta
            )
            assert sum(encoded.pages) == len(where)
            got = destination.decode(kept(encoded.parts), origins)
            assert bytes(got[0]) == addresses(*where)
            assert bytes(got[1]) == b"".join(pages)
            assert contents(here) == contents(there)
        assert source.count == destination.count <= capacity


@compared
@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), page_size=st.sampled_from([64, 192, 4096]))
def test_c_and_twin_choose_the_same_rungs(seed, page_size):
    with page_file(page_size=page_size) as one, page_file(page_size=page_size) as two:
        first = store(_c, one, page_size=page_size)
        second = store(_twin, two, page_size=page_size)
        for where, pages in histories(random.Random(seed), 8, page_size):
            ours = first.encode(addresses(*where), b"".join(pages))
            theirs = second.encode(addresses(*where), b"".join(pages))
            # Of several slots with one content they may name different ones.
            assert kept(ours.parts)._replace(args=b"") == theirs.parts._replace(args=b"")
            assert ours.pages == theirs.pages


@compared
@settings(max_examples=200, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_c_and_twin_agree_on_hostile_parts(seed, data):
    rng = random.Random(seed)
    numbers = range(10, 25)
    with page_file() as here:
        source = store(_c, here)
        references = _c.References(hashed(numbers))
        frames = [
            list(kept(source.encode(addresses(*where), b"".join(pages), references).parts))
            for where, pages in histories(rng, 3)
        ]
    last = frames[-1]
    for _ in range(data.draw(st.integers(1, 3))):
        which = data.draw(st.integers(0, 5))
        part = bytearray(last[which])
        how = data.draw(st.integers(0, 2))
        if how == 0 and part:
            at = data.draw(st.integers(0, len(part) - 1))
            part[at] = data.draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 0x7F, 0x80, 0xFF]))
        elif how == 1:
            del part[data.draw(st.integers(0, len(part))) :]
        else:
            part += data.draw(st.binary(max_size=12))
        last[which] = bytes(part)
    results: list[object] = []
    for ladder in (_c, _twin):
        with page_file() as there, page_file() as other:
            destination = store(ladder, there, by_content=False)
            origins = offered(ladder, numbers, other)
            try:
                got = [destination.decode(Parts(*frame), origins) for frame in frames]
            except LadderFormatError as error:
                results.append(error.problem)
            else:
                results.append([(bytes(a), bytes(p)) for a, p in got])
    assert results[0] == results[1]


@both
def test_every_rung_is_taken_where_it_fits(ladder):
    with page_file() as file:
        source = store(ladder, file)
        references = ladder.References(hashed([50]))
        first = source.encode(addresses(0, PAGE), noise(1) + noise(2))
        assert first.pages[Rung.LITERAL] == 2
        changed = bytearray(noise(1))
        changed[5] ^= 1
        pages = [b"\7" * PAGE, noise(2), noise(2), noise(50), bytes(changed), noise(3)]
        where = [2, 1, 3, 4, 0, 5]
        encoded = source.encode(addresses(*(n * PAGE for n in where)), b"".join(pages), references)
        assert list(encoded.parts.ops) == [
            *(Rung.UNIFORM, Rung.SAME, Rung.COPY, Rung.REFERENCE, Rung.DELTA, Rung.LITERAL)
        ]
        assert encoded.pages == (1, 1, 1, 1, 1, 1)
        assert len(encoded.parts.masks) == PAGE // 64
        assert len(encoded.parts.words) == 8
        assert bytes(encoded.parts.literals) == noise(3)


@both
def test_pages_that_count_up_cost_a_byte_and_neighbours_are_runs_of_zeros(ladder):
    with page_file() as file:
        source = store(ladder, file)
        where = addresses(*(n * PAGE for n in range(20)))
        pages = b"".join(noise(n) for n in range(20))
        assert bytes(source.encode(where, pages).parts.places) == bytes(20)
        moved = addresses(*(n * PAGE for n in range(20, 40)))
        copied = source.encode(moved, pages).parts
        assert bytes(copied.args) == bytes(20)
        assert bytes(copied.ops) == bytes([Rung.COPY]) * 20


@both
def test_what_is_not_looked_for_is_not_found(ladder):
    with page_file() as file:
        source = store(ladder, file)
        source.encode(addresses(0), noise(1))
        changed = noise(1)[:-1] + b"!"
        plain = source.encode(addresses(0, PAGE), changed * 2, content=False, delta=False)
        assert plain.pages[Rung.LITERAL] == 2
        # What was kept unseen is not found by its content later, and nothing wrong is.
        assert source.encode(addresses(9 * PAGE), changed).pages[Rung.LITERAL] == 1
        assert source.encode(addresses(0), changed).pages[Rung.SAME] == 1


@both
def test_references_that_were_dropped_are_not_used_any_more(ladder):
    references = ladder.References(hashed([1, 2, 3]))
    references.drop(0, 2)
    with page_file() as file:
        source = store(ladder, file)
        encoded = source.encode(addresses(0, 1, 2), noise(1) + noise(2) + noise(3), references)
    assert list(encoded.parts.ops) == [Rung.LITERAL, Rung.LITERAL, Rung.REFERENCE]
    with pytest.raises(ValueError, match="not among"):
        references.drop(2, 2)


@both
def test_a_page_of_a_file_that_was_closed_is_refused(ladder):
    with page_file() as here, page_file() as there, page_file() as other:
        encoded = store(ladder, here).encode(addresses(0), noise(1), ladder.References(hashed([1])))
        origins = offered(ladder, [1], other)
        origins.close(0)
        destination = store(ladder, there, by_content=False)
        with pytest.raises(LadderFormatError) as caught:
            destination.decode(kept(encoded.parts), origins)
    assert caught.value.problem is DecodeProblem.BAD_ARGUMENT


@pairs
def test_a_store_goes_on_from_its_file(sender, receiver):
    with page_file() as here, page_file() as there:
        where, pages = addresses(0, PAGE, 2 * PAGE), noise(1) + noise(2) + noise(3)
        encoded = store(sender, here).encode(where, pages)
        store(receiver, there).decode(kept(encoded.parts))
        count = contents(here)[0]
        (hashes,) = sender.hash_file(here.fileno(), PLACES.pages_at, count, PAGE, [7])
        assert hashes.tolist() == hashed([1, 2, 3]).tolist()
        source, destination = store(receiver, here), store(sender, there)
        source.load(count, hashes)
        destination.load(count)
        again = source.encode(addresses(PAGE, 9 * PAGE), noise(2) + noise(3))
        assert list(again.parts.ops) == [Rung.SAME, Rung.COPY]
        assert bytes(destination.decode(kept(again.parts))[1]) == noise(2) + noise(3)


@both
def test_a_table_that_names_an_address_twice_is_no_table(ladder):
    with page_file() as file:
        os.pwrite(file.fileno(), addresses(5, 5), PLACES.addresses_at)
        with pytest.raises(StoreTableError):
            store(ladder, file).load(2)
        with pytest.raises(StoreTableError):
            store(ladder, file, capacity=1).load(2)


@both
def test_two_seeds_can_be_hashed_by_in_one_pass_and_a_short_file_is_an_error(ladder):
    with page_file() as file:
        for place, number in enumerate([1, 2, 3]):
            os.pwrite(file.fileno(), noise(number), place * PAGE)
        one, two = ladder.hash_file(file.fileno(), 0, 3, PAGE, [7, 8])
        assert one.tolist() == hashed([1, 2, 3]).tolist()
        assert two.tolist() == hashed([1, 2, 3], 8).tolist()
        data = noise(1) + noise(2)
        assert ladder.hash_pages(data, PAGE, 3).tolist() == hashed([1, 2], 3).tolist()
        with pytest.raises(OSError, match="Input/output"):
            ladder.hash_file(file.fileno(), 0, 1 << 20, PAGE, [7])


@both
def test_a_full_disk_is_an_error_and_no_signal(ladder, tmp_path):
    resource = pytest.importorskip("resource")
    with open(tmp_path / "pages", "w+b") as file:
        file.truncate(PLACES.pages_at + 100 * PAGE)
        source = store(ladder, file)
        # Python ignores SIGXFSZ, so that the limit on a file's size stands for a disk that is full.
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (PLACES.pages_at + 2 * PAGE, limits[1]))
        try:
            for number in range(2):
                source.encode(addresses(number * PAGE), noise(number))
            with pytest.raises(OSError, match="large"):
                source.encode(addresses(2 * PAGE), noise(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@both
@pytest.mark.parametrize(
    "wrong",
    [{"page_size": 63}, {"page_size": 100}, {"page_size": 1 << 17}, {"capacity": -1}],
)
def test_sizes_that_make_no_sense_are_refused(ladder, wrong):
    with page_file() as file, pytest.raises(ValueError, match=r"page_size|capacity"):
        store(ladder, file, **wrong)


@both
def test_a_file_that_is_too_short_and_a_batch_that_does_not_fit_are_refused(ladder):
    with page_file(4) as file:
        with pytest.raises(ValueError, match="needs"):
            store(ladder, file, capacity=5)
        source = store(ladder, file, capacity=4)
        for where, pages in ((b"1234567", b""), (addresses(0), bytes(PAGE - 1)), (b"", bytes(1))):
            with pytest.raises(ValueError, match="do not fit"):
                source.encode(where, pages)
        assert sum(source.encode(b"", b"").pages) == 0


@compared
def test_hostile_references_that_fall_on_one_place_cost_little():
    same = np.arange(1, 200_001, dtype=np.uint64)  # their upper halves are all zero
    references = _c.References(same)
    assert len(references) == 200_000


@compared
def test_a_store_used_by_two_threads_at_once_says_so():
    errors: list[RuntimeError] = []
    capacity = 20_000
    with page_file(capacity, 4096) as file:
        source = store(_c, file, capacity, page_size=4096)
        where = addresses(*range(0, capacity * 4096, 4096))
        pages = random.Random(1).randbytes(capacity * 4096)
        start = threading.Barrier(2)

        def work() -> None:
            start.wait(10)
            try:
                source.encode(where, pages)
            except RuntimeError as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert all("two threads" in str(error) for error in errors)


@both
def test_memory_is_about_32_bytes_a_page(ladder):
    if ladder is _twin:
        pytest.skip("a dictionary takes more")
    capacity = 1 << 14
    with page_file(capacity, 64) as file:
        source = store(ladder, file, capacity, page_size=64)
        pages = random.Random(1).randbytes(capacity * 64)
        for first in range(0, capacity, 256):
            where = addresses(*range(first * 64, (first + 256) * 64, 64))
            source.encode(where, pages[first * 64 : (first + 256) * 64])
        assert source.count == capacity
        assert source.memory_bytes < 40 * capacity


@pytest.mark.slow
def test_without_a_compiler_the_installation_succeeds_and_uses_the_twin(tmp_path):
    project = Path(__file__).parent.parent
    build = tmp_path / "build"
    done = subprocess.run(
        [
            *(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)),
            *("build", "--build-base", str(build), "--build-lib", str(build / "lib")),
        ],
        cwd=project,
        env={**os.environ, "CC": "/bin/false"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = subprocess.run(
        [sys.executable, "-c", "import novacron_native_ladder as n; print(n.implementation())"],
        env={**os.environ, "PYTHONPATH": str(build / "lib")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.stdout.strip() == "python", said.stderr
