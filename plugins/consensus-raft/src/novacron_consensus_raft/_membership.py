"""Who takes part and who leads: changes that an operator asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from attrs import frozen
from novacron_agreement import Done, Effect, Reason

from novacron_consensus_raft._configuration import Configuration
from novacron_consensus_raft._messages import EntryKind, TimeoutNow
from novacron_consensus_raft._progress import Progress
from novacron_consensus_raft._reads import Reads
from novacron_consensus_raft._state import Role


@frozen
class _Transfer:
    """The leader's office is being handed over."""

    ticket: int
    to: str
    until_ms: int
    told: bool = False


class Membership(Reads):
    """A member whose cluster changes."""

    # The ticket of the change of members that is under way, and that of the hand-over.
    _change: int | None = None
    _transfer: _Transfer | None = None

    def change_members(
        self,
        now_ms: int,
        ticket: int,
        *,
        voters: Mapping[str, str] | None = None,
        learners: Mapping[str, str] | None = None,
        remove: Iterable[str] = (),
    ) -> list[Effect]:
        """Change who takes part; `Done` when the new configuration is committed, or `Rejected`.

        Let a new member learn first and vote when `Core.status` says that it has caught up: a
        voter that has nothing yet holds up every commit that needs it.

        Args:
            voters: Who is to vote from now on, by address.
            learners: Who is to learn from now on; voters may be among them.
            remove: Who is to leave.

        Raises: ConfigurationError if the change makes no sense; nothing was changed.
        """
        self._enter(now_ms)
        if self.role is not Role.LEADER:
            self._reject(ticket, Reason.NOT_LEADER)
            return self._effects
        busy = self.commit < max(self.log.configuration_index, self._first_of_term)
        if busy or self.configuration.joint or self._handing_over():
            self._reject(ticket, Reason.BUSY)
            return self._effects
        changed = self.configuration.changed(voters or {}, learners or {}, remove)
        if changed == msgspec.structs.replace(self.configuration, version=changed.version):
            self._effects.append(Done(ticket, self.commit))
            return self._effects
        self._change = ticket
        self._configure(changed)
        return self._effects

    def _configure(self, configuration: Configuration) -> None:
        """Put a configuration into the log; it counts at once."""
        entry = self._put(EntryKind.MEMBERS, configuration.encode())
        for name in sorted(configuration.members - self._others.keys() - {self.name}):
            self._others[name] = Progress(next=entry.index, heard_ms=self._now_ms)
        self._replicate((entry,))

    def _configuration_committed(self, index: int) -> None:
        known = self.log.configuration_at(index)
        voters, learners = ", ".join(known.voters), ", ".join(known.learners)
        kind = "joint" if known.joint else "members"
        self._note(kind, f"voters {voters}" + (f"; learners {learners}" if learners else ""))
        if self.role is Role.LEADER and not known.joint and self._change is not None:
            self._effects.append(Done(self._change, index))
            self._change = None

    def _after_commit(self) -> None:
        """A leader has committed something."""
        self._serve_reads()
        if self.commit < max(self.log.configuration_index, self._first_of_term):
            return
        if self.configuration.joint:
            # Both majorities have the joint entry, so the outgoing voters can be let go.
            self._configure(self.configuration.settled())
            return
        leaving = self._others.keys() - self.configuration.members
        for name in sorted(leaving):
            # Its last message: so it learns that it has left.
            self._send_heartbeat(name, self._others[name])
            del self._others[name]
        if self.name not in self.configuration.voters:
            self._leave_office()

    def _leave_office(self) -> None:
        """This leader votes no more: another is to lead, the one that has most, at once."""
        for name, progress in self._others.items():
            self._send_heartbeat(name, progress)
        best = max(self.configuration.voters, key=self._match)
        self._send(best, TimeoutNow(self.settings.cluster, self.term))
        self._become_follower(self.term, None)

    def transfer(self, now_ms: int, ticket: int, to: str) -> list[Effect]:
        """Hand the leader's office over; `Done` when the other leads, or `Rejected`.

        Until then, and for `election_ms` at the most, proposals are `BUSY`.
        """
        self._enter(now_ms)
        if self.role is not Role.LEADER:
            self._reject(ticket, Reason.NOT_LEADER)
        elif self._handing_over():
            self._reject(ticket, Reason.BUSY)
        elif to == self.name:
            self._effects.append(Done(ticket, self.commit))
        elif to not in self.configuration.voters:
            self._reject(ticket, Reason.INVALID)
        else:
            self._transfer = _Transfer(ticket, to, self._now_ms + self.settings.election_ms)
            self._send_entries(to, self._others[to])
            self._caught_up(to, self._others[to])
        return self._effects

    def _lead_reads(self) -> None:
        super()._lead_reads()
        if self._transfer is not None:  # it was handed over, and came back
            ticket, self._transfer = self._transfer.ticket, None
            self._reject(ticket, Reason.UNCERTAIN)

    def _handing_over(self) -> bool:
        return self._transfer is not None

    def _caught_up(self, name: str, progress: Progress) -> None:
        """If this is the member that is to lead, and it has everything: its turn."""
        transfer = self._transfer
        if transfer is None or transfer.to != name or progress.match < self.log.last_index:
            return
        if transfer.told:
            return
        self._transfer = _Transfer(transfer.ticket, name, transfer.until_ms, told=True)
        # From now on a member may be elected whatever was promised to this leader, also if the
        # message is late: no lease any more in this term.
        self._lease_given_up = True
        self._send(name, TimeoutNow(self.settings.cluster, self.term))

    def _give_transfer_up(self) -> None:
        if self._transfer is not None and self._now_ms >= self._transfer.until_ms:
            ticket, self._transfer = self._transfer.ticket, None
            self._reject(ticket, Reason.UNCERTAIN)

    def _heard_from(self, leader: str) -> None:
        super()._heard_from(leader)
        if self._transfer is not None:
            transfer, self._transfer = self._transfer, None
            if leader == transfer.to:
                self._effects.append(Done(transfer.ticket, self.commit))
            else:
                self._reject(transfer.ticket, Reason.UNCERTAIN)

    def _resign(self) -> None:
        if self._change is not None:
            self._reject(self._change, Reason.UNCERTAIN)
            self._change = None
        super()._resign()
