"""What uses the machine while it moves, and remembers what it was promised."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from typing import Final, TypeVar

from attrs import frozen
from novacron import MachineError
from novacron_machine_wasm import KvClient, TableFull

from novacron_demo._proof import Ticks, check_ticks

VALUE_BYTES: Final = 200
# An entry of that size takes a block of this size in the guest.
BLOCK_BYTES: Final = 512
HOT_KEYS: Final = 64
ANSWER_TIMEOUT_S: Final = 2.0
LAST_ANSWER_TIMEOUT_S: Final = 15.0
RETRY_S: Final = 0.005
POLL_S: Final = 0.005
T = TypeVar("T")


class Load:
    """A thread that uses the machine. `acks` are the times at which it got what it asked for."""

    def __init__(self) -> None:
        self.acks: list[float] = []
        self._fault: BaseException | None = None
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name="novacron-load", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def count(self) -> int:
        """Acknowledgements so far."""
        return len(self.acks)

    def stop(self) -> None:
        """End it. Twice is once."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2 * LAST_ANSWER_TIMEOUT_S)

    def check(self) -> None:
        """Raises MachineError if the load had to give up."""
        if self._fault is not None:
            raise MachineError(
                f"the load gave up: {self._fault}", hint="the machine no longer answers"
            ) from self._fault

    def wait_for_acks(self, count: int, timeout_s: float) -> None:
        """Return after so many further acknowledgements. Raises MachineError."""
        with self._changed:
            wanted = len(self.acks) + count
            self._changed.wait_for(lambda: len(self.acks) >= wanted or self._fault, timeout_s)
        self.check()
        if len(self.acks) < wanted:
            raise MachineError(
                f"the machine acknowledged nothing for {timeout_s:g} s", hint="see the nodes' logs"
            )

    def _acknowledged(self) -> None:
        with self._changed:
            self.acks.append(time.monotonic())
            self._changed.notify_all()

    def _guarded(self) -> None:
        try:
            self._run()
        except (OSError, ValueError, TableFull) as error:
            with self._changed:
                self._fault = error
                self._changed.notify_all()

    @abstractmethod
    def _run(self) -> None:
        """Until `_stopping` is set."""


@frozen(kw_only=True)
class ReadBack:
    """Whether a store holds what was acknowledged.

    Attributes:
        entries: Keys that were read.
        faults: What was missing or wrong, in words.
    """

    entries: int
    faults: tuple[str, ...]


def value_of(key: bytes, number: int) -> bytes:
    """What is written to a key by the write of that number."""
    head = b"%s:%d:" % (key, number)
    noise = hashlib.blake2b(head).hexdigest().encode()
    return (head + noise * 2)[:VALUE_BYTES].ljust(VALUE_BYTES, b".")


class KvLoad(Load):
    """Writes to a key-value machine, one entry after the other, wherever it is served.

    Three of four writes make a new entry, as long as there is room for new ones; the fourth
    writes over one of a few.

    Args:
        services: Where the machine may be served, one socket per node.
        interval_s: Between two writes.
        capacity: How many entries of its own it may make.
    """

    def __init__(self, services: Sequence[Path], interval_s: float, capacity: int) -> None:
        super().__init__()
        self._services = list(services)
        self._interval_s = interval_s
        self._capacity = capacity
        self._client: KvClient | None = None
        self._held: dict[bytes, int] = {}
        self.entries_before = self._ask(KvClient.count)

    def _run(self) -> None:
        try:
            number = 0
            while not self._stopping.wait(self._interval_s):
                turn, kind = divmod(number, 4)
                if kind == 3:
                    key = b"stock-%d" % (turn % HOT_KEYS)
                else:
                    key = b"order-%d" % ((3 * turn + kind) % self._capacity)
                self._write(key, number)
                number += 1
        finally:
            self._leave()

    def _write(self, key: bytes, number: int) -> None:
        value = value_of(key, number)
        self._ask(lambda client: client.put(key, value))
        self._held[key] = number
        self._acknowledged()

    def _ask(self, question: Callable[[KvClient], T]) -> T:
        """Ask until there is an answer: a machine that moves serves elsewhere a moment later."""
        deadline: float | None = None
        while True:
            try:
                if self._client is None:
                    self._client = KvClient(self._services[0], ANSWER_TIMEOUT_S)
                return question(self._client)
            except OSError:
                self._leave()
                self._services.append(self._services.pop(0))
                if self._stopping.is_set():
                    # A write that nobody acknowledged may have been done or not; the proof is
                    # about the others. So this one is seen through, but not for ever.
                    deadline = deadline or time.monotonic() + LAST_ANSWER_TIMEOUT_S
                    if time.monotonic() > deadline:
                        raise
                time.sleep(RETRY_S)

    def _leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def read_back(self) -> ReadBack:
        """Compare the machine with what it acknowledged, once the load has been stopped."""
        faults: list[str] = []
        try:
            for key, number in self._held.items():
                found = self._ask(lambda client, key=key: client.get(key))  # type: ignore[misc]
                if found != value_of(key, number):
                    what = "is missing" if found is None else f"holds {found!r:.60}"
                    faults.append(f"{key.decode()}, acknowledged as write {number}, {what}")
            there, due = self._ask(KvClient.count), self.entries_before + len(self._held)
            if there != due:
                faults.append(f"the machine holds {there} entries and should hold {due}")
        finally:
            self._leave()
        return ReadBack(entries=len(self._held), faults=tuple(faults))


class TickLoad(Load):
    """Reads along on a machine's consoles; each of its ticks counts as an acknowledgement.

    Args:
        consoles: The log of the console on each node; it begins anew with each of its stays there.
    """

    def __init__(self, consoles: Sequence[Path]) -> None:
        super().__init__()
        self._consoles = list(consoles)
        # In the order of the stays. Open files keep what a node removes when a machine has left.
        self._files: list[FileIO] = []
        self._known: set[tuple[int, int]] = set()
        self._text: list[bytearray] = []

    def _run(self) -> None:
        while not self._stopping.wait(POLL_S):
            self._look()
        self._look()

    def _look(self) -> None:
        for path in self._consoles:
            with contextlib.suppress(FileNotFoundError):
                there = os.stat(path)
                if (there.st_dev, there.st_ino) not in self._known:
                    self._files.append(FileIO(path, "r"))
                    self._known.add((there.st_dev, there.st_ino))
                    self._text.append(bytearray())
        for file, text in zip(self._files, self._text, strict=True):
            before = text.count(b"tick ", max(0, len(text) - 4))
            start = max(0, len(text) - 4)
            text += file.read() or b""
            for _ in range(text.count(b"tick ", start) - before):
                self._acknowledged()

    def ticks(self) -> Ticks:
        """What was counted, once the machine is paused and the load was stopped."""
        return check_ticks(b"".join(self._text))

    def close(self) -> None:
        for file in self._files:
            file.close()
