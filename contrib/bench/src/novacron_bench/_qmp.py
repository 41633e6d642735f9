"""The little of QEMU's monitor protocol that a benchmark of stock QEMU needs, without waiting in
an event loop."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

from novacron import MachineError

_LINE_MAX: Final = 16 << 20
_LOOK_AGAIN_S: Final = 0.01


class Qmp:
    """A conversation with one QEMU. One thread uses it at a time."""

    def __init__(self, path: Path, timeout_s: float = 20.0) -> None:
        """Connect, as soon as it listens. Raises MachineError."""
        deadline = time.monotonic() + timeout_s
        self._buffer = b""
        self._events: deque[dict[str, Any]] = deque()
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(timeout_s)
            try:
                self._socket.connect(str(path))
                break
            except OSError as error:
                self._socket.close()
                if time.monotonic() > deadline:
                    raise MachineError(f"QEMU does not listen at {path}: {error}") from error
                # Nothing tells when a program begins to listen.
                time.sleep(_LOOK_AGAIN_S)
        self._line(deadline)
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """What QEMU answers. Raises MachineError with its words if it refuses."""
        asked = {"execute": command} | ({"arguments": arguments} if arguments else {})
        try:
            self._socket.sendall(json.dumps(asked).encode() + b"\n")
        except OSError as error:
            raise MachineError(f"QEMU is gone: {error}") from error
        deadline = time.monotonic() + 60
        while True:
            said = self._line(deadline)
            if "event" in said:
                self._events.append(said)
            elif "error" in said:
                raise MachineError(f"QEMU refuses {command}: {said['error'].get('desc')}")
            elif "return" in said:
                return said["return"]

    def event(self, timeout_s: float) -> dict[str, Any] | None:
        """The next event, None if there is none in time. Raises MachineError if QEMU ended."""
        if self._events:
            return self._events.popleft()
        try:
            said = self._line(time.monotonic() + timeout_s)
        except TimeoutError:
            return None
        return said if "event" in said else None

    def _line(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                raise
            except OSError as error:
                raise MachineError(f"QEMU is gone: {error}") from error
            if not data or len(self._buffer) > _LINE_MAX:
                raise MachineError("QEMU has ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()
