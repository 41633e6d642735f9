"""The core: `novacron_agreement.LogCore` by Byzantine agreement. See `_voting` for the protocol."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from novacron_agreement import COMMAND_BYTES_MAX, MESSAGE_BYTES_MAX, Effect, Reason, Rejected
from novacron_agreement.numbers import Verdict

from novacron_consensus_bft import _records as rec
from novacron_consensus_bft._catchup import Catchup
from novacron_consensus_bft._chain import Held
from novacron_consensus_bft._era import sound_members
from novacron_consensus_bft._evidence import Proof, verify_proof
from novacron_consensus_bft._settings import CoreSettings
from novacron_consensus_bft._signing import Signer, Verifier
from novacron_consensus_bft._wire import (
    Advance,
    Approval,
    Ask,
    AskState,
    Blocks,
    Certificate,
    Certified,
    Checkpoint,
    Closing,
    Member,
    Proposal,
    StateChunk,
    StateHead,
    Status,
    Timeout,
    Vote,
    WireError,
    decode,
    decode_block,
    decode_state_header,
    in_order,
    sha256,
    to_approve,
)

# What a block has beside its commands and certificates.
_BLOCK_EXTRA: Final = 8 << 10
# Requests that are sent again at one time.
_AGAIN_MAX: Final = 64
# These make sense whatever era their sender is in.
# Those that come later ask for the state before they are members.
_OF_ANYBODY: Final = (Status, AskState)
_OF_ANY_ERA: Final = (Status, Closing, StateHead, StateChunk, AskState)

__all__ = ["BftCore", "CoreSettings", "Member", "Proof", "verify_proof"]


class BftCore(Catchup):
    """One member. Made from its name, the cluster's first members and the durable records.

    Args:
        members: Those with which the cluster began, on every member the same, for ever: later
            members are in the log.
        records: All that `Save` wrote, in order.
        signer: Of this member's key.
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
        super().__init__(name, members, records, settings, rng, signer=signer, verifier=verifier)
        self._votes = {}
        self._early = {}
        self._approvals = {}
        self._asked = {}
        self._answered = {}
        self._made = {}
        self._signed = {}
        self._first_members = in_order(tuple(members))
        self._trusted = self.era
        self._retry_at = 0
        self._status_at = 0
        self._wanted: tuple[Member, ...] | None = None
        self._handlers: dict[type[Any], Callable[[str, Any], None]] = {
            Proposal: self._on_proposal,
            Vote: self._on_vote,
            Timeout: self._on_timeout,
            Advance: self._on_advance,
            Certified: self._on_certified,
            Ask: self._on_ask,
            Status: self._on_status,
            Blocks: self._on_blocks,
            Closing: self._on_closing,
            Approval: self._on_approval,
            Checkpoint: self._on_checkpoint,
            StateHead: self._on_state_head,
            AskState: self._on_ask_state,
            StateChunk: self._on_state_chunk,
        }
        self._replay()

    def _replay(self) -> None:
        self._replaying = True
        base: rec.Base | None = None
        pieces: list[bytes] = []
        for record in [*self._records, None]:
            if base is not None and not isinstance(record, rec.Piece):
                self._replay_base(base, pieces)
                base = None
            match record:
                case rec.Born():
                    self.epoch = record.epoch
                case rec.Base():
                    base, pieces = record, []
                case rec.Piece():
                    pieces.append(record.data)
                case rec.Closed():
                    self.closings[record.closing.era] = record.closing
                case rec.Kept():
                    self._replay_block(record)
                case rec.Voted():
                    if record.era == self.era.number:
                        self.voted, self.view = record, max(self.view, record.view)
                        self.timed_out = False
                case rec.GaveUp():
                    if record.era == self.era.number and record.view >= self.view:
                        self.view, self.timed_out = record.view, True
                        self._replay_high(record.high)
                case rec.Committed():
                    self._replay_high(record.certificate)
                    self._commit(record.digest, record.certificate)
                case _:
                    pass
        self._records = []
        while (end := self.closings.get(self._trusted.number)) is not None:
            block = decode_block(end.blocks[0][0])
            if block.change is None:
                break
            self._trust(block.change.members, sha256(end.blocks[0][0]))
        self._replaying = False

    def _replay_base(self, base: rec.Base, pieces: list[bytes]) -> None:
        self._install(base.head, decode_state_header(base.head.header), pieces)

    def _replay_block(self, record: rec.Kept) -> None:
        held = Held.of(record.raw, decode_block(record.raw), record.signature)
        if held.block.era == self.era.number and self.chain.joins(held.block):
            self.chain.add(held)
            self._replay_high(held.block.justify)

    def _replay_high(self, certificate: Certificate) -> None:
        if certificate.era == self.era.number and certificate.rank > self.high.rank:
            self.high = certificate

    # What drivers call.

    def start(self, now_ms: int) -> list[Effect]:
        """Begin: restore and apply what is known to be committed."""
        self._now = now_ms
        self.epoch = max(self.epoch, self.ledger.epoch_of(self.name)) + 1
        self._save(rec.born(self.cluster, self.name, self.epoch))
        self.pacemaker.entered_ms = now_ms
        if self.timed_out:
            self.pacemaker.resend_ms = now_ms
        self._retry_at = now_ms + self.settings.retry_ms
        self._status_at = now_ms + self.rng.randrange(1 + self.settings.status_ms // 4)
        self._lead()
        return self._take()

    def receive(self, now_ms: int, sender: str, message: bytes) -> list[Effect]:
        """A member's message; what is unsound is counted in ``refused`` and dropped."""
        self._now = now_ms
        try:
            said = decode(message)
            self._hear(sender, said)
        except WireError:
            self._refuse(sender, "no message of this protocol")
        self._lead()
        return self._take()

    def _hear(self, sender: str, said: Any) -> None:
        known = sender in self.era.places or sender in self._trusted.places
        if not known and not isinstance(said, _OF_ANYBODY) and sender not in self.contacts:
            self._refuse(sender, "it is not a member")
        elif isinstance(said, _OF_ANY_ERA) or said.era == self.era.number:
            self._handlers[type(said)](sender, said)
        else:
            self._ask(sender)  # one of the two is behind

    def propose(self, now_ms: int, ticket: int, command: bytes) -> list[Effect]:
        """Ask for a command to be committed: `Commit` or `Rejected` with the ticket follows."""
        self._now = now_ms
        if self.place is None:
            self._out.append(Rejected(ticket, Reason.INVALID, self.leader))
        elif len(command) > self.command_bytes_max:
            self._out.append(Rejected(ticket, Reason.TOO_LARGE, self.leader))
        elif self._request(command, marker=False):
            self._tickets[self._number] = ticket
            self._lead()
        else:
            self._out.append(Rejected(ticket, Reason.BUSY, self.leader))
        return self._take()

    @property
    def command_bytes_max(self) -> int:
        """The longest command whose block fits into a message, certificates included."""
        longest = max(self.verifier.signature_bytes(one.key) for one in self.era.members)
        certificates = 3 * len(self.era.members) * (longest + 32)
        return min(COMMAND_BYTES_MAX, MESSAGE_BYTES_MAX - certificates - _BLOCK_EXTRA)

    def read(self, now_ms: int, ticket: int) -> list[Effect]:
        """Ask when a linearizable read may be served: after a marker of this member's own has gone
        through the log. Reads that wait share one."""
        self._now = now_ms
        if self.place is None:
            self._out.append(Rejected(ticket, Reason.INVALID, self.leader))
        else:
            self._mark([ticket])
            self._lead()
        return self._take()

    def change(self, now_ms: int, members: Sequence[Member]) -> list[Effect]:
        """This member wants these members; done once a quorum wants the same.

        Raises: ValueError if they make no sense; nothing is said then.
        """
        wanted = in_order(tuple(members))
        if not wanted or not sound_members(wanted):
            raise ValueError("each member needs a name and a key of its own")
        for member in wanted:
            self.verifier.signature_bytes(member.key)
        if self.place is None:
            raise ValueError(f"{self.name!r} is no member, so it has no say in this")
        self._now = now_ms
        self._wanted = wanted
        self._approve()
        self._lead()
        return self._take()

    def _approve(self) -> None:
        """Say, and say again, which members are wanted."""
        wanted, place = self._wanted, self.place
        if wanted == self.era.members or place is None:
            self._wanted = None
        elif wanted is not None:
            statement = to_approve(self.cluster, self.era.number, wanted)
            approval = Approval(self.era.number, wanted, self.signer.sign(statement))
            self._approvals[place] = approval
            self._send_all(approval)

    def compact(self, index: int, snapshot: bytes) -> list[Effect]:
        """The machine's state up to and with ``index``. The log before it goes when a quorum of
        members has said the same: call it on all members at the same indexes.

        Raises: ValueError if the index was never handed out.
        """
        if index > self.ledger.index or index < 1:
            raise ValueError(f"index {index} was never committed here")
        if (self.base is None or index > self.base.index) and index not in self._made:
            self._checkpoint(index, snapshot)
        return self._take()

    # Time.

    @property
    def deadline_ms(self) -> int | None:
        """When `tick` wants to be called."""
        times = [self._retry_at, self._status_at, self._view_ends_at, self.pacemaker.resend_ms]
        return min(time for time in times if time is not None)

    @property
    def _view_ends_at(self) -> int | None:
        """When the view is given up: the leader owes a first block that is certified, and each
        request its turn."""
        if self.place is None or self.timed_out:
            return None
        entered = self.pacemaker.entered_ms
        since = [entered] if self.view > 0 and self.high.view < self.view else []
        oldest = self.pool.oldest_ms()
        if oldest is not None:
            since.append(max(entered, oldest))
        if self._wanted is not None and self._approved() is not None:
            since.append(entered)
        return min(since) + self.pacemaker.view_timeout_ms if since else None

    def tick(self, now_ms: int) -> list[Effect]:
        """Do what its time has come for."""
        self._now = now_ms
        ends = self._view_ends_at
        if ends is not None and now_ms >= ends:
            self._give_up()
        resend = self.pacemaker.resend_ms
        if self.timed_out and resend is not None and now_ms >= resend:
            self.pacemaker.resend_ms = now_ms + self.pacemaker.view_timeout_ms
            timeout = self._timeout()
            if self.place is not None:
                self.pacemaker.add(self.place, timeout)
            self._send_all(timeout)
        if now_ms >= self._retry_at:
            self._retry_at = now_ms + self.settings.retry_ms
            self._retry()
        if now_ms >= self._status_at:
            spread = self.settings.status_ms
            self._status_at = now_ms + spread // 2 + self.rng.randrange(1 + spread)
            self._tell_somebody()
        self._lead()
        return self._take()

    def _retry(self) -> None:
        self._repeat_proposals()
        late = self._now - self.settings.retry_ms
        again = [waiting for waiting in self.pool if waiting.since_ms <= late][:_AGAIN_MAX]
        for waiting in again:
            message = Ask(self.era.number, waiting.request)
            if waiting.request.origin == self.name:
                self._send_all(message)
            elif waiting.passed_on != self.view:
                waiting.passed_on = self.view
                self._send(self.era.leader(self.view), message)
        if self._wanted is not None:
            self._approve()
        coming = self._incoming
        if coming is not None and self._now - coming.moved_ms >= self.settings.retry_ms:
            self._go_on_with_state()

    def _tell_somebody(self) -> None:
        others = sorted(set(self.members) - {self.name})
        if others:
            self._send(self.rng.choice(others), self._status())
        for made in self._made.values() if self.place is not None else ():
            if made.header.era == self.era.number:
                index, digest = made.header.index, made.digest
                self._send_all(Checkpoint(self.era.number, index, digest, made.signature))

    # Requests of others.

    def _on_ask(self, sender: str, message: Ask) -> None:
        request = message.request
        if self.pool.get(request.key) is not None:
            return
        if self.ledger.judge(request) is not Verdict.DO or not self.pool.has_room(request):
            return
        if len(request.command) > self.command_bytes_max or not self.era.asked(request):
            self._refuse(sender, "a request that its origin has not signed, or too long")
            return
        self.pool.add(request, self._now)
