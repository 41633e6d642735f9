"""The log's format: one JSON line per entry, each sealed with the digest of the one before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import attrs
import msgspec
from attrs import frozen
from blake3 import blake3
from novacron import LogEntry, Refused

LOG_FILE: Final = "operations.jsonl"
HEAD_FILE: Final = "head"
GENESIS: Final = "0" * 64
# What a reader allocates for a line at most, and so the largest entry that is written.
LINE_BYTES_MAX: Final = 1 << 20
SEQUENCE_MAX: Final = 2**63 - 1


class _Line(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    sequence: int
    time: str
    node: str
    operation: str
    event: str
    detail: dict[str, Any]
    previous: str
    digest: str


@frozen
class Head:
    """The last entry that was acknowledged: what must be in the log."""

    sequence: int = 0
    digest: str = GENESIS

    def encode(self) -> bytes:
        # Of one length always, so that it is overwritten in place by a single write.
        return f"{self.sequence:020d} {self.digest}\n".encode()

    @classmethod
    def decode(cls, data: bytes) -> Head | None:
        """What `encode` made; None if it is anything else."""
        sequence, _, digest = data.decode("ascii", "replace").strip().partition(" ")
        if not (sequence.isdecimal() and len(sequence) == 20 and len(digest) == 64):
            return None
        head = cls(int(sequence), digest)
        return head if head.encode() == data else None


def seal(head: Head, time: str, node: str, operation: str, event: str, detail: Any) -> LogEntry:
    """The entry that follows ``head``. Raises ValueError if the detail is not JSON-like."""
    try:
        # As it will be read back: tuples become lists, keys texts.
        normal = msgspec.json.decode(msgspec.json.encode(detail), type=dict[str, Any])
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"the detail of a log entry must be JSON-like: {error}") from error
    unsealed = LogEntry(
        sequence=head.sequence + 1,
        time=time,
        node=node,
        operation=operation,
        event=event,
        detail=normal,
        previous=head.digest,
        digest="",
    )
    entry = attrs.evolve(unsealed, digest=digest(unsealed))
    if len(encode(entry)) > LINE_BYTES_MAX:
        raise ValueError(f"a log entry must not be longer than {LINE_BYTES_MAX} bytes")
    return entry


def digest(entry: LogEntry) -> str:
    """BLAKE3, hex, over all of an entry but its digest."""
    fields = list(_fields(entry).values())[:-1]
    return blake3(msgspec.json.encode(fields, order="deterministic")).hexdigest()


def encode(entry: LogEntry) -> bytes:
    return msgspec.json.encode(_Line(**_fields(entry)), order="deterministic") + b"\n"


def decode(line: bytes) -> LogEntry:
    """The entry in a line, newline included.

    Raises: ValueError unless the line is to the byte what `encode` makes of a sealed entry.
    """
    try:
        parsed = msgspec.json.decode(line, type=_Line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"it is not a log entry ({error})") from error
    entry = LogEntry(**{name: getattr(parsed, name) for name in parsed.__struct_fields__})
    if not 1 <= entry.sequence <= SEQUENCE_MAX:
        raise ValueError(f"its sequence is {entry.sequence}")
    if digest(entry) != entry.digest:
        raise ValueError("its digest does not match its contents")
    if encode(entry) != line:
        raise ValueError("it is not written as entries are")
    return entry


def read(path: Path, size: int | None = None) -> Iterator[LogEntry]:
    """The sound entries of the log's first ``size`` bytes, in the file's order.

    Without a size a last line that has no end yet is left out: it is being written, or was torn.
    Raises: Refused at the first line that is no sound entry.
    """
    left = size
    with path.open("rb") as file:
        number = 0
        while left is None or left > 0:
            line = file.readline(LINE_BYTES_MAX + 1)
            if not line or (left is None and not line.endswith(b"\n") and _at_end(file, line)):
                break
            number += 1
            if left is not None:
                left -= len(line)
            try:
                yield decode(line)
            except ValueError as error:
                refuse(path, number, f"line {number} is damaged: {error}", error)
        if left is not None and left > 0:
            refuse(path, number + 1, f"entry {number + 1} is missing: the file was cut there")


def _at_end(file: Any, line: bytes) -> bool:
    return len(line) <= LINE_BYTES_MAX and not file.read(1)


def verify(path: Path, head: Head | None, size: int | None = None) -> Head:
    """Follow the whole chain; its last link.

    Raises: Refused, naming the first entry that is missing, changed or out of order.
    """
    last = Head()
    for entry in read(path, size):
        wanted = last.sequence + 1
        if entry.sequence != wanted:
            what = "missing" if entry.sequence > wanted else "out of order"
            refuse(
                path, wanted, f"entry {wanted} is {what}: entry {entry.sequence} is in its place"
            )
        if entry.previous != last.digest:
            refuse(path, wanted, f"entry {wanted} does not follow from the one before it")
        last = Head(entry.sequence, entry.digest)
        if head is not None and head.sequence == last.sequence and head != last:
            refuse(path, wanted, f"entry {wanted} was changed: it is not what was acknowledged")
    if head is not None and head.sequence > last.sequence:
        wanted = last.sequence + 1
        refuse(path, wanted, f"entry {wanted} is missing: {head.sequence} were acknowledged")
    return last


def refuse(path: Path, sequence: int, what: str, cause: Exception | None = None) -> NoReturn:
    raise Refused(
        f"the operation log {path} does not hold: {what}",
        hint="keep the file as evidence, find out who or what wrote to it, and compare a backup",
        path=str(path),
        sequence=sequence,
    ) from cause


def _fields(entry: LogEntry) -> Mapping[str, Any]:
    return {
        "sequence": entry.sequence,
        "time": entry.time,
        "node": entry.node,
        "operation": entry.operation,
        "event": entry.event,
        "detail": entry.detail,
        "previous": entry.previous,
        "digest": entry.digest,
    }
