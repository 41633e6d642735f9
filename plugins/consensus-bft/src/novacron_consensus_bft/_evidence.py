"""Accountability: proof that a member said two things of which an honest one says at most one.

A proof is two statements with their signatures. Whoever knows the cluster's digest and the member's
key can check it (`verify_proof`), and nobody can make one up of an honest member.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from novacron_consensus_bft._signing import Verifier
from novacron_consensus_bft._wire import (
    Digest,
    Name,
    Number,
    Signature,
    encode,
    to_propose,
    to_vote,
)

# Statements are remembered until so many newer ones came.
_SEEN_MAX: Final = 4096
_STATEMENTS: Final = {"vote": to_vote, "propose": to_propose}


class Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One member, one place, two blocks.

    Attributes:
        member: Who is convicted.
        kind: ``vote`` or ``propose``.
        first, second: Digest and signature of each statement.
    """

    member: Name
    kind: str
    era: Number
    view: Number
    height: Number
    first: tuple[Digest, Signature]
    second: tuple[Digest, Signature]


_proofs: Final = msgspec.msgpack.Decoder(Proof)


def verify_proof(data: bytes, cluster: bytes, key: bytes, verifier: Verifier) -> Proof:
    """The proof, if it convicts the member that has this key.

    Raises: ValueError that says why it proves nothing.
    """
    try:
        proof = _proofs.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"this is no proof of equivocation: {error}") from error
    statement = _STATEMENTS.get(proof.kind)
    if statement is None or proof.first[0] == proof.second[0]:
        raise ValueError("the proof's statements do not contradict each other")
    for digest, signature in (proof.first, proof.second):
        said = statement(cluster, proof.era, proof.view, proof.height, digest)
        if not verifier.verify(key, said, signature):
            raise ValueError(f"{proof.member!r:.80} has not signed what the proof shows")
    return proof


class Witness:
    """Remembers what was said and finds contradictions. Feed it verified statements only."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, str, int, int, int], tuple[bytes, bytes]] = OrderedDict()
        self._convicted: set[tuple[str, int]] = set()

    def add(
        self, kind: str, member: str, at: tuple[int, int, int], digest: bytes, signature: bytes
    ) -> bytes | None:
        """A proof, if this contradicts what the member said before; one per member and era."""
        key = (kind, member, *at)
        before = self._seen.get(key)
        if before is None:
            self._seen[key] = (digest, signature)
            if len(self._seen) > _SEEN_MAX:
                self._seen.popitem(last=False)
            return None
        if before[0] == digest or (member, at[0]) in self._convicted:
            return None
        self._convicted.add((member, at[0]))
        return encode(Proof(member, kind, *at, before, (digest, signature)))

    def known(self, kind: str, member: str, at: tuple[int, int, int]) -> bytes | None:
        """The digest that the member is known to have signed there."""
        found = self._seen.get((kind, member, *at))
        return found[0] if found else None
