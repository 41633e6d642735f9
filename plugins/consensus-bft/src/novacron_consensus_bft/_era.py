"""One era: a set of members, what a quorum of it is, and whether its certificates are sound.

With n members of which at most f = (n - 1) // 3 lie, a quorum is n - f: any two quorums share an
honest member, and the honest ones alone are a quorum.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from novacron_consensus_bft._signing import Verifier
from novacron_consensus_bft._wire import (
    Block,
    Certificate,
    Change,
    Member,
    Request,
    TimeoutCertificate,
    encode,
    in_order,
    root_digest,
    sha256,
    to_approve,
    to_ask,
    to_propose,
    to_time_out,
    to_vote,
)

_CHECKED_MAX: Final = 1024
_Check = Callable[[], bool]


class Era:
    """See the module.

    Attributes:
        number: Which era, from 0.
        members: Sorted by name.
        root: What the era's first block has as parent.
        faulty: How many members may lie without harm.
        quorum: How many signatures a certificate needs.
    """

    def __init__(
        self,
        cluster: bytes,
        number: int,
        members: tuple[Member, ...],
        before: bytes,
        verifier: Verifier,
    ) -> None:
        self.cluster = cluster
        self.number = number
        self.members = in_order(members)
        self.root = root_digest(cluster, number, before)
        self.faulty = (len(members) - 1) // 3
        self.quorum = len(members) - self.faulty
        self.places = {member.name: place for place, member in enumerate(self.members)}
        self._verifier = verifier
        # Certificates come again in each message that builds on them; the whole of each is
        # remembered, signatures too, since others will check those that we pass on.
        self._checked: OrderedDict[bytes, None] = OrderedDict()

    def leader(self, view: int) -> str:
        return self.members[view % len(self.members)].name

    def root_certificate(self) -> Certificate:
        return Certificate(self.number, 0, 0, self.root, ())

    def signed(self, place: int, statement: bytes, signature: bytes) -> bool:
        """Whether the member at that place has signed the statement."""
        if place >= len(self.members):
            return False
        return self._verifier.verify(self.members[place].key, statement, signature)

    def signed_by(self, name: str, statement: bytes, signature: bytes) -> bool:
        place = self.places.get(name)
        return place is not None and self.signed(place, statement, signature)

    def proposed(self, block: Block, digest: bytes, signature: bytes) -> bool:
        """Whether the view's leader has signed the block."""
        statement = to_propose(self.cluster, self.number, block.view, block.height, digest)
        return self.signed_by(self.leader(block.view), statement, signature)

    def asked(self, request: Request) -> bool:
        return self.signed_by(request.origin, to_ask(self.cluster, request), request.signature)

    def certifies(self, certificate: Certificate) -> bool:
        """Whether a quorum has voted for that block, or it is the era's root."""
        if certificate.era != self.number:
            return False
        if certificate.height == 0:
            return certificate == self.root_certificate()
        view, height, digest = certificate.view, certificate.height, certificate.digest
        vote = to_vote(self.cluster, self.number, view, height, digest)
        return self._once(
            certificate,
            lambda: self._quorum((place, vote, sig) for place, sig in certificate.votes),
        )

    def gave_up(self, certificate: TimeoutCertificate) -> bool:
        """Whether a quorum has given that view up."""
        if certificate.era != self.number:
            return False
        view = certificate.view
        return self._once(
            certificate,
            lambda: self._quorum(
                (place, to_time_out(self.cluster, self.number, view, (high, height)), signature)
                for place, high, height, signature in certificate.timeouts
            ),
        )

    def approves(self, change: Change) -> bool:
        """Whether a quorum wants these members, and they make sense."""
        statement = to_approve(self.cluster, self.number, change.members)
        return sound_members(change.members) and self._once(
            change, lambda: self._quorum((place, statement, sig) for place, sig in change.approvals)
        )

    def _quorum(self, signed: Iterable[tuple[int, bytes, bytes]]) -> bool:
        places = set()
        for place, statement, signature in signed:
            if place in places or not self.signed(place, statement, signature):
                return False
            places.add(place)
        return len(places) >= self.quorum

    def _once(self, what: Certificate | TimeoutCertificate | Change, check: _Check) -> bool:
        key = sha256(encode((type(what).__name__, what)))
        if key in self._checked:
            return True
        if not check():
            return False
        self._checked[key] = None
        if len(self._checked) > _CHECKED_MAX:
            self._checked.popitem(last=False)
        return True


def sound_members(members: tuple[Member, ...]) -> bool:
    """Whether each has a name and a key of its own, in the order of names."""
    names = [member.name for member in members]
    keys = {member.key for member in members}
    return names == sorted(set(names)) and len(keys) == len(members)
