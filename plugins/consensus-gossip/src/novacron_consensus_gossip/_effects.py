"""What a core asks its driver to do, beside the effects that all agreement cores share.

`novacron_agreement.effects` has `Send` (a datagram that may be lost), `Save` and `Note`.
"""

from __future__ import annotations

from attrs import frozen
from novacron_agreement.effects import Effect, Note, Save, Send

from novacron_consensus_gossip._values import Member, State

__all__ = ["Changed", "Deliver", "Effect", "Note", "Save", "Send", "Stream"]


@frozen
class Stream(Effect):
    """Give a message of up to `STREAM_BYTES_MAX` to an address over something like a stream.

    It need not arrive, but if it does, it does whole.
    """

    to: str
    message: bytes


@frozen
class Changed(Effect):
    """A member is held otherwise than before: it came, is suspected, died, left, told new tags, or
    was forgotten (``state`` None)."""

    member: Member
    state: State | None


@frozen
class Deliver(Effect):
    """A broadcast that was not delivered before in this process's life."""

    origin: str
    topic: str
    body: bytes
