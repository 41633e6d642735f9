"""One member's state, its durable records, and what happens when blocks are committed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final

from attrs import define
from novacron_agreement import Commit, Effect, Note, Readable, Reason, Rejected, Save, Send
from novacron_agreement.numbers import Verdict

from novacron_consensus_bft import _records as rec
from novacron_consensus_bft._chain import Chain, Held
from novacron_consensus_bft._era import Era, sound_members
from novacron_consensus_bft._evidence import Witness
from novacron_consensus_bft._ledger import Ledger
from novacron_consensus_bft._pacemaker import Pacemaker
from novacron_consensus_bft._pool import Pool
from novacron_consensus_bft._settings import CoreSettings
from novacron_consensus_bft._signing import Signer, Verifier
from novacron_consensus_bft._wire import (
    Ask,
    Block,
    Certificate,
    Closing,
    Member,
    Message,
    Request,
    TimeoutCertificate,
    cluster_digest,
    encode,
    in_order,
    to_ask,
)

# Requests for reads that are under way at once; later reads share the next one.
_MARKERS_MAX: Final = 4


@define
class Base:
    """The checkpoint before which nothing is held."""

    head: rec.Base
    index: int
    position: int
    digest: bytes
    pieces: list[bytes]


class MemberState:
    """See the module. `_voting`, `_catchup` and `_core` build on it in this order.

    Attributes:
        era: The present members.
        view: The present view.
        refused: What was dropped, counted by reason.
        proofs: Of equivocation, newest last.
    """

    def __init__(
        self,
        name: str,
        members: Sequence[Member],
        records: Sequence[bytes],
        settings: CoreSettings,
        rng: random.Random,
        *,
        signer: Signer,
        verifier: Verifier,
    ) -> None:
        """Raises: ValueError for members that make no sense, RecordsError for foreign records."""
        first = in_order(tuple(members))
        if not first or not sound_members(first):
            raise ValueError("the first members need a name and a key of their own each")
        self.name = name
        self.settings = settings
        self.rng = rng
        self.signer = signer
        self.verifier = verifier
        self.cluster = cluster_digest(first, settings.cluster)
        self.contacts = {member.name: member.address for member in first}
        self.ledger = Ledger(self.cluster, first)
        self.era = self._era_of(self.ledger)
        self.chain = Chain(self.era.root)
        self.view = 0
        self.timed_out = False
        self.voted: rec.Voted | None = None
        self.high = self.era.root_certificate()
        self.entered_by: TimeoutCertificate | None = None
        self.pacemaker = Pacemaker(settings.view_timeout_ms)
        self.pool = Pool(settings.share_bytes)
        self.witness = Witness()
        self.proofs: list[bytes] = []
        self.refused: Counter[str] = Counter()
        self.closings: dict[int, Closing] = {}
        self.base: Base | None = None
        self.last_commit: rec.Committed | None = None
        self.epoch = 0
        self._number = 0
        self._tickets: dict[int, int] = {}
        self._readers: dict[int, list[int]] = {}
        self._reads_next: list[int] = []
        self._out: list[Effect] = []
        self._unsaved: list[bytes] = []
        self._replaying = False
        self._now = 0
        self._records = rec.read(records, self.cluster, name)

    # What others see.

    @property
    def leader(self) -> str | None:
        return self.era.leader(self.view)

    @property
    def members(self) -> Mapping[str, str]:
        """The present members with their addresses; before the first state came, also the first
        ones of the cluster, through whom it comes."""
        present = {member.name: member.address for member in self.era.members}
        return present if self.name in present else {**self.contacts, **present}

    @property
    def place(self) -> int | None:
        """This member's number in the present era; None if it is not one of the members."""
        return self.era.places.get(self.name)

    # Effects.

    def _send(self, to: str, message: Message) -> None:
        """Said only when everything written before is durable."""
        if to != self.name:
            self._flush()
            self._out.append(Send(to, encode(message)))

    def _send_all(self, message: Message) -> None:
        self._flush()
        data = encode(message)
        self._out += [Send(one.name, data) for one in self.era.members if one.name != self.name]

    def _save(self, record: rec.Record) -> None:
        if not self._replaying:
            self._unsaved.append(rec.write(record))

    def _flush(self) -> None:
        if self._unsaved:
            self._out.append(Save(tuple(self._unsaved)))
            self._unsaved.clear()

    def _take(self) -> list[Effect]:
        self._flush()
        out, self._out = self._out, []
        return out

    def _note(self, kind: str, detail: str) -> None:
        if not self._replaying:
            self._out.append(Note(kind, detail))

    def _refuse(self, sender: str, why: str) -> None:
        self.refused[why] += 1
        if self.refused[why] == 1:
            self._note("refused", f"{sender}: {why}")

    # Eras.

    def _era_of(self, ledger: Ledger) -> Era:
        return Era(self.cluster, ledger.era, ledger.members, ledger.before, self.verifier)

    def _begin_era(self) -> None:
        """The ledger has a new era: everything that is not committed counts no more."""
        self.era = self._era_of(self.ledger)
        self.chain.begin_era(self.era.root)
        self.view = 0
        self.timed_out = False
        self.voted = None
        self.high = self.era.root_certificate()
        self.entered_by = None
        self.pacemaker.clear()
        self.pacemaker.entered_ms = self._now
        names = ", ".join(member.name for member in self.era.members)
        self._note("members", f"era {self.era.number}: {names}")
        if self.place is None:
            for ticket in [
                *self._tickets.values(),
                *chain(*self._readers.values(), self._reads_next),
            ]:
                self._out.append(Rejected(ticket, Reason.INVALID, self.leader))
            self._tickets, self._readers, self._reads_next = {}, {}, []

    # Committing.

    def _commit(self, digest: bytes, certificate: Certificate) -> None:
        """Everything up to that block is decided: ``certificate`` is of a block that says so."""
        path = self.chain.path(digest)
        if not path:
            return
        whole = self.chain.path(certificate.digest)
        for held in path:
            self.chain.advance(held)
            self._execute(held.block)
            change = held.block.change
            self.last_commit = rec.Committed(held.digest, certificate)
            if change is not None:
                tail = whole[whole.index(held) :]
                blocks = tuple((one.raw, one.signature) for one in tail)
                self.closings[self.era.number] = Closing(self.era.number, blocks, certificate)
                self.ledger.change(change, held.digest)
                break
        self._save(self.last_commit or rec.Committed(digest, certificate))
        if self.ledger.era != self.era.number:
            self._begin_era()
        else:
            self.chain.prune()
        self.pacemaker.failures = 0
        self._tidy_requests()

    def _execute(self, block: Block) -> None:
        for request in block.requests:
            mine = request.origin == self.name and request.epoch == self.epoch
            if self.ledger.execute(request) is not Verdict.DO:
                continue
            if not request.marker:
                ticket = self._tickets.pop(request.number, None) if mine else None
                self._out.append(Commit(self.ledger.index, self._handed(request), ticket))
            elif mine:
                for ticket in self._readers.pop(request.number, []):
                    self._out.append(Readable(ticket, self.ledger.index))

    def _handed(self, request: Request) -> bytes:
        """What the state machine is given of a request."""
        return request.command

    def _answer_skipped(self) -> None:
        """A state that was taken over may hold what was asked for here, without a `Commit`."""
        for number in [*self._tickets, *self._readers]:
            probe = Request(self.name, self.epoch, number, False, b"", b"")
            if self.ledger.judge(probe) is Verdict.DO:
                continue
            if number in self._tickets:
                ticket = self._tickets.pop(number)
                self._out.append(Rejected(ticket, Reason.UNCERTAIN, self.leader))
            for ticket in self._readers.pop(number, []):
                self._out.append(Readable(ticket, self.ledger.index))

    def _tidy_requests(self) -> None:
        """Let go of requests that are done or can not be done any more."""
        self.pool.prune(
            lambda request: (
                self.ledger.judge(request) is not Verdict.DO
                or request.origin not in self.era.places
            )
        )
        if self._reads_next and len(self._readers) < _MARKERS_MAX and not self._replaying:
            tickets, self._reads_next = self._reads_next, []
            self._mark(tickets)

    # Requests of this member.

    def _mark(self, tickets: list[int]) -> None:
        if len(self._readers) >= _MARKERS_MAX:
            self._reads_next += tickets
        elif self._request(b"", marker=True):
            self._readers[self._number] = tickets
        else:
            self._out += [Rejected(ticket, Reason.BUSY, self.leader) for ticket in tickets]

    def _request(self, command: bytes, *, marker: bool) -> bool:
        """Whether a new request of this member is under way now."""
        unsigned = Request(self.name, self.epoch, self._number + 1, marker, command, b"")
        if self.ledger.judge(unsigned) is not Verdict.DO or not self.pool.has_room(unsigned):
            return False
        signature = self.signer.sign(to_ask(self.cluster, unsigned))
        request = Request(*unsigned.key, marker, command, signature)
        if not self.pool.add(request, self._now):
            return False
        self._number += 1
        waiting = self.pool.get(request.key)
        if waiting is not None:
            waiting.passed_on = self.view
        self._send(self.era.leader(self.view), Ask(self.era.number, request))
        return True

    def _held(self, digest: bytes) -> Held | None:
        return self.chain.get(digest)
