"""The guest's agent runs here, on a terminal of ours, and its beats are listened to."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from novacron import MachineError
from novacron_bench._beats import Beat, Beats, Check, Pulse, pace, pause_s, worst_gap_s
from novacron_bench._disk import disk, weighted_sum
from novacron_bench._guest import agent

WAIT_S = 20.0


@given(st.lists(st.integers(0, 40), max_size=6))
def test_the_weighted_sum_does_not_depend_on_how_the_disk_is_read(lengths: list[int]) -> None:
    blocks = [np.arange(n * 7, n * 7 + n, dtype="<u8").tobytes() for n in lengths]
    whole = b"".join(blocks)
    words = [int.from_bytes(whole[i : i + 8], "little") for i in range(0, len(whole), 8)]
    expected = sum(word * (2 * i + 1) for i, word in enumerate(words)) % 2**64
    assert weighted_sum(blocks) == expected == weighted_sum([whole] if whole else [])


def test_a_disk_is_made_once_and_is_the_same_every_time(tmp_path: Path) -> None:
    first = disk(1 << 20, folder=tmp_path / "one")
    assert first.path.stat().st_size == first.size_bytes == 1 << 20
    assert disk(1 << 20, folder=tmp_path / "two").sum == first.sum
    made_at = first.path.stat().st_mtime_ns
    assert disk(1 << 20, folder=tmp_path / "one") == first
    assert first.path.stat().st_mtime_ns == made_at


@pytest.fixture
def line(tmp_path: Path) -> Iterator[tuple[Pulse, socket.socket]]:
    """A pulse, and the end that a QEMU would write to."""
    with Beats(tmp_path / "beat") as beats, socket.socket(socket.AF_UNIX) as qemu:
        qemu.connect(str(beats.path))
        yield beats.pulse(0, WAIT_S), qemu


def test_beats_are_read_whole_wherever_the_stream_is_cut(
    line: tuple[Pulse, socket.socket],
) -> None:
    pulse, qemu = line
    said = b"3 9 9\nready\nb 1 a 0 0\nnoise\nb 2 14 1 0\nc ff 0\n"
    for byte in said:
        qemu.sendall(bytes([byte]))
    assert pulse.wait(lambda: pulse.checks, WAIT_S)
    assert pulse.ready.is_set()
    assert [(b.count, b.clock_us, b.writes, b.errors) for b in pulse.beats] == [
        (1, 10, 0, 0),
        (2, 20, 1, 0),
    ]
    assert pulse.checks == [Check(sum=255, errors=0)]


def test_whoever_waits_for_a_guest_whose_qemu_ended_waits_no_longer(
    line: tuple[Pulse, socket.socket],
) -> None:
    pulse, qemu = line
    qemu.close()
    assert not pulse.wait(lambda: pulse.beats, WAIT_S)
    with pytest.raises(MachineError):
        pulse.check(WAIT_S)


def test_a_qemu_that_does_not_come_is_told(tmp_path: Path) -> None:
    with Beats(tmp_path / "beat") as beats, pytest.raises(MachineError, match="number 1"):
        beats.pulse(0, 0.01)


def beats_at(*times: float) -> list[Beat]:
    return [Beat(at, number, 0, 0, 0) for number, at in enumerate(times)]


def test_the_pause_is_from_the_last_beat_there_to_the_first_here() -> None:
    assert pause_s(beats_at(1.0, 1.5), beats_at(1.75, 1.8)) == 0.25
    assert pause_s(beats_at(1.0), []) is None


def test_stalls_and_the_pace_are_read_from_the_beats() -> None:
    beats = beats_at(0.0, 1.0, 1.25, 3.25, 3.5)
    assert worst_gap_s(beats, 1.0) == 2.0
    assert worst_gap_s(beats, 9.0) == 0
    assert pace(beats, 0.0, 2.0) == 1.5
    assert pace(beats, 2.0, 2.0) is None


@pytest.fixture
def listen() -> Iterator[Callable[..., Pulse]]:
    """Runs the agent on a pseudo-terminal, as its guest's serial port."""
    ending: list[Callable[[], None]] = []

    def run(**environment: str) -> Pulse:
        ours, theirs = pty.openpty()
        near, far = socket.socketpair()

        def copy(source: int, sink: int) -> None:
            try:
                while data := os.read(source, 4096):
                    os.write(sink, data)
            except OSError:
                pass  # the terminal's other side is closed
            far.close()

        process = subprocess.Popen(
            [str(agent()), os.ttyname(theirs)],
            env={"beat": "2", **environment},
            start_new_session=True,
        )
        for source, sink in ((ours, far.fileno()), (far.fileno(), ours)):
            threading.Thread(target=copy, args=(source, sink), daemon=True).start()
        pulse = Pulse(near)
        threading.Thread(target=pulse.run, daemon=True).start()

        def stop() -> None:
            os.killpg(process.pid, 9)  # with the children that work and check
            process.wait()
            pulse.close()
            os.close(theirs)

        ending.append(stop)
        return pulse

    yield run
    for stop in ending:
        stop()


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["writer", "kv", "thrash"])
def test_a_guest_that_writes_beats_and_finds_its_own_memory_whole(
    listen: Callable[..., Pulse], workload: str
) -> None:
    pulse = listen(workload=workload, rate="1", set="1", heap="1", seed="3")
    assert pulse.wait(pulse.ready.is_set, WAIT_S)
    assert pulse.wait(lambda: pulse.beats and pulse.beats[-1].writes > 50, WAIT_S)
    check = pulse.check(WAIT_S)
    assert check.errors == 0
    counts = [beat.count for beat in pulse.beats]
    assert counts == list(range(counts[0], counts[0] + len(counts)))


@pytest.mark.slow
def test_an_idle_guest_only_beats(listen: Callable[..., Pulse]) -> None:
    pulse = listen(workload="idle")
    assert pulse.wait(lambda: len(pulse.beats) > 10, WAIT_S)
    assert {beat.writes for beat in pulse.beats} == {0}
