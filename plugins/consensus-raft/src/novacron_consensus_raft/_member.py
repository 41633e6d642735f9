"""A node's part in a cluster: its log on the disk, its channels, and what changes the cluster.

A node begins a cluster (`begin`), joins one (`join`), or is in none; then it asks the members, as
nodes do that are only to use the cluster. It goes on with whatever log its folder holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec
from novacron import Channels, ConfigError, Conflict, NodeFacts, NovacronError, SecureStream
from novacron_agreement import Effect, Reason, Rejected
from novacron_agreement.client import Client, Unanswered
from novacron_agreement.driver import LogDriver
from novacron_agreement.forwarding import Kind, Outcome, Settle, serve
from novacron_agreement.life import Life
from novacron_agreement.logfile import LogFile
from novacron_agreement.machine import SnapshotError, StateMachine
from novacron_agreement.peers import FrameError, Peers

from novacron_consensus_raft._backup import Backup
from novacron_consensus_raft._configuration import Configuration
from novacron_consensus_raft._core import RaftCore
from novacron_consensus_raft._records import (
    Snapshot,
    header_record,
    replacement,
    term_record,
)
from novacron_consensus_raft._settings import RaftSettings
from novacron_consensus_raft._toml import RaftSection

# How long a change of members may take: a new one has to get everything first.
CHANGE_S: Final = 120.0


class RaftError(NovacronError):
    """The cluster cannot serve a request now, or this node's part in it is broken.

    ``truth`` says whether a change that was asked for may still happen; then read before you act.
    """

    code = "raft"


class Step(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A change of the cluster: add a learner, let it vote, remove a member, hand the lead over."""

    kind: Literal["add", "promote", "remove", "transfer"]
    member: str
    address: str = ""


encode: Final = msgspec.msgpack.Encoder().encode
_steps: Final = msgspec.msgpack.Decoder(Step)


