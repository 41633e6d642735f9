"""Listens to the guests' heartbeats, and tells from them how long a guest stood still."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final, Self

from attrs import define, field, frozen
from novacron import MachineError

_LINE_MAX: Final = 4096


@frozen
class Beat:
    """One line of a guest.

    Attributes:
        at_s: When it arrived, by this host's monotonic clock.
        count: Of beats, by the guest.
        clock_us: The guest's own clock.
        writes: What its workload has done so far.
        errors: What of its memory was found wrong.
    """

    at_s: float
    count: int
    clock_us: int
    writes: int
    errors: int


@frozen(kw_only=True)
class Check:
    """A guest's answer when it was asked to look at its memory.

    Attributes:
        sum: Of its disk, as its page cache holds it.
        errors: Records and heap pages that were wrong.
    """

    sum: int
    errors: int


@define(eq=False)
class Pulse:
    """The beats that one QEMU passed on: a guest at one place.

    Attributes:
        beats: In order of arrival.
        ready: Set when the guest has filled its memory.
    """

    _stream: socket.socket
    beats: list[Beat] = field(factory=list, init=False)
    ready: threading.Event = field(factory=threading.Event, init=False)
    checks: list[Check] = field(factory=list, init=False)
    ended: threading.Event = field(factory=threading.Event, init=False)
    changed: threading.Condition = field(factory=threading.Condition, init=False)

    def run(self) -> None:
        """Read until QEMU ends."""
        rest = b""
        # The first line may have begun at the other place.
        with contextlib.suppress(OSError):
            while data := self._stream.recv(65536):
                at_s = time.monotonic()
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[-_LINE_MAX:]
                with self.changed:
                    for line in lines:
                        self._take(line, at_s)
                    self.changed.notify_all()
        with self.changed:
            self.ended.set()
            self.changed.notify_all()

    def _take(self, line: bytes, at_s: float) -> None:
        kind, *numbers = line.split()[:6] or [b""]
        if line == b"ready":
            self.ready.set()
            return
        try:
            values = [int(number, 16) for number in numbers]
        except ValueError:
            return  # a line that was cut in two by a move
        if kind == b"b" and len(values) == 4:
            self.beats.append(Beat(at_s, *values))
        elif kind == b"c" and len(values) == 2:
            self.checks.append(Check(sum=values[0], errors=values[1]))

    def wait(self, condition: Callable[[], object], timeout_s: float) -> bool:
        """Whether the condition came true, looked at whenever something arrived."""
        with self.changed:
            return bool(
                self.changed.wait_for(lambda: condition() or self.ended.is_set(), timeout_s)
            ) and bool(condition())

    def check(self, timeout_s: float) -> Check:
        """Have the guest look at its memory. Raises MachineError if it does not answer."""
        before = len(self.checks)
        try:
            self._stream.sendall(b"check\n")
        except OSError as error:
            raise MachineError(f"the guest's QEMU is gone: {error}") from error
        if not self.wait(lambda: len(self.checks) > before, timeout_s):
            raise MachineError(f"the guest did not look at its memory within {timeout_s:g} s")
        return self.checks[-1]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()


class Beats:
    """The socket that every QEMU of a run connects its guest's port to, in the order of arrival."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._pulses: list[Pulse] = []
        self._arrived = threading.Condition()
        threading.Thread(target=self._accept, daemon=True, name="beats").start()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            pulse = Pulse(stream)
            threading.Thread(target=pulse.run, daemon=True, name="pulse").start()
            with self._arrived:
                self._pulses.append(pulse)
                self._arrived.notify_all()

    def pulse(self, number: int, timeout_s: float) -> Pulse:
        """That of the n-th QEMU, from 0. Raises MachineError if there is none in time."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self._pulses) > number, timeout_s):
                raise MachineError(f"QEMU number {number + 1} of this run did not start")
            return self._pulses[number]

    def count(self) -> int:
        with self._arrived:
            return len(self._pulses)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._arrived:
            for pulse in self._pulses:
                pulse.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pause_s(source: list[Beat], destination: list[Beat]) -> float | None:
    """How long the guest stood still: from the last beat there to the first here."""
    if not source or not destination:
        return None
    return destination[0].at_s - source[-1].at_s


def worst_gap_s(beats: list[Beat], since_s: float) -> float:
    """The longest time between two beats after a moment: what stalls after the arrival cost."""
    times = [beat.at_s for beat in beats if beat.at_s >= since_s]
    return max((later - sooner for sooner, later in pairwise(times)), default=0)


def pace(beats: list[Beat], since_s: float, until_s: float) -> float | None:
    """Beats per second in a stretch of time: below the guest's own pace it was slowed down."""
    count = sum(since_s <= beat.at_s < until_s for beat in beats)
    return count / (until_s - since_s) if until_s > since_s else None
