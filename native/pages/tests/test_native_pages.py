"""Zero scan, compare and hash: both implementations against each other and against plain Python."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import novacron_native_pages
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from novacron_native_pages import _twin

try:
    from novacron_native_pages import _c
except ImportError:  # installed without a compiler: then the twin is tested alone
    IMPLEMENTATIONS: list[ModuleType] = [_twin]
else:
    IMPLEMENTATIONS = [_c, _twin]

PAGE = 64
both = pytest.mark.parametrize("pages", IMPLEMENTATIONS, ids=lambda m: m.__name__[-4:])


def memory(page_size: int = PAGE, most: int = 40) -> st.SearchStrategy[bytes]:
    """Pages of which many are zero and many differ in one byte only."""
    page = st.one_of(
        st.just(bytes(page_size)),
        st.integers(0, page_size - 1).map(lambda at: bytes(at) + b"\1" + bytes(page_size - at - 1)),
        st.integers(0, 255).map(lambda value: bytes([value]) * page_size),
    )
    return st.lists(page, max_size=most).map(b"".join)


@st.composite
def two_memories(draw: st.DrawFn) -> tuple[bytes, bytes]:
    old = draw(memory())
    new = bytearray(old)
    if old:
        for at in draw(st.lists(st.integers(0, len(old) - 1), max_size=10)):
            new[at] ^= draw(st.integers(0, 255))
    return old, bytes(new)


def test_the_implementation_in_use_is_named():
    assert novacron_native_pages.implementation() == ("c" if len(IMPLEMENTATIONS) == 2 else "numpy")


@both
@given(data=memory())
def test_the_bitmap_marks_exactly_the_zero_pages(pages, data):
    bitmap = pages.zero_pages(data, PAGE)
    count = len(data) // PAGE
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    expected = [not any(data[i * PAGE : (i + 1) * PAGE]) for i in range(count)]
    assert bits[:count].tolist() == expected
    assert not bits[count:].any()


@both
@given(memories=two_memories())
def test_changed_pages_are_those_that_differ(pages, memories):
    old, new = memories
    expected = [
        i
        for i in range(len(old) // PAGE)
        if old[i * PAGE : (i + 1) * PAGE] != new[i * PAGE : (i + 1) * PAGE]
    ]
    assert pages.changed_pages(old, new, PAGE).tolist() == expected


@both
@given(memories=two_memories(), room=st.integers(1, 5))
def test_taking_changed_pages_in_steps_brings_the_old_copy_up_to_date(pages, memories, room):
    old, new = bytearray(memories[0]), memories[1]
    expected = pages.changed_pages(old, new, PAGE).tolist()
    taken: list[int] = []
    at, count = 0, len(new) // PAGE
    while at < count:
        out = bytearray(room * PAGE + 3)
        indices, at = pages.take_changed(old, new, PAGE, out, at)
        for place, index in enumerate(indices.tolist()):
            assert out[place * PAGE : (place + 1) * PAGE] == new[index * PAGE : (index + 1) * PAGE]
        taken += indices.tolist()
        assert len(indices) <= room
    assert taken == expected
    assert old == new


@both
@given(data=memory(), page_size=st.sampled_from([64, 128, 4096]))
def test_hashes_are_xxh64_of_each_page(pages, data, page_size):
    data = data[: len(data) // page_size * page_size]
    expected = [
        xxhash.xxh64_intdigest(data[at : at + page_size]) for at in range(0, len(data), page_size)
    ]
    assert pages.hash_pages(data, page_size).tolist() == expected


@pytest.mark.skipif(len(IMPLEMENTATIONS) == 1, reason="there is no C part in this installation")
def test_hashes_of_random_pages_agree():
    data = np.random.default_rng(7).bytes(4096 * 64)
    assert _c.hash_pages(data, 4096).tolist() == _twin.hash_pages(data, 4096).tolist()


@both
@pytest.mark.parametrize("page_size", [0, -4096, 32, 100, 1 << 25])
def test_a_page_size_that_makes_no_sense_is_refused(pages, page_size):
    with pytest.raises(ValueError, match="page_size"):
        pages.zero_pages(bytes(4096), page_size)


@both
def test_a_part_of_a_page_is_refused(pages):
    with pytest.raises(ValueError, match="4097 bytes"):
        pages.hash_pages(bytes(4097), 4096)


@both
def test_memories_of_different_size_are_refused(pages):
    with pytest.raises(ValueError, match="old has 64"):
        pages.changed_pages(bytes(64), bytes(128), 64)


@both
def test_taking_changed_pages_checks_its_room_and_its_start(pages):
    with pytest.raises(ValueError, match="less than a page"):
        pages.take_changed(bytearray(64), bytes(64), 64, bytearray(63))
    with pytest.raises(ValueError, match="start is 2"):
        pages.take_changed(bytearray(64), bytes(64), 64, bytearray(64), 2)
    with pytest.raises(BufferError):
        pages.take_changed(bytes(64), bytes(64), 64, bytearray(64))


@both
def test_no_pages_are_no_work(pages):
    assert pages.zero_pages(b"", 4096) == b""
    assert pages.hash_pages(b"", 4096).tolist() == []
    assert pages.changed_pages(b"", b"", 4096).tolist() == []
    assert pages.take_changed(bytearray(), b"", 4096, bytearray(4096))[1] == 0


@pytest.mark.skipif(len(IMPLEMENTATIONS) == 1, reason="there is no C part in this installation")
def test_a_splitter_used_by_two_threads_at_once_says_so():
    splitter = _c.Splitter()
    data = bytes(64 << 20)
    errors: list[RuntimeError] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait(10)
        try:
            splitter.feed(data)
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all("two threads" in str(error) for error in errors)
    assert splitter.counters.bytes == (4 - len(errors)) * len(data)


@pytest.mark.slow
def test_without_a_compiler_the_installation_succeeds_and_uses_the_twin(tmp_path):
    project = Path(__file__).parent.parent
    build = tmp_path / "build"
    env = {**os.environ, "CC": "/bin/false"}
    done = subprocess.run(
        [
            *(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)),
            *("build", "--build-base", str(build), "--build-lib", str(build / "lib")),
        ],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = subprocess.run(
        [sys.executable, "-c", "import novacron_native_pages as n; print(n.implementation())"],
        env={**env, "PYTHONPATH": str(build / "lib")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.stdout.strip() == "numpy", said.stderr
