"""A client of the kv guest."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Final

_LENGTH: Final = struct.Struct("<I")
_ANSWER_MAX: Final = 1 << 20
_PUT, _GET, _COUNT, _DELETE = 1, 2, 3, 4
_DONE, _NOT_FOUND, _FULL = 0, 1, 2


class TableFull(Exception):
    """The machine's memory has no room for the entry; nothing was changed."""


class KvClient:
    """Talks to a kv machine: one request at a time, blocking, from one thread.

    When `put` or `delete` returns, the machine's memory holds the change. When it raises
    ConnectionError or TimeoutError, it may or may not: connect again (after a move, to the other
    node's socket) and repeat it.

    Args:
        address: The machine's service socket, or ``(host, port)``.
        timeout_s: How long to wait for one answer; a paused machine gives none.
    """

    def __init__(self, address: str | Path | tuple[str, int], timeout_s: float = 10.0) -> None:
        if isinstance(address, tuple):
            self._socket = socket.create_connection(address, timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(os.fspath(address))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> KvClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def put(self, key: bytes, value: bytes) -> None:
        """Store; returns once the machine holds it. Raises TableFull."""
        self._ask(_PUT, key, value)

    def get(self, key: bytes) -> bytes | None:
        """The value, or None if there is none."""
        return self._ask(_GET, key)

    def delete(self, key: bytes) -> bool:
        """Remove; tells whether it was there."""
        return self._ask(_DELETE, key) is not None

    def count(self) -> int:
        """How many entries there are."""
        answer = self._ask(_COUNT, b"-") or b""
        return int.from_bytes(answer, "little")

    def _ask(self, operation: int, key: bytes, value: bytes = b"") -> bytes | None:
        if not 0 < len(key) <= 1024:
            raise ValueError(f"a key of {len(key)} bytes (1 to 1024 are possible)")
        body = struct.pack("<BH", operation, len(key)) + key + value
        self._socket.sendall(_LENGTH.pack(len(body)) + body)
        (length,) = _LENGTH.unpack(self._receive(_LENGTH.size))
        if not 0 < length <= _ANSWER_MAX:
            raise ConnectionError(f"the machine's answer claims {length} bytes")
        answer = self._receive(length)
        status = answer[0]
        if status == _DONE:
            return answer[1:]
        if status == _NOT_FOUND:
            return None
        if status == _FULL:
            raise TableFull(f"no room for {len(key) + len(value)} bytes more")
        raise ValueError("the machine calls this a bad request (an entry of more than 64 KiB?)")

    def _receive(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._socket.recv(count - len(parts))
            if not part:
                raise ConnectionError("the machine closed the connection without an answer")
            parts += part
        return bytes(parts)
