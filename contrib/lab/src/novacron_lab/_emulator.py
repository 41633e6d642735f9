"""The process that carries a lab's packets, and how to talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from novacron import ConfigError, Conflict, InternalError
from novacron_native_netlab import CannotCompile, program

from novacron_lab._spec import LabPath, LinkSpec
from novacron_lab._trace import prepared

_START_S: Final = 20
_STOP_S: Final = 5
_ANSWER_S: Final = 5
_ANSWER_BYTES: Final = 1 << 20


@frozen(kw_only=True)
class Process:
    """A process that cannot be mistaken for a later one of the same number.

    Attributes:
        pid: Its number.
        began: When it began, in the kernel's ticks since boot.
    """

    pid: int
    began: int

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(pid=pid, began=_began(pid))

    def alive(self) -> bool:
        try:
            return _began(self.pid) == self.began and _state(self.pid) not in "ZX"
        except (OSError, IndexError):
            return False

    def end(self) -> None:
        """Ask it to end, then make it; nothing happens to anybody else."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # The handle is of whoever has the number now: look before anything is sent.
            if not self.alive():
                return
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
                if select.select([handle], [], [], _STOP_S)[0]:
                    return
        finally:
            os.close(handle)


def _fields(pid: int) -> list[str]:
    # The name in brackets may hold anything; what follows the last bracket does not.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _began(pid: int) -> int:
    return int(_fields(pid)[19])


def _state(pid: int) -> str:
    return _fields(pid)[0]


def figures(link: LinkSpec, round_trip_s: float) -> list[str]:
    """A direction's figures as the emulator wants them: all of them, bytes and nanoseconds."""
    bursts = link.bursts
    values: dict[str, float] = {
        "rate": (link.rate_bit_per_s or 0) / 8,
        "delay": link.delay_s * 1e9,
        "jitter": link.jitter_s * 1e9,
        "loss": link.loss,
        "burst_begin": bursts.begin if bursts else 0,
        "burst_end": bursts.end if bursts else 0,
        "burst_loss": bursts.loss if bursts else 0,
        "queue": link.queue_for(round_trip_s),
        "reorder": link.reorder,
        "reorder_by": link.late_s * 1e9,
    }
    return [f"{key}={value:.12g}" for key, value in values.items()]


def set_lines(path: LabPath, folder: Path) -> Iterator[str]:
    """The commands that give a path its figures, outages apart; traces may be written below
    ``folder``."""
    for source, _, link in path.directions():
        yield f"set {path.wire(source)} {' '.join(figures(link, path.round_trip_s))}"
        yield f"trace {path.wire(source)} {_trace(link, folder)}"


def outage_line(wire: str, after_s: float, length_s: float) -> str:
    return f"outage {wire} {round(after_s * 1e9)} {round(length_s * 1e9)}"


def start_lines(
    paths: Iterable[LabPath], namespaces: dict[str, str], seed: int, offload: bool, folder: Path
) -> Iterator[str]:
    """What the emulator is to carry out before it says that it is ready."""
    for number, path in enumerate(paths):
        yield (
            f"pair {path.wire(path.a)} {path.wire(path.b)} "
            f"{namespaces[path.a]} {path.device(path.a)} "
            f"{namespaces[path.b]} {path.device(path.b)} {offload:d} {seed * 1000 + number}"
        )
        yield from set_lines(path, folder)
        for source, _, link in path.directions():
            for outage in link.outages:
                yield outage_line(path.wire(source), outage.begin_s, outage.length_s)


def _trace(link: LinkSpec, folder: Path) -> str:
    if link.trace is None:
        return "-"
    where = str(prepared(link.trace, folder))
    if any(character.isspace() for character in where):
        raise ConfigError(f"the trace {where!r} has a blank in its name", hint="rename it")
    return where


class Emulator:
    """Talks to the emulator of a lab that listens in ``folder``."""

    def __init__(self, folder: Path, process: Process) -> None:
        self._folder = folder
        self.process = process

    @classmethod
    def start(
        cls, folder: Path, lines: Iterable[str], owned: bool
    ) -> tuple[Emulator, subprocess.Popen[str]]:
        """Start one. If it is owned it ends with this process, or when its stdin is closed.

        Raises: ConfigError if there is no program or it refuses what it is to do.
        """
        try:
            binary = program()
        except CannotCompile as error:
            raise ConfigError(f"there is no link emulator: {error}") from error
        plan, log = folder / "plan", folder / "log"
        plan.write_text("".join(f"{line}\n" for line in lines))
        command = [str(binary), "run", str(folder / "control"), str(plan)]
        with log.open("w") as errors:
            child = subprocess.Popen(
                [*command, *(["--owner"] if owned else [])],
                stdin=subprocess.PIPE if owned else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the owner, who then ends this
            )
        assert child.stdout is not None
        with child.stdout:
            heard = select.select([child.stdout], [], [], _START_S)[0]
            if not heard or child.stdout.readline() != "ready\n":
                child.kill()
                child.wait()
                said = log.read_text().strip().splitlines()
                raise ConfigError(
                    f"the link emulator did not start: {said[-1] if said else 'it says nothing'}",
                    hint="a TUN device is needed: look for /dev/net/tun",
                )
        return cls(folder, Process.of(child.pid)), child

    def ask(self, line: str) -> dict[str, Any]:
        """Raises Conflict if it has ended, ConfigError with its reason if it refuses."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(_ANSWER_S)
            try:
                client.connect(str(self._folder / "control"))
                client.sendall(line.encode())
                answer: dict[str, Any] = json.loads(client.recv(_ANSWER_BYTES))
            except (OSError, ValueError) as error:
                if not self.process.alive():
                    raise Conflict(
                        f"the link emulator of this lab has ended; {self._folder / 'log'} may say "
                        "why",
                        hint="take the lab down and bring it up again",
                    ) from error
                raise InternalError(f"the link emulator does not answer: {error}") from error
        if "error" in answer:
            raise ConfigError(f"the link emulator refuses: {answer['error']}")
        return answer
