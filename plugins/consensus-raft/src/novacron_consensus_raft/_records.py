"""What a member keeps: records, appended one after the other, and how a member is made of them.

A record is a letter and MessagePack. The first is always the header, which says whose data it is.
An entry takes the place of the one with its index and of all after it. A snapshot is written
together with everything that follows it, in place of all that was before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from attrs import define, field

from novacron_consensus_raft._configuration import Configuration
from novacron_consensus_raft._log import Log
from novacron_consensus_raft._messages import Entry, EntryKind

FORMAT: Final = 1


class RecordsError(ValueError):
    """A member's durable records are not what a member of this name and cluster wrote.

    No member was made, and nothing was changed.

    Args:
        message: What is wrong with which record.
        hint: What to do about it.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class _Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: int
    cluster: str
    member: str


class _Term(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    term: int
    vote: str


class Snapshot(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The state machine's state.

    Attributes:
        index, term: The last entry that it holds.
        configuration: Who takes part as of that entry.
        data: What the state machine gave.
    """

    index: int
    term: int
    configuration: Configuration
    data: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
_headers: Final = msgspec.msgpack.Decoder(_Header)
_terms: Final = msgspec.msgpack.Decoder(_Term)
_entries: Final = msgspec.msgpack.Decoder(Entry)
_snapshots: Final = msgspec.msgpack.Decoder(Snapshot)


def header_record(cluster: str, member: str) -> bytes:
    return b"h" + _encode(_Header(FORMAT, cluster, member))


def term_record(term: int, vote: str | None) -> bytes:
    return b"t" + _encode(_Term(term, vote or ""))


def entry_record(entry: Entry) -> bytes:
    return b"e" + _encode(entry)


def snapshot_record(snapshot: Snapshot) -> bytes:
    return b"s" + _encode(snapshot)


@define
class Recovered:
    """What the records say.

    Attributes:
        term, vote: The newest term that was known, and who got the vote in it.
        log: The entries.
        snapshot: The newest one, if there is any.
    """

    log: Log
    term: int = 0
    vote: str | None = None
    snapshot: Snapshot | None = field(default=None)


def begin(configuration: Configuration) -> Recovered:
    """What a new member knows: who takes part, as an entry that all who begin with it have; nothing
    if it is to join a cluster that exists."""
    found = Recovered(log=Log(0, 0, Configuration()))
    if configuration.voters:
        found.term = 1
        found.log.append(Entry(1, 1, EntryKind.MEMBERS, configuration.encode()))
    return found


def beginning_records(cluster: str, member: str, log: Log) -> tuple[bytes, ...]:
    """The first records of a new member."""
    entries = [entry_record(log.entry(index)) for index in range(1, log.last_index + 1)]
    term = [term_record(1, None)] if entries else []
    return (header_record(cluster, member), *term, *entries)


def recover(records: Sequence[bytes], cluster: str, member: str) -> Recovered:
    """What a member's records say. Raises: RecordsError."""
    _require_header(records[0], cluster, member)
    found = Recovered(log=Log(0, 0, Configuration()))
    for number, record in enumerate(records[1:], 2):
        try:
            _take(found, record)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            raise RecordsError(
                f"record {number} of {len(records)} cannot be right: {error}",
                hint=f"move this member's data aside, remove {member!r} from the cluster, and let "
                "it join again",
            ) from error
    return found


def _require_header(record: bytes, cluster: str, member: str) -> None:
    try:
        header = _headers.decode(record[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordsError(
            f"the first record is no header: {error}",
            hint="this is not the data of a member; give the right folder",
        ) from error
    if record[:1] != b"h" or header.format != FORMAT:
        raise RecordsError(
            f"the data has the format {header.format}, and this release knows {FORMAT}",
            hint="run the release that wrote it, or a newer one",
        )
    if (header.cluster, header.member) != (cluster, member):
        raise RecordsError(
            f"the data belongs to {header.member!r} of the cluster {header.cluster!r}, and this is "
            f"{member!r} of {cluster!r}",
            hint="give this member its own folder; never copy another member's data",
        )


def _take(found: Recovered, record: bytes) -> None:
    kind, data = record[:1], record[1:]
    if kind == b"e":
        _take_entry(found, _entries.decode(data))
    elif kind == b"t":
        newer = _terms.decode(data)
        if newer.term < found.term:
            raise ValueError(f"the term {newer.term} comes after {found.term}")
        found.term, found.vote = newer.term, newer.vote or None
    elif kind == b"s":
        snapshot = _snapshots.decode(data)
        found.snapshot = snapshot
        found.log = Log(snapshot.index, snapshot.term, snapshot.configuration)
    else:
        raise ValueError(f"a record of the kind {kind!r}")


def _take_entry(found: Recovered, entry: Entry) -> None:
    log = found.log
    if not log.base_index < entry.index <= log.last_index + 1:
        raise ValueError(f"entry {entry.index} comes after {log.last_index}")
    log.append(entry)


def replacement(
    header: bytes, term: bytes, snapshot: Snapshot, entries: Iterable[Entry]
) -> tuple[bytes, ...]:
    """The records that take the place of all before."""
    return (header, term, snapshot_record(snapshot), *map(entry_record, entries))
