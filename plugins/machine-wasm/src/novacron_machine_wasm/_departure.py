"""The runner's side of a machine that leaves: passes over memory while the guest goes on.

A pass compares the memory with the shadow, which is what the destination holds by now, and sends
what differs. Each page is copied once; the same copy goes out and into the shadow, so a page that
the guest writes meanwhile only shows up again in the next pass.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from novacron import BATCH_BYTES_TARGET

from novacron_machine_wasm import _wire as wire
from novacron_machine_wasm._digests import ChunkDigests
from novacron_machine_wasm._guest import Guest
from novacron_machine_wasm._pages import (
    BATCH_PAGES,
    Bytes,
    Indices,
    Tagger,
    as_array,
    changed,
    chunks_of,
    gather,
    scatter,
    unpack_have,
)
from novacron_machine_wasm._wire import PAGE

# Between passes once there is nothing to hurry for.
IDLE_S: Final = 0.05
# Passes that do not get smaller before we say that it will not end.
STUBBORN_PASSES: Final = 6
PASSES_MAX: Final = 40
# How fast a core hashes, for the estimate of the pause; taken low on purpose.
HASH_BYTES_PER_S: Final = 1_000_000_000
_SAMPLE_BYTES: Final = 4 << 20
_SAMPLE_S: Final = 0.25


class Gone(Exception):
    """The move was cancelled, or the node that reads has gone."""


class PageStore:
    """A file as large as the memory, mapped: what the destination holds."""

    def __init__(self, path: Path, nbytes: int) -> None:
        """Raises OSError when the disk has no room: now, not as a signal in the middle."""
        path.unlink(missing_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(handle, 0, nbytes)
            self._map = mmap.mmap(handle, nbytes)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        self.path = path
        self.bytes: Bytes = as_array(memoryview(self._map))

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)


class Departure:
    """One move away. `run` is called in a thread of its own; the rest from any thread."""

    def __init__(
        self,
        *,
        guest: Guest,
        module: bytes,
        store: PageStore,
        sock: socket.socket,
        max_downtime_ms: int,
        rate_bytes_per_s: int | None,
        pause: Callable[[], None],
        own_state: Callable[[], dict[str, Any]],
    ) -> None:
        self._guest = guest
        self._memory = as_array(guest.memory)
        self._module = module
        self._store = store
        self._sock = sock
        self._max_downtime_s = max_downtime_ms / 1000
        self._limit = rate_bytes_per_s
        self._pause = pause
        self._own_state = own_state
        self._digests = ChunkDigests(len(guest.memory))
        self._switch = threading.Event()
        self._cancelled = threading.Event()
        # Set whenever `converged` has something to say.
        self.news = threading.Event()
        self.is_converged = False
        self.stalled = ""
        self.complete = False
        self.ended = threading.Event()
        self._free_at = 0.0
        self._round = 0
        self._done = 0
        self._left = 0
        self._dirty = 0
        self._sent_pages = 0
        self._sent_batches = 0
        self._drain = 0.0
        self._sample_bytes = 0
        self._sample_s = 0.0

    # From other threads ------------------------------------------------------------------------

    @property
    def switching(self) -> bool:
        """The guest is paused, or is about to be, for good."""
        return self._switch.is_set() and not self.ended.is_set()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def peer_is_gone(self) -> bool:
        """Whether the node that was to read has hung up."""
        try:
            return not self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def switch_over(self) -> None:
        self._switch.set()

    def cancel(self) -> None:
        """End it; the state of the guest stays what it is."""
        self._cancelled.set()
        self._switch.set()
        self.news.set()
        wire.hang_up(self._sock)
        self.ended.wait(30)
        self.complete = False
        self._store.drop()

    # The thread --------------------------------------------------------------------------------

    def run(self) -> None:
        """Send all; raises nothing. Afterwards `complete` tells whether all was sent."""
        try:
            self._copy()
            self.complete = True
        except (Gone, OSError, wire.WireError):
            self._store.drop()
        finally:
            if not self.complete:
                self.stalled = self.stalled or "the move has ended"
            self.news.set()
            self.ended.set()

    def _copy(self) -> None:
        have = self._peer_has()
        self._send_module()
        shadow, memory = self._store.bytes, self._memory
        pages = self._compare(have)
        history: list[int] = []
        while True:
            self._round += 1
            began = time.monotonic()
            owed = self._ship(pages, stop_for_switch=True)
            self._digests.refresh(shadow.data)
            self._send(wire.PassEnd(round=self._round))
            self._wait_read()
            if self._switch.is_set():
                break
            pages, scan_s = self._scan()
            took = time.monotonic() - began
            self._dirty = int(len(pages) * PAGE / took)
            self._left = len(pages) * PAGE
            self._judge(pages, scan_s, history)
            if self.is_converged or self.stalled or not len(pages):
                self._progress()
                self._switch.wait(max(IDLE_S, 4 * scan_s))
        if self._cancelled.is_set():
            raise Gone
        self._pause()
        self._round += 1
        pages = np.union1d(changed(memory, shadow), owed)
        self._left = len(pages) * PAGE
        self._ship(pages, stop_for_switch=False)
        # Memory and shadow are the same now, so the older digests hold for the memory too.
        self._digests.refresh(memory.data)
        rest = wire.Rest(
            globals=self._guest.globals(),
            pages=self._sent_pages,
            batches=self._sent_batches,
            **self._own_state(),
        )
        rest.digest = wire.proof(self._digests.root(), rest)
        self._send(rest)
        self._frame(wire.END, b"", b"", b"")

    def _peer_has(self) -> bytes:
        header = wire.receive_bytes(self._sock, wire.LENGTH.size)
        (length,) = wire.LENGTH.unpack(header)
        if length > wire.HAVE_MAX:
            raise wire.WireError("the destination's list of pages is too long")
        return bytes(wire.receive_bytes(self._sock, length))

    def _send_module(self) -> None:
        step = BATCH_BYTES_TARGET - 4096
        for offset in range(0, len(self._module), step):
            part = self._module[offset : offset + step]
            self._send(wire.ModulePart(offset=offset, total=len(self._module), data=part))

    def _compare(self, have: bytes) -> Indices:
        """The pages of the first pass. Afterwards the shadow is what the destination begins with,
        but for those pages."""
        shadow, memory = self._store.bytes, self._memory
        if not have:
            # The destination begins with zeros, and so does the shadow.
            return changed(memory, shadow)
        seed, theirs = unpack_have(have, len(memory))
        shadow[:] = memory
        self._digests.touch_all()
        return np.flatnonzero(Tagger(seed).tags(shadow) != theirs).astype(np.int64)

    def _scan(self) -> tuple[Indices, float]:
        began = time.monotonic()
        pages = changed(self._memory, self._store.bytes)
        return pages, time.monotonic() - began

    def _judge(self, pages: Indices, scan_s: float, history: list[int]) -> None:
        """Decide whether the rest can leave in the pause that is allowed, or never will."""
        chunks = len(chunks_of(pages))
        pause_s = scan_s + 2 * chunks * ChunkDigests.CHUNK / HASH_BYTES_PER_S
        if self._drain:
            pause_s += len(pages) * PAGE / self._drain
        if pause_s <= self._max_downtime_s or not len(pages):
            self.is_converged = True
            self.stalled = ""
            self.news.set()
            return
        self.is_converged = False
        history.append(len(pages))
        recent = history[-STUBBORN_PASSES:]
        if len(history) >= PASSES_MAX or (
            len(recent) == STUBBORN_PASSES and min(recent[1:]) > 0.9 * recent[0]
        ):
            self.stalled = (
                f"the guest writes {self._dirty / 1e6:.1f} MB/s and {self._drain / 1e6:.1f} MB/s "
                f"leave: the pause would be {1000 * pause_s:.0f} ms, not "
                f"{1000 * self._max_downtime_s:.0f} ms"
            )
        if self.stalled:
            self.news.set()
        else:
            self.news.clear()

    def _ship(self, pages: Indices, *, stop_for_switch: bool) -> Indices:
        """Send the pages; returns those that were left because the pause is wanted now."""
        shadow, memory = self._store.bytes, self._memory
        self._left = len(pages) * PAGE
        for start in range(0, len(pages), BATCH_PAGES):
            if stop_for_switch and self._switch.is_set():
                return pages[start:]
            some = pages[start : start + BATCH_PAGES]
            contents = gather(memory, some)
            scatter(shadow, some, contents)
            self._digests.touch(chunks_of(some))
            self._left -= len(contents)
            self._sent_pages += len(some)
            self._send(
                wire.Pages(round=self._round),
                (some * PAGE).astype("<u8").tobytes(),
                contents.data,
            )
        return np.empty(0, np.int64)

    def _send(
        self, layout: wire.Layout, addresses: bytes = b"", pages: memoryview | bytes = b""
    ) -> None:
        packed = wire.encode_layout(layout)
        self._sent_batches += 1
        nbytes = len(packed) + len(addresses) + len(pages)
        began = time.monotonic()
        if self._limit is not None:
            if self._free_at > began and self._cancelled.wait(self._free_at - began):
                raise Gone
            self._free_at = max(began, self._free_at) + nbytes / self._limit
        self._done += nbytes
        self._frame(wire.BATCH, packed, addresses, pages)
        self._sample(nbytes, time.monotonic() - began)

    def _wait_read(self) -> None:
        """Until the node has read what lies in the socket: a pass is over when it has left, and
        only then is the time that it took the time that the link needs."""
        began = time.monotonic()
        nap_s = 0.0005
        left = array.array("i", [0])
        while not self._switch.is_set():
            fcntl.ioctl(self._sock, termios.TIOCOUTQ, left)
            if not left[0] or self._cancelled.wait(nap_s):
                break
            nap_s = min(2 * nap_s, 0.01)
        self._sample(0, time.monotonic() - began)

    def _sample(self, nbytes: int, seconds: float) -> None:
        self._sample_bytes += nbytes
        self._sample_s += seconds
        if self._sample_bytes >= _SAMPLE_BYTES or (
            self._sample_s >= _SAMPLE_S and self._sample_bytes >= BATCH_BYTES_TARGET
        ):
            # What the socket took at once says little; over some MiB it is the reader's pace.
            rate = self._sample_bytes / max(self._sample_s, 1e-6)
            self._drain = rate if not self._drain else 0.5 * self._drain + 0.5 * rate
            self._sample_bytes, self._sample_s = 0, 0.0

    def _progress(self) -> None:
        self._frame(wire.PROGRESS, b"", b"", b"")

    def _frame(self, kind: int, layout: bytes, addresses: bytes, pages: memoryview | bytes) -> None:
        if self._cancelled.is_set():
            raise Gone
        header = wire.FRAME.pack(
            kind,
            len(layout),
            len(addresses),
            len(pages),
            self._round,
            self._done,
            self._left,
            self._dirty,
        )
        wire.send_all(self._sock, (header, layout, addresses, pages))
