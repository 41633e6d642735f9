"""What members say to each other, MessagePack with bounds, and what their signatures are for.

A block is carried as the bytes that its leader encoded: its digest is of these bytes, so nobody has
to agree on how a block would be encoded again. Signers in certificates are numbers: places in the
era's members, sorted by name.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta
from novacron_agreement import COMMAND_BYTES_MAX, MESSAGE_BYTES_MAX, NAME_CHARS_MAX

# More members than that would make certificates, which are lists of signatures, too long.
MEMBERS_MAX: Final = 64
SIGNATURE_BYTES_MAX: Final = 5 << 10
KEY_BYTES_MAX: Final = 4 << 10
REQUESTS_MAX: Final = 4096  # in one block
BLOCKS_MAX: Final = 256  # in one answer
CHUNK_BYTES: Final = 256 << 10
CHUNKS_MAX: Final = 16384
NUMBER_MAX: Final = 2**62

Number = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]
Place = Annotated[int, Meta(ge=0, lt=MEMBERS_MAX)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(max_length=SIGNATURE_BYTES_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
Raw = Annotated[bytes, Meta(max_length=MESSAGE_BYTES_MAX)]
Rank = tuple[int, int]
_T = TypeVar("_T")


class WireError(ValueError):
    """Bytes that are no message of this protocol. Nothing was changed."""


class _Value(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of what stands inside messages."""


class Member(_Value, frozen=True):
    """One who takes part: ``key`` begins with its scheme, ``address`` may be empty."""

    name: Name
    key: Annotated[bytes, Meta(min_length=1, max_length=KEY_BYTES_MAX)]
    address: Annotated[str, Meta(max_length=NAME_CHARS_MAX)] = ""


Members = Annotated[tuple[Member, ...], Meta(min_length=1, max_length=MEMBERS_MAX)]


class Certificate(_Value, frozen=True):
    """A quorum's votes for one block. An era's root has one without votes, at (0, 0)."""

    era: Number
    view: Number
    height: Number
    digest: Digest
    votes: Annotated[tuple[tuple[Place, Signature], ...], Meta(max_length=MEMBERS_MAX)]

    @property
    def rank(self) -> Rank:
        return self.view, self.height


class TimeoutCertificate(_Value, frozen=True):
    """A quorum has given a view up; each says the rank of the highest certificate that it knew:
    (place, its view, its height, signature)."""

    era: Number
    view: Number
    timeouts: Annotated[
        tuple[tuple[Place, Number, Number, Signature], ...], Meta(max_length=MEMBERS_MAX)
    ]

    @property
    def highest(self) -> Rank:
        return max(((view, height) for _, view, height, _ in self.timeouts), default=(0, 0))


class Request(_Value, frozen=True):
    """What a member asks for, signed by it so that no leader can make commands up.

    Attributes:
        origin: The member that asks.
        epoch: Which of its lives: one more after each restart.
        number: From 1 in each epoch, without gaps.
        marker: There is no command: the origin wants to know when everything asked before is done.
    """

    origin: Name
    epoch: Number
    number: Number
    marker: bool
    command: Annotated[bytes, Meta(max_length=COMMAND_BYTES_MAX)]
    signature: Signature

    @property
    def key(self) -> tuple[str, int, int]:
        return self.origin, self.epoch, self.number


class Change(_Value, frozen=True):
    """New members, with the approvals of a quorum of the present ones."""

    members: Members
    approvals: Annotated[tuple[tuple[Place, Signature], ...], Meta(max_length=MEMBERS_MAX)]


class Block(_Value, frozen=True):
    """What a leader proposes.

    Attributes:
        era: Which set of members; one more with each change of members.
        view: Which leader.
        height: From 1 within the view.
        position: From 1 in the whole chain.
        parent: The block before, or the era's root.
        justify: The highest certificate that the leader knew.
        timeouts: Why the view before is over; only in a view's first block, and not in view 0.
        requests: In the order in which they are to be done.
        change: Done after the requests; nothing after it counts in this era.
    """

    era: Number
    view: Number
    height: Number
    position: Number
    parent: Digest
    justify: Certificate
    timeouts: TimeoutCertificate | None
    requests: Annotated[tuple[Request, ...], Meta(max_length=REQUESTS_MAX)]
    change: Change | None

    @property
    def rank(self) -> Rank:
        return self.view, self.height


class Header(_Value, frozen=True):
    """That a leader proposed this block: enough to convict it of proposing two."""

    era: Number
    view: Number
    height: Number
    digest: Digest
    signature: Signature


class StateHeader(_Value, frozen=True):
    """What a checkpoint is of; its digest is what members sign.

    Attributes:
        index: The newest command in the snapshot.
        anchor: Digest of the block in which that command stands.
        position: That block's.
        ledger: The core's own replicated state after that command, see `_ledger`.
        chunks: SHA-256 of each piece of the snapshot, of `CHUNK_BYTES` but for the last.
    """

    era: Number
    index: Number
    anchor: Digest
    position: Number
    ledger: Raw
    chunks: Annotated[tuple[Digest, ...], Meta(max_length=CHUNKS_MAX)]


