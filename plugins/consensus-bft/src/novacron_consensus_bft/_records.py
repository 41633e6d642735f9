"""What a member writes down, and reading it back after a restart.

A record is durable before anything that depends on it is said. Records are read in their order; any
number of the newest may be missing if the process died while it wrote them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from novacron_consensus_bft._wire import (
    CHUNK_BYTES,
    Certificate,
    Closing,
    Digest,
    Number,
    Raw,
    Signature,
    StateHead,
)

_FORMAT: Final = 1


class RecordsError(ValueError):
    """The durable records are not this member's, or damaged. Nothing was changed or sent.

    Attributes:
        hint: What to do.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message}; {hint}")
        self.hint = hint


class _Record(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of the records."""


class Born(_Record, frozen=True):
    """A life of the process began: the first record of each, and of a rewritten log."""

    format: Number
    cluster: Digest
    name: str
    epoch: Number


class Kept(_Record, frozen=True):
    """A block that builds on one already here."""

    raw: Raw
    signature: Signature


class Voted(_Record, frozen=True):
    """This member's vote goes to that block. It will never vote for another at its place."""

    era: Number
    view: Number
    height: Number
    digest: Digest


class GaveUp(_Record, frozen=True):
    """No vote in this view or an earlier one from now on; ``high`` is what the timeout says."""

    era: Number
    view: Number
    high: Certificate


class Committed(_Record, frozen=True):
    """Everything up to this block is committed, since a quorum voted for ``certificate``'s."""

    digest: Digest
    certificate: Certificate


class Base(_Record, frozen=True):
    """A checkpoint; its pieces follow, and take the place of all blocks before its anchor."""

    head: StateHead


class Piece(_Record, frozen=True):
    data: Annotated[bytes, Meta(max_length=CHUNK_BYTES)]


class Closed(_Record, frozen=True):
    """How an era ended, for members that come later."""

    closing: Closing


Record = Born | Kept | Voted | GaveUp | Committed | Base | Piece | Closed
_records: Final = msgspec.msgpack.Decoder(Record)


def born(cluster: bytes, name: str, epoch: int) -> Born:
    return Born(_FORMAT, cluster, name, epoch)


def write(record: Record) -> bytes:
    return msgspec.msgpack.encode(record)


def read(data: Sequence[bytes], cluster: bytes, name: str) -> list[Record]:
    """Raises: RecordsError for anything that this member has not written."""
    found: list[Record] = []
    for number, one in enumerate(data):
        try:
            record = _records.decode(one)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RecordsError(
                f"record {number} of the log of {name!r} is damaged: {error}",
                "move the log away and let the member join anew under a new name and key: it may "
                "have voted for what it has forgotten",
            ) from error
        if isinstance(record, Born):
            _belongs(record, cluster, name)
        elif not found:
            raise RecordsError(
                "the log does not begin with its member's name",
                "restore the whole log, or let the member join anew under a new name and key",
            )
        found.append(record)
    return found


def _belongs(record: Born, cluster: bytes, name: str) -> None:
    if record.format != _FORMAT:
        raise RecordsError(
            f"the log has format {record.format}, and this version reads {_FORMAT}",
            "start the version that wrote it",
        )
    if record.cluster != cluster:
        raise RecordsError(
            f"the log is of cluster {record.cluster.hex()[:12]}, not of {cluster.hex()[:12]}",
            "check the folder, and the cluster's first members and name in the settings",
        )
    if record.name != name:
        raise RecordsError(
            f"the log belongs to {record.name!r}, not to {name!r}",
            "give each member a folder of its own",
        )
