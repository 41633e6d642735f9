"""What moves have taught, on disk: bounded, written as a whole, and begun anew where damaged."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Annotated, Final

import msgspec

from novacron_transport_pba._calibration import ERRORS_MAX, KINDS

log = logging.getLogger("novacron.pba")
FILE: Final = "lessons.json"
FORMAT: Final = 1
BYTES_MAX: Final = 4 << 20
MACHINES_MAX: Final = 512
LINKS_MAX: Final = 256
MOVES_MAX: Final = 200
_PACE: Final = 0.5  # Of what the last move counts among the lessons of a machine.

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Positive = Annotated[float, msgspec.Meta(ge=0, le=1e18)]
Name = Annotated[str, msgspec.Meta(max_length=256)]


class MachineLesson(msgspec.Struct, kw_only=True):
    """One machine through one codec.

    Attributes:
        moves: That it is learnt from.
        bytes_per_used: On the wire, over all passes, per byte that was in use.
        wire_per_state: On the wire per byte of state that was read.
        again_part: What was read more than once, as a part of what was in use.
        tail_s: From the end of the copy to the end of the move.
        pause_ms: That the guest felt.
    """

    moves: Count = 0
    bytes_per_used: Positive = 0.0
    wire_per_state: Positive = 0.0
    again_part: Positive = 0.0
    tail_s: Positive = 0.0
    pause_ms: Positive = 0.0

    def learn(self, **found: float) -> None:
        """Move towards what the last move showed."""
        for name, value in found.items():
            before = getattr(self, name)
            setattr(self, name, before + _PACE * (value - before) if self.moves else value)
        self.moves += 1


class LinkLesson(msgspec.Struct, kw_only=True):
    """One target: the forecaster's state, and what the last move reached."""

    snapshot: Annotated[bytes, msgspec.Meta(max_length=4096)] = b""
    rate_bytes_per_s: Positive = 0.0
    round_trip_ms: Positive | None = None


class ScoredMove(msgspec.Struct, kw_only=True):
    """A finished move: what was foreseen (low, middle, high) beside what happened.

    Attributes:
        plan_seconds, plan_bytes, plan_pause_ms: Before it began.
        etas: At a quarter, half and three quarters of its time: low, middle, high of the time left,
            and the time that was really left.
    """

    machine: Name
    target: Name
    codec: Name
    at_s: Positive
    seconds: Positive
    bytes: Positive
    pause_ms: Positive
    plan_seconds: tuple[Positive, Positive, Positive] | None = None
    plan_bytes: tuple[Positive, Positive, Positive] | None = None
    plan_pause_ms: tuple[Positive, Positive, Positive] | None = None
    etas: dict[Annotated[str, msgspec.Meta(max_length=3)],
               tuple[Positive, Positive, Positive, Positive]] = {}  # fmt: skip


class Lessons(msgspec.Struct, kw_only=True):
    """All of it."""

    format: Count = FORMAT
    machines: dict[Name, MachineLesson] = {}
    links: dict[Name, LinkLesson] = {}
    errors: dict[Name, list[Annotated[float, msgspec.Meta(ge=-5, le=5)]]] = {}
    moves: list[ScoredMove] = []

    def machine(self, machine: str, codec: str) -> MachineLesson:
        """The lesson of a machine and a codec, made where there is none."""
        return self.machines.setdefault(f"{machine}/{codec}", MachineLesson())

    def known(self, machine: str, codec: str) -> MachineLesson | None:
        """The lesson of this machine; else the mean of all that went through this codec."""
        own = self.machines.get(f"{machine}/{codec}")
        if own is not None and own.moves:
            return own
        alike = [
            lesson
            for name, lesson in self.machines.items()
            if name.rpartition("/")[2] == codec and lesson.moves
        ]
        if not alike:
            return None
        count = len(alike)
        return MachineLesson(
            moves=count,
            bytes_per_used=sum(one.bytes_per_used for one in alike) / count,
            wire_per_state=sum(one.wire_per_state for one in alike) / count,
            again_part=sum(one.again_part for one in alike) / count,
            tail_s=sum(one.tail_s for one in alike) / count,
            pause_ms=sum(one.pause_ms for one in alike) / count,
        )

    def error(self, kind: str, error: float | None) -> None:
        if error is not None:
            self.errors.setdefault(kind, []).append(error)

    def bound(self) -> None:
        """Forget what is oldest."""
        self.errors = {
            kind: found[-ERRORS_MAX:] for kind, found in self.errors.items() if kind in KINDS
        }
        self.moves = self.moves[-MOVES_MAX:]
        self.machines = dict(list(self.machines.items())[-MACHINES_MAX:])
        self.links = dict(list(self.links.items())[-LINKS_MAX:])


def folder_of(state_dir: Path) -> Path:
    """Where a node keeps its lessons."""
    return state_dir / "transport-pba"


def read(folder: Path) -> Lessons:
    """What was learnt; nothing if there is no file, or if it is damaged, which is logged.

    A damaged file is kept beside the new one: lessons are worth having, but no node may fail to
    start for the lack of them.
    """
    path = folder / FILE
    try:
        with path.open("rb") as file:
            content = file.read(BYTES_MAX + 1)
        if len(content) > BYTES_MAX:
            raise ValueError(f"it is larger than {BYTES_MAX} bytes")
        lessons = msgspec.json.decode(content, type=Lessons)
        if lessons.format != FORMAT:
            raise ValueError(f"its format is {lessons.format}, not {FORMAT}")
    except FileNotFoundError:
        return Lessons()
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        log.warning("%s cannot be used (%s): forecasts of moves are learnt anew", path, error)
        try:
            path.rename(path.with_suffix(".damaged"))
        except OSError:
            log.warning("%s cannot be put aside, and will be replaced", path)
        return Lessons()
    lessons.bound()
    return lessons


def encode(lessons: Lessons) -> bytes:
    """As the file has it."""
    lessons.bound()
    return msgspec.json.encode(lessons)


def write(folder: Path, content: bytes) -> None:
    """Replace the file; durable when it returns. Raises: OSError, and the old file is whole."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = folder / f".{FILE}.new"
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / FILE)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sane(value: float) -> float:
    """A figure that may be kept."""
    return value if math.isfinite(value) and 0 <= value <= 1e18 else 0.0
