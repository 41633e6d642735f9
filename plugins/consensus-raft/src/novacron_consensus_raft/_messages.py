"""What members say to each other: MessagePack arrays with a number for the kind, bounded.

Everything here comes from the network. `decode` gives a sound message or raises MessageError; what
is sound is still only a claim of a member that the transport has authenticated.

Members of two releases can be in one cluster while it is upgraded. What a later release appends to
a message is not read by an earlier one, and a kind that it does not know is refused. Each answer to
a leader says what its sender reads (`WIRE_VERSION`), so a leader knows what all of them do.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec
from novacron_agreement import COMMAND_BYTES_MAX, MESSAGE_BYTES_MAX

from novacron_consensus_raft._configuration import Configuration

# One more when members begin to send or to log what members before them cannot read.
WIRE_VERSION: Final = 1
WIRE_VERSION_MAX: Final = 2**16
# No cluster lives to see the first two; beyond them arithmetic in other languages ends.
INDEX_MAX: Final = 2**53
TERM_MAX: Final = 2**53
CLUSTER_CHARS_MAX: Final = 64
DIGEST_BYTES: Final = 32
CHUNK_BYTES_MAX: Final = COMMAND_BYTES_MAX


class MessageError(ValueError):
    """What came is no sound message of this cluster. Nothing was changed."""


class EntryKind(IntEnum):
    NOTHING = 0  # a new leader's first entry, by which it commits what came before
    COMMAND = 1
    MEMBERS = 2  # a Configuration


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One place in the log.

    Attributes:
        index: Which place, from 1.
        term: Of the leader that put it there.
        kind: What ``data`` is.
        data: A command, an encoded Configuration, or nothing.
    """

    index: int
    term: int
    kind: EntryKind
    data: bytes = b""


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of the messages.

    Attributes:
        cluster: The cluster's name: another cluster's messages are refused.
        term: The sender's term; of a pre-vote, the term that it would begin.
    """

    cluster: str
    term: int


class RequestVote(Message, frozen=True, tag=1):
    """A candidate asks for a vote.

    Attributes:
        last_index, last_term: Of the candidate's last entry.
        pre: Whether it only asks if it would get the vote.
        transfer: Whether the leader told it to: then a voter does not wait for that leader.
    """

    last_index: int
    last_term: int
    pre: bool = False
    transfer: bool = False


class Vote(Message, frozen=True, tag=2):
    """The answer to RequestVote."""

    granted: bool
    pre: bool = False


class Append(Message, frozen=True, tag=3):
    """The leader's entries after a place that it believes to be common; without entries it only
    says that the leader is there.

    Attributes:
        round: The leader's count, sent back in the answer.
        previous_index, previous_term: The entry before the first one here.
        commit: Everything up to this index is committed.
    """

    round: int
    previous_index: int
    previous_term: int
    commit: int
    entries: tuple[Entry, ...] = ()


class Appended(Message, frozen=True, tag=4):
    """The answer to Append, and to a snapshot that is complete.

    Attributes:
        round: As it came.
        index: Taken: the last index that is now like the leader's. Refused: the previous index
            that did not fit.
        taken: Whether it was taken.
        hint_index, hint_term: Of a refusal: an entry of the follower's that may be common.
        reads: The newest version of these messages that the sender reads.
    """

    round: int
    index: int
    taken: bool
    hint_index: int = 0
    hint_term: int = 0
    reads: int = WIRE_VERSION


class SnapshotChunk(Message, frozen=True, tag=5):
    """A piece of a snapshot.

    Attributes:
        round: As in Append.
        index, index_term: The last entry that the snapshot holds.
        configuration: Who takes part as of that entry.
        size: Of the whole snapshot, bytes.
        digest: SHA-256 of the whole: pieces belong together if this is the same, so another leader
            goes on where the one before stopped.
        offset: Where this piece belongs.
    """

    round: int
    index: int
    index_term: int
    configuration: Configuration
    size: int
    digest: bytes
    offset: int
    data: bytes


class SnapshotProgress(Message, frozen=True, tag=6):
    """The answer to a piece: the next byte that is wanted."""

    round: int
    digest: bytes
    offset: int


class TimeoutNow(Message, frozen=True, tag=7):
    """The leader hands its office over: the receiver is to stand for election at once."""


AnyMessage = RequestVote | Vote | Append | Appended | SnapshotChunk | SnapshotProgress | TimeoutNow
_messages: Final[msgspec.msgpack.Decoder[AnyMessage]] = msgspec.msgpack.Decoder(AnyMessage)
_encoder: Final = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes, cluster: str) -> AnyMessage:
    """A sound message of this cluster. Raises: MessageError for anything else."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise MessageError(f"a message of {len(data)} bytes")
    try:
        message = _messages.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"no message: {error}") from None
    if message.cluster != cluster:
        raise MessageError(f"it belongs to the cluster {message.cluster[:CLUSTER_CHARS_MAX]!r}")
    if not 0 < message.term <= TERM_MAX or not _sound(message):
        raise MessageError(f"a {type(message).__name__} with impossible values")
    return message


def _sound(message: AnyMessage) -> bool:
    match message:
        case RequestVote():
            return _place(message.last_index, message.last_term, message.term)
        case Append():
            return (
                message.round >= 0
                and 0 <= message.commit <= INDEX_MAX
                and _place(message.previous_index, message.previous_term, message.term)
                and _follows(message)
            )
        case Appended():
            return (
                message.round >= 0
                and 0 <= message.index <= INDEX_MAX
                and 1 <= message.reads <= WIRE_VERSION_MAX
                and _place(message.hint_index, message.hint_term, message.term)
            )
        case SnapshotChunk():
            return (
                message.round >= 0
                and message.index > 0
                and _place(message.index, message.index_term, message.term)
                and message.configuration.sound()
                and len(message.digest) == DIGEST_BYTES
                and 0 <= message.offset <= message.size
                and message.offset + len(message.data) <= message.size
                and len(message.data) <= CHUNK_BYTES_MAX
            )
        case SnapshotProgress():
            return message.round >= 0 and message.offset >= 0
        case _:
            return True


def _place(index: int, term: int, newest: int) -> bool:
    return 0 <= index <= INDEX_MAX and 0 <= term <= newest and (term > 0) == (index > 0)


def _follows(message: Append) -> bool:
    """Whether the entries come one after the other, with terms that never fall."""
    index, term = message.previous_index, message.previous_term
    for entry in message.entries:
        if entry.index != index + 1 or not term <= entry.term <= message.term or not entry.term:
            return False
        if len(entry.data) > COMMAND_BYTES_MAX or not _holds(entry):
            return False
        index, term = entry.index, entry.term
    return index <= INDEX_MAX


def _holds(entry: Entry) -> bool:
    """Whether an entry's data is of its kind."""
    if entry.kind is EntryKind.COMMAND:
        return True
    if entry.kind is EntryKind.NOTHING:
        return not entry.data
    try:
        Configuration.decode(entry.data)
    except ValueError:
        return False
    return True
