"""Until the parser is there."""

from __future__ import annotations

from novacron import Batch


class StreamSplitter:
    def __init__(self) -> None:
        self._b = bytearray()

    def feed(self, data: memoryview) -> list[Batch]:
        self._b += data
        return self.flush() if len(self._b) >= 1 << 20 else []

    def flush(self) -> list[Batch]:
        b, self._b = bytes(self._b), bytearray()
        return [Batch(layout=b)] if b else []

    def end(self) -> list[Batch]:
        return self.flush()


class StreamJoiner:
    def join(self, batch: Batch) -> list[bytes]:
        return [bytes(batch.layout)]
