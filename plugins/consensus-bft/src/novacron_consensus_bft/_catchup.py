"""How a member gets what it missed: blocks, ends of eras, and checkpoints with the state.

A member says where it is (`Status`); who is further answers. Blocks come with a certificate for the
last of them: what a quorum voted for was checked by honest members, and so was all that it builds
on. State comes in pieces, each checked against a header that a quorum has signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from attrs import define, field
from novacron_agreement import MESSAGE_BYTES_MAX, Restore, Save

from novacron_consensus_bft import _records as rec
from novacron_consensus_bft._chain import Chain, Held
from novacron_consensus_bft._era import Era
from novacron_consensus_bft._ledger import Ledger
from novacron_consensus_bft._member import Base
from novacron_consensus_bft._voting import Voting
from novacron_consensus_bft._wire import (
    BLOCKS_MAX,
    CHUNK_BYTES,
    Advance,
    AskState,
    Block,
    Blocks,
    Certificate,
    Checkpoint,
    Closing,
    Member,
    StateChunk,
    StateHead,
    StateHeader,
    Status,
    decode_block,
    decode_state_header,
    encode,
    sha256,
    to_check,
)

# Blocks of one answer together; a message takes one longest block besides.
_ANSWER_BYTES = MESSAGE_BYTES_MAX // 4
_PEERS_MAX = 256
# Own states that wait for others to sign the same, and signatures kept of each member.
_MADE_MAX = 2


@define
class Made:
    """A state of this member's own, at one index."""

    raw: bytes
    header: StateHeader
    pieces: list[bytes]
    digest: bytes
    signature: bytes


@define
class Incoming:
    """A state that comes piece by piece."""

    head: StateHead
    header: StateHeader
    digest: bytes
    source: str
    pieces: list[bytes] = field(factory=list)
    moved_ms: int = 0


