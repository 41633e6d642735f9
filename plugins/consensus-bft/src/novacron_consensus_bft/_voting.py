"""Proposals, votes, certificates and views: the two phases, and the change of view.

A leader proposes blocks, members vote to it, a quorum of votes is a certificate (first phase); a
later block of the same view carries it, and a certificate for that one (second phase) commits what
the first was for. Sources: Malkhi and Nayak, "HotStuff-2: Optimal Two-Phase Responsive BFT" (2023);
Gelashvili et al., "Jolteon and Ditto" (2022) for timeout certificates. ADR 013 says what is ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from novacron_consensus_bft import _records as rec
from novacron_consensus_bft._chain import Held
from novacron_consensus_bft._member import MemberState
from novacron_consensus_bft._rules import fault
from novacron_consensus_bft._wire import (
    REQUESTS_MAX,
    Advance,
    Approval,
    Ask,
    Block,
    Certificate,
    Certified,
    Change,
    Header,
    Proposal,
    Rank,
    Request,
    Timeout,
    TimeoutCertificate,
    Vote,
    decode_block,
    encode,
    to_approve,
    to_propose,
    to_time_out,
    to_vote,
)


class Voting(MemberState, ABC):
    """See the module."""

    _votes: dict[tuple[int, bytes], dict[int, bytes]]
    _early: dict[int, Held]
    _approvals: dict[int, Approval]
    _told: Rank = (0, 0)

    def _begin_era(self) -> None:
        super()._begin_era()
        self._votes.clear()
        self._early.clear()
        self._approvals.clear()
        self._told = (0, 0)

    # Proposals.

    def _on_proposal(self, sender: str, message: Proposal) -> None:
        block = decode_block(message.block)
        held = Held.of(message.block, block, message.signature)
        known = self._held(held.digest)
        if known is not None:
            self._vote(known)
            return
        if block.era != self.era.number or block.view < self.view:
            return
        if not self.era.proposed(block, held.digest, message.signature):
            self._refuse(sender, "a block that its leader has not signed")
            return
        self._saw("propose", self.era.leader(block.view), held.header())
        if block.view > self.view:
            timeouts = block.timeouts
            ended = timeouts is not None and timeouts.view + 1 == block.view
            if timeouts is None or not ended or not self.era.gave_up(timeouts):
                self._ask(sender)  # its view began with a block that did not come
                return
            self._enter(block.view, timeouts)
        if self.chain.joins(block):
            self._admit(sender, held)
        else:
            if len(self._early) < 2 * self.settings.window:
                self._early.setdefault(block.height, held)
            self._ask(sender)

    def _admit(self, sender: str, held: Held) -> None:
        """Hold a block whose parent is here, vote for it, and go on with those that came early."""
        following: Held | None = held
        while following is not None:
            block = following.block
            if self.chain.at(*block.rank):
                return  # its leader proposed two; if this one is certified, it comes by `Blocks`
            why = fault(block, self.era, self.chain, self.settings.window)
            if why:
                self._refuse(sender, f"an unsound block: {why}")
                return
            self._hold(following)
            self._see(block.justify)
            if self.high.digest == following.digest:
                self._try_commit(self.high)
            self._vote(following)
            after = self._early.pop(block.height + 1, None)
            following = after if after and after.block.parent == following.digest else None

    def _hold(self, held: Held) -> None:
        self.chain.add(held)
        self._save(rec.Kept(held.raw, held.signature))

    def _vote(self, held: Held) -> None:
        """Vote for a block if that is safe; say it again if it was done."""
        block = held.block
        if self.place is None or block.era != self.era.number or block.view != self.view:
            return
        if self.timed_out or held.digest not in self.chain.tree:
            return
        voted = self.voted if self.voted and self.voted.view == self.view else None
        if voted is not None and block.height <= voted.height:
            last = self._held(voted.digest)
            if last is None or self.chain.ancestor(last, block.rank) != held.digest:
                return  # it voted for another at this place
        elif not self._follows(block, voted):
            return
        else:
            self.voted = rec.Voted(block.era, block.view, block.height, held.digest)
            self._save(self.voted)
        at = (self.era.number, block.view, block.height)
        signature = self.signer.sign(to_vote(self.cluster, *at, held.digest))
        vote = Vote(*at, held.digest, signature)
        leader = self.era.leader(self.view)
        if leader == self.name:
            self._count(self.place, vote)
        else:
            self._send(leader, vote)

    def _follows(self, block: Block, voted: rec.Voted | None) -> bool:
        """Whether it is the next one after all that this member voted for in this view."""
        if voted is None:
            return block.height == 1
        return block.height == voted.height + 1 and block.parent == voted.digest

    # Votes.

    def _on_vote(self, sender: str, vote: Vote) -> None:
        place = self.era.places.get(sender)
        if place is None or vote.view != self.view or self.era.leader(self.view) != self.name:
            return
        if self.voted is None or vote.view != self.voted.view or vote.height > self.voted.height:
            return  # for a block that was never proposed
        at = (vote.era, vote.view, vote.height)
        if self._known_vote(sender, at) == vote.digest:
            return
        if not self.era.signed(place, to_vote(self.cluster, *at, vote.digest), vote.signature):
            self._refuse(sender, "a vote that it has not signed")
            return
        self._saw("vote", sender, Header(*at, vote.digest, vote.signature))
        self._count(place, vote)

    def _known_vote(self, sender: str, at: tuple[int, int, int]) -> bytes | None:
        return self.witness.known("vote", sender, at)

    def _count(self, place: int, vote: Vote) -> None:
        held = self.chain.tree.get(vote.digest)
        if held is None or held.block.rank != (vote.view, vote.height):
            return
        votes = self._votes.setdefault((vote.height, vote.digest), {})
        votes[place] = vote.signature
        rank = (vote.view, vote.height)
        if len(votes) >= self.era.quorum and rank > self.high.rank:
            rows = tuple(sorted(votes.items()))[: self.era.quorum]
            self._see(Certificate(self.era.number, *rank, vote.digest, rows))

    def _saw(self, kind: str, member: str, said: Header) -> None:
        at = (said.era, said.view, said.height)
        proof = self.witness.add(kind, member, at, said.digest, said.signature)
        if proof is not None:
            self.proofs = [*self.proofs[-63:], proof]
            self._note("equivocation", f"{member} signed two blocks to {kind}: {proof.hex()}")

    # Certificates.

    def _on_certified(self, sender: str, message: Certified) -> None:
        certificate = message.certificate
        if certificate.rank <= self.high.rank and certificate.digest not in self.chain.tree:
            return
        if not self.era.certifies(certificate):
            self._refuse(sender, "a certificate that is not sound")
            return
        self._see(certificate)
        if self._missing():
            self._ask(sender)

    def _see(self, certificate: Certificate) -> None:
        """A certificate that was checked: it may be the highest, and may commit something."""
        if certificate.era != self.era.number:
            return
        if certificate.rank > self.high.rank:
            self.high = certificate
            if certificate.view > self.view:
                self._enter(certificate.view, None)
        self._try_commit(certificate)

    def _try_commit(self, certificate: Certificate) -> None:
        held = self.chain.tree.get(certificate.digest)
        if held is None:
            return
        first = held.block.justify
        if first.height > 0 and first.view == held.block.view:
            self._commit(first.digest, certificate)

    def _missing(self) -> bool:
        """Whether the highest certificate is for a block that is not here."""
        return self._held(self.high.digest) is None and self.high.digest != self.chain.head

    # Views.

    def _enter(self, view: int, timeouts: TimeoutCertificate | None) -> None:
        self.view = view
        self.timed_out = False
        self.entered_by = timeouts
        self._votes.clear()
        self._early.clear()
        self.pacemaker.entered_ms = self._now
        self.pacemaker.resend_ms = None
        self._told = (view, 0)
        for waiting in self.pool:
            if waiting.request.origin == self.name:
                waiting.passed_on = view
                self._send(self.era.leader(view), Ask(self.era.number, waiting.request))

    def _give_up(self) -> None:
        """No vote in this view any more. Tell the next leader."""
        if self.place is None or self.timed_out:
            return
        self.timed_out = True
        self.pacemaker.failures += 1
        self._save(rec.GaveUp(self.era.number, self.view, self.high))
        self._note("view", f"view {self.view} of {self.era.leader(self.view)} brought too little")
        timeout = self._timeout()
        self.pacemaker.add(self.place, timeout)
        self.pacemaker.resend_ms = self._now + self.settings.retry_ms
        self._send(self.era.leader(self.view + 1), timeout)
        self._gather(self.view)

    def _timeout(self) -> Timeout:
        era, view, high = self.era.number, self.view, self.high
        held = self._held(self.voted.digest) if self.voted and self.voted.view == view else None
        seen = held.header() if held is not None else None
        signature = self.signer.sign(to_time_out(self.cluster, era, view, high.rank))
        return Timeout(era, view, high, seen, signature)

    def _on_timeout(self, sender: str, message: Timeout) -> None:
        place = self.era.places.get(sender)
        if place is None:
            return
        if message.view < self.view:
            if self.entered_by is not None:
                self._send(sender, Advance(self.era.number, self.entered_by, self.high))
            else:
                self._ask(sender)
            return
        if message.view <= self.pacemaker.newest(place):
            return
        statement = to_time_out(self.cluster, message.era, message.view, message.high.rank)
        sound = self.era.signed(place, statement, message.signature)
        if not sound or not self.era.certifies(message.high):
            self._refuse(sender, "a timeout that is not sound")
            return
        self._compare_seen(message)
        self._see(message.high)
        if message.era != self.era.number:
            return
        self.pacemaker.add(place, message)
        joined = self.pacemaker.joined(self.era.faulty, self.place)
        if joined > self.view:
            self._enter(joined, None)
        if joined >= self.view:
            self._give_up()
        self._gather(message.view)
        if self._missing():
            self._ask(sender)

    def _compare_seen(self, message: Timeout) -> None:
        """Another member's last block of the view may show that its leader proposed two."""
        seen = message.seen
        if seen is None or (seen.era, seen.view) != (self.era.number, message.view):
            return
        leader, at = self.era.leader(seen.view), (seen.era, seen.view, seen.height)
        if self.witness.known("propose", leader, at) == seen.digest:
            return
        if self.era.signed_by(leader, to_propose(self.cluster, *at, seen.digest), seen.signature):
            self._saw("propose", leader, seen)

    def _gather(self, view: int) -> None:
        """Go on to the next view once a quorum has given this one up."""
        if view < self.view:
            return
        made = self.pacemaker.certificate(self.era.number, view, self.era.quorum)
        if made is not None:
            self._enter(view + 1, made)
            self._send(self.era.leader(view + 1), Advance(self.era.number, made, self.high))

    def _on_advance(self, sender: str, message: Advance) -> None:
        timeouts = message.timeouts
        if timeouts.view + 1 < self.view or (timeouts.view + 1 == self.view and self.entered_by):
            return
        if not self.era.gave_up(timeouts) or not self.era.certifies(message.high):
            self._refuse(sender, "a change of view that is not sound")
            return
        self._see(message.high)
        if message.era != self.era.number:
            return
        if timeouts.view + 1 > self.view:
            self._enter(timeouts.view + 1, timeouts)
        elif timeouts.view + 1 == self.view and self.entered_by is None:
            self.entered_by = timeouts
        if self._missing():
            self._ask(sender)

    # Leading.

    def _lead(self) -> None:
        """Propose what there is to propose, and tell of certificates that no block carries."""
        while self._is_leading() and self._propose():
            pass
        if self._is_leading() and self.high.view == self.view and self.high.rank > self._told:
            self._told = self.high.rank
            self._send_all(Certified(self.era.number, self.high))

    def _is_leading(self) -> bool:
        return (
            self.place is not None
            and self.era.leader(self.view) == self.name
            and not self.timed_out
        )

    def _propose(self) -> bool:
        """Whether another block was proposed."""
        last = self.voted if self.voted and self.voted.view == self.view else None
        tip = self._held(last.digest) if last is not None else None
        if last is not None:
            if tip is None:
                return False
            return self._propose_next(tip)
        if self.view == 0:
            requests, change = self._work(None)
            at_root = self.high.height == 0 and self.chain.head == self.era.root
            if not at_root or (not requests and change is None):
                return False
            block = self._block(1, self.chain.head, None, requests, change)
        else:
            timeouts = self.entered_by
            if timeouts is None or self.high.rank < timeouts.highest or self._missing():
                return False
            below = self._held(self.high.digest)
            requests, change = self._work(below)
            block = self._block(1, self.high.digest, timeouts, requests, change)
        self._publish(block)
        return True

    def _propose_next(self, tip: Held) -> bool:
        certified = self.high.height if self.high.view == self.view else 0
        if tip.block.height >= certified + self.settings.window:
            return False
        requests, change = self._work(tip)
        if not requests and change is None and not self._carries(tip):
            return False
        self._publish(
            self._block(tip.block.height + 1, tip.digest, None, requests, change, tip.block)
        )
        return True

    def _carries(self, tip: Held) -> bool:
        """Whether an empty block is of use: its certificate would help to commit something."""
        if self.high.view != self.view or self.high.rank <= tip.block.justify.rank:
            return False
        covered = tip.block.justify.rank if tip.block.justify.view == self.view else (-1, 0)
        return any(
            (one.block.requests or one.block.change is not None)
            and covered < one.block.rank <= self.high.rank
            for one in self.chain.path(tip.digest)
        )

    def _work(self, below: Held | None) -> tuple[tuple[Request, ...], Change | None]:
        """What a block on top of that one would hold."""
        path = self.chain.path(below.digest) if below is not None else []
        if any(held.block.change is not None for held in path):
            return (), None  # nothing counts after a change of members, until it is committed
        under_way = {request.key for held in path for request in held.block.requests}
        requests = self.pool.take(
            REQUESTS_MAX, self.settings.block_bytes, lambda key: key in under_way
        )
        return tuple(requests), self._approved()

    def _block(
        self,
        height: int,
        parent: bytes,
        timeouts: TimeoutCertificate | None,
        requests: tuple[Request, ...],
        change: Change | None,
        before: Block | None = None,
    ) -> Block:
        held = self._held(parent)
        position = (held.block.position if held is not None else self.chain.position) + 1
        justify = self.high
        if before is not None and justify.view != self.view:
            justify = before.justify
        era, view = self.era.number, self.view
        return Block(era, view, height, position, parent, justify, timeouts, requests, change)

    def _publish(self, block: Block) -> None:
        raw = encode(block)
        held = Held.of(raw, block, b"")
        statement = to_propose(self.cluster, block.era, block.view, block.height, held.digest)
        held = Held.of(raw, block, self.signer.sign(statement))
        self._hold(held)
        self._told = max(self._told, block.justify.rank)
        # The vote is written down before the block leaves: after a restart this place is taken.
        self.voted = rec.Voted(block.era, block.view, block.height, held.digest)
        self._save(self.voted)
        self._send_all(Proposal(self.era.number, raw, held.signature))
        self._vote(held)

    def _repeat_proposals(self) -> None:
        """Send what is not certified to those who have not voted for it."""
        if not self._is_leading() or self.voted is None or self.voted.view != self.view:
            return
        for held in self.chain.path(self.voted.digest):
            block = held.block
            if block.view != self.view or block.rank <= self.high.rank:
                continue
            have = self._votes.get((block.height, held.digest), {})
            for place, member in enumerate(self.era.members):
                if place not in have:
                    message = Proposal(self.era.number, held.raw, held.signature)
                    self._send(member.name, message)

    # Changes of members.

    def _on_approval(self, sender: str, message: Approval) -> None:
        place = self.era.places.get(sender)
        if place is None or self._approvals.get(place) == message:
            return
        statement = to_approve(self.cluster, self.era.number, message.members)
        if not self.era.signed(place, statement, message.signature):
            self._refuse(sender, "an approval that it has not signed")
            return
        self._approvals[place] = message

    def _approved(self) -> Change | None:
        """The change that a quorum wants, if there is one."""
        for wanted in dict.fromkeys(message.members for message in self._approvals.values()):
            rows = tuple(
                (place, message.signature)
                for place, message in sorted(self._approvals.items())
                if message.members == wanted
            )
            change = Change(wanted, rows)
            if len(rows) >= self.era.quorum and self.era.approves(change):
                return change
        return None

    # What the parts above this one do.

    @abstractmethod
    def _ask(self, to: str) -> None: ...
