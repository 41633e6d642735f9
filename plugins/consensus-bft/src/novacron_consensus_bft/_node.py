"""A node's part in a cluster whose members may lie: its key, its log on the disk, its channels.

A member trusts no other one's word, so it asks only itself: what its own log says is what a
quorum has agreed on. A node that is no member cannot use the cluster.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from novacron import Channels, ConfigError, NodeFacts, NovacronError, SecureStream
from novacron_agreement import Effect, Reason
from novacron_agreement.driver import LogDriver, NotServing
from novacron_agreement.life import Life
from novacron_agreement.logfile import LogDamaged, LogFile
from novacron_agreement.peers import Peers

from novacron_consensus_bft._core import BftCore, Member, Proof
from novacron_consensus_bft._judge import JudgedRegister, said_by
from novacron_consensus_bft._keys import as_text, load_key, mark_used, used
from novacron_consensus_bft._signing import Schemes
from novacron_consensus_bft._toml import FOLDER, BftSection, as_members
from novacron_consensus_bft._wire import Request, in_order

# How long to wait before a request is made again that was refused for now.
AGAIN_S: Final = 0.05
_ANEW: Final = (
    "this member must not go on: it may have voted for what it has forgotten. Restore its whole "
    "folder if it was stopped before it was copied, or have another member take its place, with a "
    "new name and key ([consensus.bft] change_to)"
)

T = TypeVar("T")


class BftError(NovacronError):
    """The cluster cannot serve a request now, or this node's part in it is broken.

    ``truth`` says whether a change that was asked for may still happen; then read before you act.
    """

    code = "bft"


class _Core(BftCore):
    """A core that begins by saying which members it wants, and hands on who said what."""

    wanted: Sequence[Member] = ()

    def _handed(self, request: Request) -> bytes:
        return said_by(request.origin, request.command)

    def start(self, now_ms: int) -> list[Effect]:
        effects = super().start(now_ms)
        if self.wanted and self.place is not None and self.era.members != self.wanted:
            effects += self.change(now_ms, self.wanted)
        return effects


class _Log(LogFile):
    """A log that marks its member's key as used as soon as it holds anything.

    Not sooner: a member that could not write its first record has said nothing to anybody, and may
    begin again.
    """

    def __init__(self, folder: Path, key: Path) -> None:
        super().__init__(folder)
        self._key = key
        self._marked = used(key)
        if self.records:
            self._mark()

    def sync(self) -> None:
        super().sync()
        self._mark()

    def _mark(self) -> None:
        if not self._marked:
            mark_used(self._key)
            self._marked = True


class BftNode:
    """See the module.

    Args:
        section: The node's settings.
        node: Its name, folder and channels; without channels it can only be a cluster of one.

    Raises: ConfigError if it is no member, or its key is not the one that the members know.
    """

    def __init__(self, section: BftSection, node: NodeFacts) -> None:
        self.section = section
        self.name = node.name
        self.folder = node.state_dir / FOLDER
        self._key_path = section.key_path(node.state_dir)
        self._channels: Channels | None = node.channels
        self._protocol = f"bft.{section.cluster}/1"
        mine = section.members.get(self.name) or section.change_to.get(self.name)
        if mine is None:
            raise ConfigError(
                f"{self.name} is no member of the cluster {section.cluster}",
                hint="only members use its register: name all of them, this node too, with their "
                "public keys in [consensus.bft.members]; `novacron consensus keys new` makes "
                "this node's",
            )
        self._signer = load_key(self._key_path)
        if (found := as_text(self._signer.public_key)) != mine:
            raise ConfigError(
                f"the key at {self._key_path} is {found:.40}, and [consensus.bft] has {mine:.40} "
                f"for {self.name}",
                hint="`novacron consensus keys show` prints what belongs there, on all members",
            )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._peers = Peers(self._open, lambda sender, data: self.driver.receive(sender, data))
        self.driver: LogDriver[JudgedRegister] = LogDriver(
            self.name,
            self._begin,
            self._peers,
            compact_every=section.checkpoint_every,
        )
        if node.channels is not None:
            node.channels.serve(self._protocol, self._take)
        self.driver.start()

    async def propose(self, command: bytes) -> bytes:
        """The register's answer to a command. Raises: BftError."""
        return await self._patiently(lambda: self.driver.propose(command))

    async def read(self, query: Callable[[JudgedRegister], T]) -> T:
        """What is seen of the register, with everything in it that was agreed on before this
        call. Raises: BftError."""
        return await self._patiently(lambda: self.driver.read(query))

    async def status(self) -> dict[str, Any]:
        """What this member knows of its cluster, for people and programs."""
        driver = self.driver
        trouble = str(driver.failure) if driver.failure is not None else ""
        found = await driver.inspect(lambda life: None if life is None else seen_of(life.core))
        base = {"node": self.name, "cluster": self.section.cluster, "trouble": trouble}
        if found is None:
            return base | {"role": "failed", "members": []}
        ways = self._peers.states()
        for member in found["members"]:
            member["trouble"] = ways.get(member["name"], "")
        return base | found | {"applied": driver.applied}

    async def close(self) -> None:
        """Stop taking part; the log stays. Twice is once."""
        await asyncio.to_thread(self.driver.stop)
        self._peers.close()

    # Inside.

    def _begin(self) -> Life[JudgedRegister]:
        """What the driver runs, from what is on the disk. In its thread."""
        try:
            log = _Log(self.folder / "log", self._key_path)
        except LogDamaged as damage:
            raise LogDamaged(str(damage), hint=_ANEW) from None
        try:
            if not log.records and used(self._key_path):
                raise BftError(
                    f"the log in {self.folder / 'log'} is empty, and {self._key_path} was used",
                    hint=_ANEW,
                )
            core = _Core(
                self.name,
                as_members(self.section.members),
                log.records,
                self.section.core(),
                random.Random(secrets.randbits(64)),
                signer=self._signer,
                verifier=Schemes(),
            )
            core.wanted = in_order(tuple(as_members(self.section.change_to)))
            log.records = []
        except BaseException:
            log.close()
            raise
        return Life(core, log, JudgedRegister(self.section.writers))

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        trouble = "no quorum answered"
        try:
            async with asyncio.timeout(self.section.timeout_s):
                while True:
                    self._require_working()
                    try:
                        return await ask()
                    except NotServing as error:
                        trouble = str(error)
                        if error.reason == Reason.TOO_LARGE:
                            raise BftError(f"the request was refused: {trouble}") from error
                        if error.reason == Reason.INVALID:
                            trouble = f"{self.name} is none of the present members (yet)"
                    await asyncio.sleep(AGAIN_S)
        except TimeoutError:
            self._require_working()
            raise BftError(
                f"the cluster {self.section.cluster} did not serve a request within "
                f"{self.section.timeout_s} s: {trouble}",
                hint="more than two thirds of its members must run and reach each other",
                truth="it may still be done: read before you act",
            ) from None

    def _require_working(self) -> None:
        """Raises: BftError if this node's own part is broken beyond what time will mend."""
        failure = self.driver.failure
        if failure is not None and not isinstance(failure, OSError):
            raise BftError(
                f"{self.name} takes no part in the cluster {self.section.cluster}: {failure}",
                hint=getattr(failure, "hint", "") or "its log says more; please report it",
            ) from failure

    def _open(self, peer: str, address: str) -> SecureStream:
        if self._channels is None:
            raise ConfigError("this node has no channels to others")
        return self._channels.open(peer, self._protocol, address)

    def _take(self, stream: SecureStream) -> None:
        """What a peer sends, in a thread of its own."""
        self._peers.receive_from(stream.peer.node, stream)


def seen_of(core: BftCore) -> dict[str, Any]:
    """What a core knows of its cluster. In the driver's thread."""
    era = core.era
    role = "leader" if core.leader == core.name else "member"
    proofs = [(msgspec.msgpack.decode(proof, type=Proof), proof) for proof in core.proofs]
    return {
        "role": role if core.place is not None else "none",
        "leader": core.leader or "",
        "era": era.number,
        "view": core.view,
        "quorum": era.quorum,
        "may_lie": era.faulty,
        "committed": core.ledger.index,
        "members": [
            {
                "name": member.name,
                "key": as_text(member.key),
                "leads": member.name == core.leader,
                "lied": any(proof.member == member.name for proof, _ in proofs),
            }
            for member in era.members
        ],
        # Whoever knows a member's key can verify these: see `verify_proof`.
        "proofs": [
            {"member": proof.member, "era": proof.era, "proof": b64encode(encoded).decode()}
            for proof, encoded in proofs
        ],
        "refused": dict(core.refused),
    }