class Catchup(Voting):
    """See the module."""

    _asked: dict[str, int]
    _answered: dict[str, tuple[int, tuple[int, ...]]]
    _made: dict[int, Made]
    _signed: dict[str, dict[int, Checkpoint]]
    _incoming: Incoming | None = None
    _trusted: Era

    # Where one is.

    def _status(self) -> Status:
        era, trusted = self.era.number, self._trusted.number
        return Status(era, trusted, self.view, self.chain.position, self.high.rank)

    def _ask(self, to: str) -> None:
        """Ask one member for what is missing here, not too often."""
        if self._now - self._asked.get(to, -self.settings.retry_ms) >= self.settings.retry_ms // 2:
            self._asked[to] = self._now
            _bound(self._asked)
            self._send(to, self._status())

    def _on_status(self, sender: str, there: Status) -> None:
        mine = (self.era.number, self.chain.position, self.high.rank)
        theirs = (there.era, there.position, there.rank)
        if theirs > mine or there.position > self.chain.position:
            self._ask(sender)
        if mine > theirs:
            asked = (there.era, there.trusted, there.position, *there.rank)
            last, what = self._answered.get(sender, (-self.settings.retry_ms, ()))
            if what != asked or self._now - last >= self.settings.retry_ms // 2:
                self._answered[sender] = (self._now, asked)
                _bound(self._answered)
                self._answer(sender, there)
        if there.era == self.era.number and there.view < self.view and self.entered_by is not None:
            self._send(sender, Advance(self.era.number, self.entered_by, self.high))

    def _answer(self, to: str, there: Status) -> None:
        """Send the next of what is missing there."""
        if there.position < self.chain.oldest - 1:
            self._answer_state(to, there)
            return
        found = [one for one in self.chain.after(there.position) if one.block.era == there.era]
        if there.era == self.era.number:
            rest = self.chain.path(self.high.digest)
            end: Certificate | None = self.high
        else:
            closing = self.closings.get(there.era)
            if closing is None:
                return
            rest = _opened(closing.blocks)[1:]
            end = closing.certificate
        whole = [*found, *rest]
        if whole and end is not None:
            self._send_blocks(to, there.era, whole, end)

    def _send_blocks(self, to: str, era: int, whole: Sequence[Held], end: Certificate) -> None:
        """As many as one message takes, up to one that a certificate at hand is for."""
        certificates = {held.block.justify.digest: held.block.justify for held in whole}
        certificates[end.digest] = end
        size = 0
        last = -1
        for number, held in enumerate(whole[:BLOCKS_MAX]):
            size += len(held.raw) + len(held.signature)
            # The first certified one is sent however long the way to it is, if a message takes it.
            if size > (_ANSWER_BYTES if last >= 0 else MESSAGE_BYTES_MAX - (16 << 10)):
                break
            if held.digest in certificates:
                last = number
        if last >= 0:
            chosen = whole[: last + 1]
            rows = tuple((held.raw, held.signature) for held in chosen)
            self._send(to, Blocks(era, rows, certificates[chosen[-1].digest]))

    def _on_blocks(self, sender: str, message: Blocks) -> None:
        chain = _opened(message.blocks)
        certificate = message.certificate
        if not _linked(chain, certificate):
            self._refuse(sender, "blocks that do not belong together")
            return
        if certificate.rank < self.high.rank and chain[-1].block.position <= self.chain.position:
            return  # known already
        if not self.era.certifies(certificate):
            self._refuse(sender, "blocks that are not certified")
            return
        new = [held for held in chain if held.digest not in self.chain.tree]
        while new and new[0].block.position <= self.chain.position:
            new.pop(0)
        for held in new:
            if held.block.era != self.era.number or not self.chain.joins(held.block):
                break
            self._hold(held)
        for held in chain:
            self._see(held.block.justify)
        self._see(certificate)
        self._ask(sender)  # there may be more

    # Ends of eras.

    def _on_closing(self, sender: str, message: Closing) -> None:
        """How the newest trusted era ended: then the next one's members are known."""
        chain = _opened(message.blocks)
        change = chain[0].block.change if chain else None
        if not _linked(chain, message.certificate) or change is None:
            self._refuse(sender, "an end of an era that does not belong together")
            return
        last, era = chain[-1].block, self._trusted
        first = last.justify
        two_phases = first.height > 0 and first.view == last.view
        decided = two_phases and any(held.digest == first.digest for held in chain)
        if message.era != era.number or not decided or not era.certifies(message.certificate):
            self._refuse(sender, "an end of an era that is not certified")
            return
        self.closings[era.number] = message
        self._save(rec.Closed(message))
        self._trust(change.members, chain[0].digest)
        self._asked.pop(sender, None)
        self._ask(sender)

    def _trust(self, members: tuple[Member, ...], before: bytes) -> None:
        number = self._trusted.number + 1
        self._trusted = Era(self.cluster, number, members, before, self.verifier)

    # Checkpoints.

    def _checkpoint(self, index: int, snapshot: bytes) -> None:
        """Sign the state at an index and tell the others."""
        found = self._ledger_at(index)
        if found is None:
            raise ValueError(f"index {index} was never committed here, or is compacted already")
        ledger, anchor = found
        size = CHUNK_BYTES
        pieces = [snapshot[at : at + size] for at in range(0, len(snapshot), size)]
        chunks = tuple(sha256(piece) for piece in pieces)
        header = StateHeader(
            ledger.era, index, anchor.digest, anchor.block.position, ledger.encode(), chunks
        )
        raw = encode(header)
        digest = sha256(raw)
        signature = self.signer.sign(to_check(self.cluster, header.era, index, digest))
        self._made[index] = Made(raw, header, pieces, digest, signature)
        for old in sorted(self._made)[:-_MADE_MAX]:
            del self._made[old]
        if header.era == self.era.number and self.place is not None:
            self._send_all(Checkpoint(header.era, index, digest, signature))
        self._settle(index)

    def _ledger_at(self, index: int) -> tuple[Ledger, Held] | None:
        """The ledger as it was after a command, and the block in which that stands."""
        ledger = self._first_ledger()
        for held in self.chain.committed:
            for request in held.block.requests:
                before = ledger.index
                ledger.execute(request)
                if before < ledger.index == index:
                    return ledger, held
            if held.block.change is not None:
                ledger.change(held.block.change, held.digest)
        return None

    def _first_ledger(self) -> Ledger:
        """The ledger before the oldest block that is held."""
        if self.base is not None:
            return Ledger.decode(decode_state_header(self.base.head.head.header).ledger)
        return Ledger(self.cluster, self._first_members)

    _first_members: tuple[Member, ...]

    def _on_checkpoint(self, sender: str, message: Checkpoint) -> None:
        base = self.base
        if base is not None and message.index <= base.index:
            if message.digest == base.digest:
                self._send(sender, base.head.head)  # it missed that a quorum has signed this
            return
        rows = self._signed.setdefault(sender, {})
        if rows.get(message.index) == message or (len(rows) >= 4 and message.index < min(rows)):
            return
        statement = to_check(self.cluster, message.era, message.index, message.digest)
        if not self.era.signed_by(sender, statement, message.signature):
            self._refuse(sender, "a checkpoint that it has not signed")
            return
        rows[message.index] = message
        for old in sorted(rows)[:-4]:
            del rows[old]
        self._settle(message.index)

    def _settle(self, index: int) -> None:
        """Let go of what is before a checkpoint that a quorum has signed."""
        made = self._made.get(index)
        if made is None or made.header.era != self.era.number or self.place is None:
            return
        rows = {self.place: made.signature}
        differ = 0
        for name, signed in self._signed.items():
            place, message = self.era.places.get(name), signed.get(index)
            if place is not None and message is not None and message.era == self.era.number:
                if message.digest == made.digest:
                    rows[place] = message.signature
                else:
                    differ += 1
        if differ > self.era.faulty:
            self._note("diverged", f"others have another state at index {index}: stop this member")
        if len(rows) < self.era.quorum:
            return
        anchor = next((h for h in self.chain.committed if h.digest == made.header.anchor), None)
        if anchor is None:
            return
        votes = tuple(sorted(rows.items()))[: self.era.quorum]
        head = StateHead(made.header.era, made.raw, votes, anchor.raw, anchor.signature)
        self._rebase(head, made.header, made.digest, made.pieces)
        self.chain.forget_before(made.header.position)
        self._rewrite()
        self._note("checkpoint", f"the log before index {index} is gone")

    def _rebase(
        self, head: StateHead, header: StateHeader, digest: bytes, pieces: list[bytes]
    ) -> None:
        self.base = Base(rec.Base(head), header.index, header.position, digest, pieces)
        for known in [*self._made]:
            if known <= header.index:
                del self._made[known]
        for rows in self._signed.values():
            for known in [*rows]:
                if known <= header.index:
                    del rows[known]

    def _rewrite(self) -> None:
        """Write down everything anew, without what is before the base."""
        self._unsaved.clear()
        found: list[rec.Record] = [rec.born(self.cluster, self.name, self.epoch)]
        if self.base is not None:
            found.append(self.base.head)
            found += [rec.Piece(piece) for piece in self.base.pieces]
        found += [rec.Closed(closing) for _, closing in sorted(self.closings.items())]
        blocks = list(self.chain.committed)[1 if self.base is not None else 0 :]
        newest = self.last_commit
        found += [rec.Kept(held.raw, held.signature) for held in blocks]
        if newest is not None and blocks:
            found.append(newest)
        tree = sorted(self.chain.tree.values(), key=lambda held: held.block.position)
        found += [rec.Kept(held.raw, held.signature) for held in tree]
        # A view that is not given up begins with the end of the one before.
        given_up = self.view if self.timed_out else self.view - 1
        if self.voted is not None and self.voted.view <= given_up:
            found.append(self.voted)
        if given_up >= 0:
            found.append(rec.GaveUp(self.era.number, given_up, self.high))
        if self.voted is not None and self.voted.view > given_up:
            found.append(self.voted)
        self._out.append(Save(tuple(rec.write(record) for record in found), replaces=True))

    # State from others.

    def _answer_state(self, to: str, there: Status) -> None:
        base = self.base
        if base is None:
            return
        era = base.head.head.era
        if there.trusted < era:
            closing = self.closings.get(there.trusted)
            if closing is not None:
                self._send(to, closing)
            return
        self._send(to, base.head.head)

    def _on_state_head(self, sender: str, message: StateHead) -> None:
        header = decode_state_header(message.header)
        era = next((e for e in (self.era, self._trusted) if e.number == header.era), None)
        digest = sha256(message.header)
        made = self._made.get(header.index)
        if made is not None and made.digest == digest:
            self._take_votes(message, made)
            return
        known = header.index <= self.ledger.index or header.position <= self.chain.position
        if era is None or known:
            return
        now = self._incoming
        if now is not None:
            if self._now - now.moved_ms < 4 * self.settings.retry_ms:
                return  # it comes already
            if now.digest == digest:
                now.source, now.moved_ms = sender, self._now
                self._send(sender, AskState(header.era, digest, len(now.pieces)))
                return
        statement = to_check(self.cluster, header.era, header.index, digest)
        signers = {p for p, signature in message.votes if era.signed(p, statement, signature)}
        block = decode_block(message.block)
        ledger = Ledger.decode(header.ledger)
        sound = sha256(message.block) == header.anchor and block.position == header.position
        if len(signers) < era.quorum or not sound or ledger.era != header.era:
            self._refuse(sender, "a state that a quorum has not signed")
            return
        if len(header.chunks) * CHUNK_BYTES > self.settings.snapshot_bytes_max + CHUNK_BYTES:
            self._note("refused", f"a state of {len(header.chunks)} pieces: snapshot_bytes_max")
            return
        self._incoming = Incoming(message, header, digest, sender, moved_ms=self._now)
        self._go_on_with_state()

    def _take_votes(self, message: StateHead, made: Made) -> None:
        """A quorum has signed the state that this member has, too."""
        names = [member.name for member in self.era.members]
        index, digest = made.header.index, made.digest
        for place, signature in message.votes:
            if place < len(names) and names[place] != self.name:
                vote = Checkpoint(self.era.number, index, digest, signature)
                self._on_checkpoint(names[place], vote)

    def _go_on_with_state(self) -> None:
        coming = self._incoming
        if coming is None:
            return
        if len(coming.pieces) == len(coming.header.chunks):
            self._incoming = None
            self._install(coming.head, coming.header, coming.pieces)
        else:
            ask = AskState(coming.header.era, coming.digest, len(coming.pieces))
            self._send(coming.source, ask)

    def _on_ask_state(self, sender: str, message: AskState) -> None:
        base = self.base
        if base is not None and base.digest == message.digest and message.chunk < len(base.pieces):
            data = base.pieces[message.chunk]
            self._send(sender, StateChunk(message.era, message.digest, message.chunk, data))
        else:
            self._answered.pop(sender, None)  # it may learn of a newer one

    def _on_state_chunk(self, sender: str, message: StateChunk) -> None:
        coming = self._incoming
        if coming is None or coming.digest != message.digest:
            return
        if message.chunk != len(coming.pieces) or message.chunk >= len(coming.header.chunks):
            return
        if sha256(message.data) != coming.header.chunks[message.chunk]:
            self._refuse(sender, "a piece of a state that is not what was signed")
            return
        coming.pieces.append(message.data)
        coming.moved_ms = self._now
        self._go_on_with_state()

    def _install(self, head: StateHead, header: StateHeader, pieces: list[bytes]) -> None:
        """Take a checkpoint's state in place of one's own."""
        block = decode_block(head.block)
        anchor = Held.of(head.block, block, head.signature)
        same_era = header.era == self.era.number
        self.ledger = Ledger.decode(header.ledger)
        before, mark = self.chain, len(self._out)
        self.chain = Chain(block.parent, header.position - 1)
        self._rebase(head, header, sha256(head.header), pieces)
        if same_era:
            self.chain.tree = before.tree
        else:
            self._begin_era()
            self.chain.head = block.parent
        self._out.append(Restore(header.index, b"".join(pieces)))
        self.chain.advance(anchor)
        self._execute(block)
        if block.change is not None:
            self.ledger.change(block.change, anchor.digest)
            self._begin_era()
        else:
            self.chain.prune()
        self.last_commit = None
        if self.era.number > self._trusted.number:
            self._trusted = self.era
        self._answer_skipped()
        self._tidy_requests()
        if not self._replaying:
            self._rewrite()
            # What is restored must be durable by then.
            self._out.insert(mark, self._out.pop())
            self._note("state", f"took over the state at index {header.index}")


def _opened(blocks: Sequence[tuple[bytes, bytes]]) -> list[Held]:
    """Raises: WireError."""
    return [Held.of(raw, decode_block(raw), signature) for raw, signature in blocks]


def _linked(chain: Sequence[Held], end: Certificate) -> bool:
    """Whether each builds on the one before, and the certificate is for the last."""
    if not chain or chain[-1].digest != end.digest or chain[-1].block.rank != end.rank:
        return False
    return all(
        _next(one.block, other.block) and other.block.parent == one.digest
        for one, other in pairwise(chain)
    )


def _next(one: Block, other: Block) -> bool:
    return other.position == one.position + 1 and other.era == one.era


def _bound(table: dict[str, Any]) -> None:
    while len(table) > _PEERS_MAX:
        del table[next(iter(table))]
