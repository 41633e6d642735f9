"""What an honest member may say and believe, checked apart from the core's own code.

Agreement is broken only after several rules are, and a simulation may run long until a broken rule
does harm. So the rules are watched, too: an honest member never says two things at one place, says
nothing in a view that it gave up, votes only for what a quorum allows, and believes only what a
quorum has signed.
"""

from __future__ import annotations

from typing import Any

from novacron_consensus_bft import _wire as wire
from novacron_consensus_bft._signing import Verifier


class Oracle:
    """See the module."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._votes: dict[tuple[str, int, int, int], bytes] = {}
        self._proposals: dict[tuple[str, int, int, int], bytes] = {}
        self._gave_up: dict[tuple[str, int], int] = {}
        self._checked: set[bytes] = set()
        self._believed: dict[str, tuple[Any, Any]] = {}

    def said(self, node: str, core: Any, data: bytes) -> None:
        """An honest member says this. Raises AssertionError if it must not."""
        message = wire.decode(data)
        if isinstance(message, wire.Vote):
            self._voted(node, core, message)
        elif isinstance(message, wire.Timeout):
            key = (node, message.era)
            self._gave_up[key] = max(self._gave_up.get(key, -1), message.view)
        elif isinstance(message, wire.Proposal):
            block = wire.decode_block(message.block)
            if core.era.number == block.era and core.era.leader(block.view) == node:
                at = (node, block.era, block.view, block.height)
                digest = wire.sha256(message.block)
                first = self._proposals.setdefault(at, digest)
                assert first == digest, f"{node} proposes two blocks at {at[1:]}"

    def _voted(self, node: str, core: Any, vote: wire.Vote) -> None:
        at = (node, vote.era, vote.view, vote.height)
        first = self._votes.setdefault(at, vote.digest)
        assert first == vote.digest, f"{node} votes for two blocks at {at[1:]}"
        given_up = self._gave_up.get((node, vote.era), -1)
        assert vote.view > given_up, f"{node} votes in view {vote.view} after it gave up {given_up}"
        held = core.chain.tree.get(vote.digest)
        if held is None or core.era.number != vote.era:
            return
        below = self._votes.get((node, vote.era, vote.view, vote.height - 1))
        if vote.height > 1 and below is not None:
            assert below == held.block.parent, f"{node} votes beside what it voted for"
        self._sound(node, core, held.block)
        self._builds_on(node, core, held.block)

    def _sound(self, node: str, core: Any, block: wire.Block) -> None:
        """What a vote says about a block."""
        assert self.certified(core, block.justify), f"{node} votes upon a false certificate"
        timeouts = block.timeouts
        if timeouts is not None:
            rows = {
                place
                for place, view, height, signature in timeouts.timeouts
                if self._signed(
                    core,
                    place,
                    wire.to_time_out(core.cluster, block.era, timeouts.view, (view, height)),
                    signature,
                )
            }
            assert len(rows) >= _quorum(core), f"{node} votes in a view that did not begin"
            assert block.justify.rank >= timeouts.highest, f"{node} votes against what is locked"
        if block.change is not None:
            statement = wire.to_approve(core.cluster, block.era, block.change.members)
            rows = {p for p, s in block.change.approvals if self._signed(core, p, statement, s)}
            assert len(rows) >= _quorum(core), f"{node} votes for members that nobody approved"
        for request in block.requests:
            place = core.era.places.get(request.origin, -1)
            statement = wire.to_ask(core.cluster, request)
            asked = self._signed(core, place, statement, request.signature)
            assert asked, f"{node} votes for what {request.origin} has not asked for"

    def _builds_on(self, node: str, core: Any, block: wire.Block) -> None:
        """Its certificate is for a block on the way to it."""
        justify, below = block.justify, core.chain.tree.get(block.parent)
        while below is not None and below.block.rank > justify.rank:
            below = core.chain.tree.get(below.block.parent)
        if below is not None:
            assert below.digest == justify.digest, f"{node} votes for a certificate from elsewhere"

    def back(self, node: str, core: Any) -> None:
        """A member begins again: it must know what it said."""
        era = core.era.number
        voted = (core.voted.view, core.voted.height) if core.voted is not None else (-1, 0)
        for said in (self._votes, self._proposals):
            for name, of_era, view, height in said:
                if (name, of_era) == (node, era):
                    assert (view, height) <= voted, f"{node} forgot its vote at {view, height}"
        given_up = self._gave_up.get((node, era), -1)
        knows = core.view > given_up or (core.view == given_up and core.timed_out)
        assert knows, f"{node} forgot that it gave view {given_up} up"

    def holds(self, node: str, core: Any) -> None:
        """What an honest member believes after an event."""
        high, commit = core.high, core.last_commit
        before = self._believed.get(node)
        if before is not None and before[0] is high and before[1] is commit:
            return
        self._believed[node] = (high, commit)
        assert self.certified(core, high), f"{node} believes a false certificate of {high.rank}"
        if commit is None or commit.certificate.era != core.era.number:
            return
        itself = commit.digest == commit.certificate.digest
        assert not itself, f"{node} commits a block upon its own certificate"
        held = core.chain.tree.get(commit.certificate.digest)
        if held is not None:
            first = held.block.justify
            two = first.height > 0 and first.view == held.block.view
            assert two, f"{node} commits without two phases in one view"
            assert self.certified(core, commit.certificate), f"{node} commits upon nothing"

    def certified(self, core: Any, certificate: wire.Certificate) -> bool:
        """Whether a quorum has signed it, or it is the root's."""
        if certificate.height == 0:
            return bool(certificate.digest == core.era.root)
        key = wire.encode(certificate)
        if key in self._checked:
            return True
        at = (certificate.era, certificate.view, certificate.height)
        statement = wire.to_vote(core.cluster, *at, certificate.digest)
        rows = {p for p, s in certificate.votes if self._signed(core, p, statement, s)}
        if len(rows) < _quorum(core) or certificate.era != core.era.number:
            return False
        self._checked.add(key)
        return True

    def _signed(self, core: Any, place: int, statement: bytes, signature: bytes) -> bool:
        members = core.era.members
        if not 0 <= place < len(members):
            return False
        return self._verifier.verify(members[place].key, statement, signature)


def _quorum(core: Any) -> int:
    count = len(core.era.members)
    return count - (count - 1) // 3