class _Message(_Value, frozen=True, tag=True):
    """Base of the messages."""

    era: Number


class Proposal(_Message, frozen=True):
    block: Raw
    signature: Signature


class Vote(_Message, frozen=True):
    view: Number
    height: Number
    digest: Digest
    signature: Signature


class Timeout(_Message, frozen=True):
    """The sender will not vote in this view any more. ``seen``: the last block it voted for in it,
    so that the next leader can tell whether this one proposed two."""

    view: Number
    high: Certificate
    seen: Header | None
    signature: Signature


class Advance(_Message, frozen=True):
    """The view of this timeout certificate is over."""

    timeouts: TimeoutCertificate
    high: Certificate


class Certified(_Message, frozen=True):
    certificate: Certificate


class Ask(_Message, frozen=True):
    """A request on its way to the leader, or to all when the leader does not serve it."""

    request: Request


class Status(_Message, frozen=True):
    """Where the sender is. One who is further answers with what is missing there.

    Attributes:
        trusted: The newest era whose members the sender knows; it may have no state of it yet.
        position: Of its newest committed block.
        rank: Of its highest certificate.
    """

    trusted: Number
    view: Number
    position: Number
    rank: tuple[Number, Number]


class Blocks(_Message, frozen=True):
    """Consecutive blocks, each with its leader's signature; ``certificate`` is of the last one."""

    blocks: Annotated[tuple[tuple[Raw, Signature], ...], Meta(max_length=BLOCKS_MAX)]
    certificate: Certificate


class Closing(_Message, frozen=True):
    """How an era ended: from the block with the change on, so that its commit can be checked."""

    blocks: Annotated[tuple[tuple[Raw, Signature], ...], Meta(max_length=BLOCKS_MAX)]
    certificate: Certificate


class Approval(_Message, frozen=True):
    members: Members
    signature: Signature


class Checkpoint(_Message, frozen=True):
    """The sender holds this state. ``era`` is the state's."""

    index: Number
    digest: Digest
    signature: Signature


class StateHead(_Message, frozen=True):
    """A checkpoint with a quorum's signatures, and its anchor block."""

    header: Raw
    votes: Annotated[tuple[tuple[Place, Signature], ...], Meta(max_length=MEMBERS_MAX)]
    block: Raw
    signature: Signature


class AskState(_Message, frozen=True):
    digest: Digest
    chunk: Number


class StateChunk(_Message, frozen=True):
    digest: Digest
    chunk: Number
    data: Annotated[bytes, Meta(max_length=CHUNK_BYTES)]


Message = (
    Proposal | Vote | Timeout | Advance | Certified | Ask | Status | Blocks | Closing | Approval
    | Checkpoint | StateHead | AskState | StateChunk
)  # fmt: skip
_messages: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)
_blocks: Final = msgspec.msgpack.Decoder(Block)
_headers: Final = msgspec.msgpack.Decoder(StateHeader)
encode: Final = msgspec.msgpack.Encoder().encode


def decode(data: bytes) -> Message:
    """Raises: WireError for anything that is no bounded message."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise WireError(f"a message of {len(data)} bytes is longer than {MESSAGE_BYTES_MAX}")
    return _decode(_messages, data)


def decode_block(data: bytes) -> Block:
    """Raises: WireError."""
    return _decode(_blocks, data)


def decode_state_header(data: bytes) -> StateHeader:
    """Raises: WireError."""
    return _decode(_headers, data)


def _decode(decoder: msgspec.msgpack.Decoder[_T], data: bytes) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a message of this protocol: {error}") from error


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# What is signed. The cluster's digest and the kind of statement stand in each, so that a signature
# is worth nothing in another cluster or as another statement.


def to_propose(cluster: bytes, era: int, view: int, height: int, digest: bytes) -> bytes:
    return encode(("propose", cluster, era, view, height, digest))


def to_vote(cluster: bytes, era: int, view: int, height: int, digest: bytes) -> bytes:
    return encode(("vote", cluster, era, view, height, digest))


def to_time_out(cluster: bytes, era: int, view: int, high: Rank) -> bytes:
    return encode(("timeout", cluster, era, view, high))


def to_ask(cluster: bytes, request: Request) -> bytes:
    origin, epoch, number = request.key
    what = sha256(request.command)
    return encode(("request", cluster, origin, epoch, number, request.marker, what))


def to_approve(cluster: bytes, era: int, members: tuple[Member, ...]) -> bytes:
    return encode(("change", cluster, era, sha256(encode(members))))


def to_check(cluster: bytes, era: int, index: int, digest: bytes) -> bytes:
    return encode(("checkpoint", cluster, era, index, digest))


def cluster_digest(members: tuple[Member, ...], name: str = "") -> bytes:
    """What tells clusters apart: the first members (their names and keys) and a name."""
    return sha256(encode(("cluster", name, [(m.name, m.key) for m in in_order(members)])))


def in_order(members: tuple[Member, ...]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: member.name))


def root_digest(cluster: bytes, era: int, before: bytes) -> bytes:
    """An era's root: what its first block has as parent. ``before``: the block with the change."""
    return sha256(encode(("root", cluster, era, before)))
