"""What the contracts share: making a provider, calls with a deadline, measured memory."""

from __future__ import annotations

import contextlib
import os
import resource
import tempfile
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pytest
from novacron import NodeFacts

T = TypeVar("T")


@pytest.mark.timeout(120)
class Contract:
    """Base of the contracts.

    Attributes:
        provider: The provider class under test. Set it in your subclass.
        deadline_s: How long a call may take that must end at once; raise it for slow machines.
    """

    provider: ClassVar[type[Any]]
    deadline_s: ClassVar[float] = 10.0

    def make(self, tmp_path: Path, name: str = "a") -> Any:
        """A provider for the node ``name``; called again with the same name it is the same node.

        Override this if ``provider.Settings()`` will not do.
        """
        state = tmp_path / name
        state.mkdir(mode=0o700, exist_ok=True)
        return self.provider(self.provider.Settings(), NodeFacts(name=name, state_dir=state))


class Call(Generic[T]):
    """A call in a thread of its own, because it may block for ever. Threads are daemons."""

    def __init__(self, function: Callable[..., T], *args: Any) -> None:
        self._function = function
        self._args = args
        self._value: T
        self._error: BaseException | None = None
        self.done = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._value = self._function(*self._args)
        except BaseException as error:
            self._error = error
        self.done.set()

    def result(self, deadline_s: float) -> T:
        """Its value or its exception; fails the test if it is still blocked by then."""
        if not self.done.wait(deadline_s):
            name = getattr(self._function, "__qualname__", repr(self._function))
            pytest.fail(f"{name} still blocks after {deadline_s:g} s")
        if self._error is not None:
            raise self._error
        return self._value

    def error(self, deadline_s: float) -> BaseException | None:
        """Its exception, or None if it returned."""
        try:
            self.result(deadline_s)
        except Exception as error:
            return error
        return None


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the name of a unix socket (107 bytes in all)."""
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Until it ends, no file grows: writes fail with EFBIG (Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Memory:
    """How far memory rose above where it was; see `measured`.

    Attributes:
        python_bytes: The peak of what Python allocated.
        resident_bytes: The peak of what the process held, native code included; 0 where the
            system does not tell.
    """

    python_bytes = 0
    resident_bytes = 0

    @property
    def peak_bytes(self) -> int:
        return max(self.python_bytes, self.resident_bytes)


@contextlib.contextmanager
def measured() -> Iterator[Memory]:
    """Measure the peak of memory within the block."""
    memory = Memory()
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start(1)
    before = _reset_resident_peak()
    tracemalloc.reset_peak()
    first, _ = tracemalloc.get_traced_memory()
    try:
        yield memory
    finally:
        memory.python_bytes = max(0, tracemalloc.get_traced_memory()[1] - first)
        if before:
            memory.resident_bytes = max(0, _status("VmHWM") - before)
        if not running:
            tracemalloc.stop()


def _reset_resident_peak() -> int:
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return 0


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def in_doomed_process(work: Callable[[], Coroutine[Any, Any, None]], deadline_s: float) -> None:
    """Run it in a child that ends without closing anything, as if killed right afterwards."""
    import asyncio
    import select

    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Newer Pythons warn of threads at fork; the child only runs the provider and exits.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.run(work())
            code = 0
        except BaseException as error:
            os.write(writer, repr(error).encode()[:4000])
        finally:
            os._exit(code)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], deadline_s)
        said = os.read(reader, 4000).decode() if ready else f"no end within {deadline_s:g} s"
    finally:
        os.close(reader)
        if not ready:
            os.kill(child, 9)
        _, status = os.waitpid(child, 0)
    assert status == 0, f"the call failed in a process of its own: {said}"