class RaftMember:
    """See the module.

    Args:
        section: The node's settings.
        node: Its name, folder and channels; without channels it can only be a cluster of one.
        make_machine: What is replicated, empty.
        answer: Answers a query of any node from it; must not raise.
    """

    def __init__(
        self,
        section: RaftSection,
        node: NodeFacts,
        make_machine: Callable[[], StateMachine],
        answer: Callable[[Any, bytes], bytes],
    ) -> None:
        self.section = section
        self.name = node.name
        self.folder = node.state_dir / "consensus-raft"
        self.log_folder = self.folder / "log"
        self.driver: LogDriver[StateMachine] | None = None
        self._make_machine = make_machine
        self._answer = answer
        self._core_settings: RaftSettings = section.core()
        self._channels: Channels | None = node.channels
        self._messages = f"raft.{section.cluster}/1"
        self._requests = f"raft.{section.cluster}.requests/1"
        self._peers: Peers | None = None
        self._known: dict[str, str] = dict.fromkeys(section.members, "")
        self._client = Client(self._open_requests, self._names, self._local)
        if node.channels is not None:
            node.channels.serve(self._messages, self._take_messages)
            node.channels.serve(self._requests, self._take_requests)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._has_log():
            self._run()

    # Becoming a member.

    async def begin(self, members: Sequence[str]) -> None:
        """Begin a cluster. Each of its first members does this, with the same names.

        Raises: Conflict if this node has a log already, ConfigError if it is not among them.
        """
        if self.name not in members:
            raise ConfigError(
                f"{self.name} is not among the first members: {', '.join(members) or 'none'}",
                hint="name them in [consensus.raft] members or with --member, this node too",
            )
        self._require_no_log()
        self._run(dict.fromkeys(members, ""), new=True)

    async def join(self, via: str, address: str) -> None:
        """Join a cluster as a learner, and vote once everything is here.

        Args:
            via: A member to ask.
            address: Where the members reach this node; "" if their ``[peers]`` say so.
        """
        if self.driver is None:
            self._require_no_log()
            self._known[via] = ""
            self._client.leader = via
            # First here, then there: a learner that cannot be reached would look dead.
            self._run(new=True)
        await self.step(Step("add", self.name, address))
        await self.step(Step("promote", self.name, address))

    async def leave(self) -> Path:
        """Leave the cluster. Returns: where the log was put; it is of no use any more."""
        driver = self._require_member()
        await self.step(Step("remove", self.name))
        self.driver = None
        self._known |= {name: at for name, at in driver.members.items() if name != self.name}
        self._client.leader = None
        await asyncio.to_thread(driver.stop)
        if self._peers is not None:
            self._peers.close()
            self._peers = None
        aside = self._free_name("left")
        self.log_folder.rename(aside)
        return aside

    async def restore(self, backup: Backup) -> None:
        """Begin a new cluster of this node alone, with what a backup holds.

        Raises: Conflict if there is a log; ConfigError if the backup holds something else. Nothing
            was changed then.
        """
        self._require_no_log()
        try:
            self._make_machine().restore(backup.state)
        except SnapshotError as error:
            raise ConfigError(f"the backup holds no such state: {error}") from error
        alone = Configuration.of({self.name: ""})
        header = header_record(self.section.cluster, self.name)
        snapshot = Snapshot(1, 1, alone, backup.state)

        def write() -> None:
            log = LogFile(self.log_folder)
            try:
                log.replace(replacement(header, term_record(1, None), snapshot, ()))
            finally:
                log.close()

        await asyncio.to_thread(write)
        self._run()

    async def step(self, step: Step) -> None:
        """Change the cluster; returns when it is done.

        Raises: RaftError; by its ``truth`` the change may still happen.
        """
        await self.ask("manage", encode(step), CHANGE_S)

    async def status(self) -> dict[str, Any]:
        """What this node knows of its cluster, for people and programs."""
        driver = self.driver
        base = {"node": self.name, "cluster": self.section.cluster}
        if driver is None:
            return base | {"role": "none", "leader": "", "members": [], "trouble": ""}
        found = await driver.inspect(
            lambda life: life.core.status(_now_ms()) if life is not None else None
        )
        trouble = str(driver.failure) if driver.failure is not None else ""
        if found is None:
            return base | {"role": "failed", "leader": "", "members": [], "trouble": trouble}
        ways = self._peers.states() if self._peers is not None else {}
        voters = {*found.configuration.voters, *found.configuration.outgoing}
        members = [
            {
                "name": name,
                "address": found.configuration.addresses.get(name, ""),
                "votes": name in voters,
                "leads": name == found.leader,
                "behind": found.last_index - found.peers[name].match
                if name in found.peers
                else None,
                "silent_ms": found.peers[name].silent_ms if name in found.peers else None,
                "reads": found.reads
                if name == self.name
                else found.peers[name].reads
                if name in found.peers
                else None,
                "trouble": ways.get(name, ""),
            }
            for name in sorted(found.configuration.members)
        ]
        return base | {
            "role": found.role,
            "leader": found.leader or "",
            "term": found.term,
            "committed": found.commit,
            "applied": driver.applied,
            "snapshot": found.snapshot_index,
            "reads": found.reads,
            "level": found.level,
            "members": members,
            "refused": dict(found.refused),
            "trouble": trouble,
        }

    async def ask(self, kind: Kind, command: bytes, timeout_s: float = 0.0) -> bytes:
        """The cluster's answer to a request. Raises: RaftError."""
        self._require_working()
        if self.driver is None and not self._known:
            raise RaftError(
                f"{self.name} is in no cluster and knows no member of one",
                hint="`novacron cluster init` begins one, `novacron cluster join` joins one; "
                "or name its members in [consensus.raft] members",
            )
        try:
            return await self._client.ask(kind, command, timeout_s or self.section.timeout_s)
        except Unanswered as error:
            self._require_working()
            raise RaftError(
                f"the cluster {self.section.cluster} did not serve a request: {error}",
                hint="a majority of its members must run and reach each other: "
                "`novacron cluster status` on each",
                truth="it may still be done: read before you act" if error.in_doubt else "",
            ) from error

    async def close(self) -> None:
        """Stop taking part; the log stays. Twice is once."""
        driver, self.driver = self.driver, None
        if driver is not None:
            await asyncio.to_thread(driver.stop)
        if self._peers is not None:
            self._peers.close()
        self._client.close()

    # Inside.

    def _has_log(self) -> bool:
        return any(self.log_folder.glob("*.log"))

    def _require_no_log(self) -> None:
        if self.driver is not None or self._has_log():
            raise Conflict(
                f"{self.name} is a member of the cluster {self.section.cluster} already",
                hint="`novacron cluster status` shows it; `novacron cluster leave` leaves it",
            )

    def _require_working(self) -> None:
        """Raises: RaftError if this node's own part is broken beyond what time will mend."""
        failure = self.driver.failure if self.driver is not None else None
        if failure is not None and not isinstance(failure, OSError):
            raise RaftError(
                f"{self.name} takes no part in the cluster {self.section.cluster}: {failure}",
                hint=getattr(failure, "hint", "") or "its log says more; please report it",
            ) from failure

    def _require_member(self) -> LogDriver[StateMachine]:
        if self.driver is None:
            raise Conflict(f"{self.name} is no member", hint="`novacron cluster join` makes it one")
        return self.driver

    def _free_name(self, word: str) -> Path:
        numbers = (path.name.rpartition("-")[2] for path in self.folder.glob(f"{word}-*"))
        last = max((int(number) for number in numbers if number.isdigit()), default=0)
        return self.folder / f"{word}-{last + 1}"

    def _run(self, members: Mapping[str, str] = MappingProxyType({}), *, new: bool = False) -> None:
        """Take part, with the log that is there or, if ``new``, with one that begins with these
        members (none: it joins)."""

        def begin() -> Life[StateMachine]:
            log = LogFile(self.log_folder)
            try:
                if not log.records and not new:
                    raise RaftError(
                        f"the log in {self.log_folder} is empty, and a member's never is",
                        hint="move it aside; then `novacron cluster init` or `join`, whichever was "
                        "under way",
                    )
                chance = random.Random(secrets.randbits(64))
                core = RaftCore(self.name, members, log.records, self._core_settings, chance)
                log.records = []
            except BaseException:
                log.close()
                raise
            return Life(core, log, self._make_machine())

        driver: LogDriver[StateMachine]
        self._peers = Peers(self._open_messages, lambda sender, data: driver.receive(sender, data))
        driver = LogDriver(
            self.name,
            begin,
            self._peers,
            answer_query=self._answer,
            compact_bytes=self.section.compact_mib << 20,
        )
        self.driver = driver
        driver.start()

    # Requests to the cluster.

    def _names(self) -> Iterable[str]:
        return (self.driver.members if self.driver is not None else None) or self._known

    def _local(self) -> tuple[str, Any] | None:
        if self.driver is None:
            return None
        return self.name, lambda kind, command, settle: self._submit("", kind, command, settle)

    def _open_messages(self, peer: str, address: str) -> SecureStream:
        if self._channels is None:
            raise ConfigError("this node has no channels to others")
        return self._channels.open(peer, self._messages, address)

    def _open_requests(self, peer: str) -> SecureStream:
        if self._channels is None:
            raise ConfigError("this node has no channels to others")
        address = self.driver.members.get(peer, "") if self.driver is not None else ""
        return self._channels.open(peer, self._requests, address)

    # What comes from others, each stream in a thread of its own.

    def _take_messages(self, stream: SecureStream) -> None:
        peers = self._peers
        if peers is not None:
            peers.receive_from(stream.peer.node, stream)

    def _take_requests(self, stream: SecureStream) -> None:
        peer = stream.peer.node

        def submit(kind: Kind, command: bytes, settle: Settle) -> None:
            self._submit(peer, kind, command, settle)

        with contextlib.suppress(FrameError):  # it is closed, and its peer to blame
            serve(stream, submit)

    def _submit(self, peer: str, kind: Kind, command: bytes, settle: Settle) -> None:
        """A request of a peer, or of this node itself ("")."""
        driver = self.driver
        if driver is None:
            settle(Outcome(Reason.NOT_LEADER))
        elif kind == "manage":
            self._manage(driver, peer, command, settle)
        else:
            driver.submit(kind, command, settle)

    def _manage(
        self, driver: LogDriver[StateMachine], peer: str, command: bytes, settle: Settle
    ) -> None:
        try:
            step = _steps.decode(command)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            settle(Outcome(Reason.INVALID, f"no step: {error}".encode()))
            return
        # Every node of the trust domain may use the cluster; only members, and one that wants to
        # become one, may change it.
        if peer and peer != step.member and peer not in driver.members:
            settle(Outcome(Reason.INVALID, f"{peer} is no member and may not do that".encode()))
            return

        def act(core: RaftCore, now_ms: int, ticket: int) -> Sequence[Effect]:
            return take_step(core, now_ms, ticket, step)

        driver.act(act, settle)


def take_step(core: RaftCore, now_ms: int, ticket: int, step: Step) -> Sequence[Effect]:
    """One change of a cluster. What is so already is done. Raises: ConfigurationError."""
    known = core.configuration
    match step.kind:
        case "transfer":
            return core.transfer(now_ms, ticket, step.member)
        case "remove":
            gone = {step.member} - known.members if not known.joint else set()
            return core.change_members(now_ms, ticket, remove={step.member} - gone)
        case "add":
            new = {} if step.member in known.members else {step.member: step.address}
            return core.change_members(now_ms, ticket, learners=new)
        case "promote":
            peer = core.status(now_ms).peers.get(step.member)
            if step.member in known.learners and (peer is None or not peer.caught_up):
                reason = Reason.BUSY if core.leader == core.name else Reason.NOT_LEADER
                return [Rejected(ticket, reason, core.leader)]
            votes = step.member in known.voters
            return core.change_members(
                now_ms, ticket, voters={} if votes else {step.member: step.address}
            )


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
