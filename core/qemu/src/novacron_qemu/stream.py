"""QEMU's migration stream as batches, and batches as the same stream again.

No I/O: bytes in, batches out, and the other way round. The work is done by novacron-native-pages;
here are the protocol's batches, what an operator reads about a stream, and the errors.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen
from novacron_dwcp import Batch, Buffer, ProtocolError
from novacron_native_pages import (
    JOINED_MAX,
    Counters,
    Piece,
    Reason,
    Splitter,
    StreamFormatError,
    join_into,
)

_WHY: Final = {
    Reason.WALKING: "",
    Reason.DEVICE: "inside a section that has no length",
    Reason.BAD_RECORD: "a RAM section holds a record of an unknown kind",
    Reason.NOT_QEMU: "this is no QEMU migration stream of version 3",
    Reason.CONFIGURATION: "the stream's configuration has an entry that changes where memory goes",
    Reason.POSTCOPY: "postcopy is on",
    Reason.MULTIFD: "multifd is on: pages travel on other channels",
    Reason.TOO_MANY_BLOCKS: "the guest has more RAM blocks than are kept count of",
}


@frozen(kw_only=True)
class StreamProgress:
    """What of a stream was seen, at one moment.

    Attributes:
        bytes: All of it so far.
        opaque_bytes: Of them passed through without a look inside (the devices' state, at least).
        pages: Records with the content of a page.
        zero_pages: Records that say a page is zero.
        page_size: The guest's.
        ram_bytes: The guest's memory as the stream states it, 0 before it does.
        rounds: Passes over memory seen to begin; QEMU may have made more short ones.
        opaque: Whether what comes now is passed through without a look inside. Towards the end of
            a stream that is as it should be: the devices' state has no visible structure.
        resumable: Whether RAM sections will be recognized if more of them come.
        why: Why it is opaque, for people; empty if it is not.
    """

    bytes: int = 0
    opaque_bytes: int = 0
    pages: int = 0
    zero_pages: int = 0
    page_size: int = 4096
    ram_bytes: int = 0
    rounds: int = 0
    opaque: bool = False
    resumable: bool = True
    why: str = ""


class StreamSplitter:
    """A QEMU migration stream to batches; whatever it holds, joining gives it back exactly.

    Which bytes go to which batch depends on the stream and the flushes alone, not on how it was
    cut when fed. One thread at a time; ``progress`` may be read from any.

    Args:
        page_size: The guest's target page size; the stream says it where it can differ.
    """

    def __init__(self, page_size: int = 4096) -> None:
        self._splitter = Splitter(page_size)
        self.progress = StreamProgress(page_size=page_size)

    def feed(self, data: Buffer) -> list[Batch]:
        """Take the next bytes; returns the batches that are full. 256 KiB to 1 MiB are best."""
        return self._batches(self._splitter.feed(data))

    def flush(self) -> list[Batch]:
        """All that was fed but the record under way (at most a page): one batch, or none.

        For when the stream pauses; each flush makes a batch, so not after every read.
        """
        return self._batches(self._splitter.flush())

    def end(self) -> list[Batch]:
        """All that was fed, also the beginning of a record: one batch, or none.

        For the stream's end; but it may go on afterwards.
        """
        return self._batches(self._splitter.flush(everything=True))

    def _batches(self, pieces: list[Piece]) -> list[Batch]:
        self.progress = _progress(self._splitter.counters)
        return [Batch(*piece) for piece in pieces]


def _progress(seen: Counters) -> StreamProgress:
    why = _WHY[seen.reason]
    if seen.reason is Reason.DEVICE and seen.section:
        why = f"{why}: {seen.section}"
    return StreamProgress(
        bytes=seen.bytes,
        opaque_bytes=seen.opaque_bytes,
        pages=seen.pages,
        zero_pages=seen.zero_pages,
        page_size=seen.page_size,
        ram_bytes=seen.ram_bytes,
        rounds=seen.rounds,
        opaque=seen.reason is not Reason.WALKING,
        resumable=seen.reason <= Reason.BAD_RECORD,
        why=why,
    )


class StreamRefused(ProtocolError):
    """A batch that no splitter makes: its sender is not sound, or splits by other rules.

    Attributes:
        problem: What is wrong with it, as a stable name ("BAD_COUNT").
        at: How many bytes of the stream were joined before it.
    """

    def __init__(self, message: str, problem: str, at: int) -> None:
        super().__init__(message)
        self.problem = problem
        self.at = at


class StreamJoiner:
    """Batches back to the stream that they were split from. One thread at a time.

    Attributes:
        joined_bytes: The stream so far.
    """

    def __init__(self) -> None:
        self._out = bytearray(JOINED_MAX)
        self._view = memoryview(self._out)
        self.joined_bytes = 0

    def join(self, batch: Batch) -> memoryview:
        """The batch's piece of the stream, to be written before the next call: it is used again.

        Raises:
            StreamRefused: No splitter makes such a batch. What was joined before stands.
        """
        try:
            length = join_into(self._out, batch.layout, batch.addresses, batch.pages)
        except StreamFormatError as error:
            raise StreamRefused(str(error), error.problem.name, self.joined_bytes) from error
        self.joined_bytes += length
        return self._view[:length].toreadonly()
