"""A cluster is upgraded member by member: this release and a later one are in it together.

The later release is this one with a message changed as a later one may: it has grown by a field.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from novacron_agreement import COMMAND_BYTES_MAX, Commit, Effect, Save, Send
from novacron_consensus_raft import RaftCore, RaftSettings
from novacron_consensus_raft import _messages as wire
from novacron_consensus_raft._simulation import scenario
from novacron_consensus_raft._simulation_world import RaftWorld
from novacron_testkit.mutants import Mutant

PACKAGE = "novacron_consensus_raft"
CLUSTER = "test"
SETTINGS = RaftSettings(cluster=CLUSTER, heartbeat_ms=100, election_ms=1000)
MARK = b"what only the later release knows"

LATER = Mutant(
    "a later release",
    f"{PACKAGE}._messages",
    before="    entries: tuple[Entry, ...] = ()\n\n\nclass Appended(",
    after="    entries: tuple[Entry, ...] = ()\n"
    f"    later: bytes = {MARK!r}\n\n\n"
    "WIRE_VERSION = 2\n\n\n"
    "class Appended(",
    core=f"{PACKAGE}._core",
)


class Cluster:
    """Three members whose messages arrive at once, and in order."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.records: dict[str, list[bytes]] = {name: [] for name in "abc"}
        self.cores: dict[str, Any] = {}
        self.applied: dict[str, list[bytes]] = {}
        self.under_way: deque[tuple[str, Send]] = deque()
        self.sent: dict[str, list[bytes]] = {name: [] for name in "abc"}

    def start(self, name: str, core: Any = RaftCore) -> None:
        """A member's process begins, of one release or the other, with what is on its disk."""
        self.cores[name] = core(
            name, dict.fromkeys("abc", ""), self.records[name], SETTINGS, random.Random(name)
        )
        self.applied[name] = []
        self.do(name, self.cores[name].start(self.now_ms))

    def stop(self, name: str) -> None:
        del self.cores[name]

    def do(self, name: str, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Save(records, replaces):
                    self.records[name] = [*([] if replaces else self.records[name]), *records]
                case Send(_, message):
                    self.sent[name].append(message)
                    self.under_way.append((name, effect))
                case Commit(_, command):
                    self.applied[name].append(command)

    def run(self, ms: int) -> None:
        """Time passes."""
        for _ in range(0, ms, 50):
            self.now_ms += 50
            for name, core in self.cores.items():
                self.do(name, core.tick(self.now_ms))
            while self.under_way:
                sender, send = self.under_way.popleft()
                if send.to in self.cores:
                    heard = self.cores[send.to].receive(self.now_ms, sender, send.message)
                    self.do(send.to, heard)

    @property
    def leader(self) -> str:
        (leader,) = (name for name, core in self.cores.items() if core.role == "leader")
        return leader

    @property
    def level(self) -> int:
        level: int = self.cores[self.leader].status(self.now_ms).level
        return level

    def put(self, command: bytes) -> None:
        """A command is committed, and known to all that run."""
        self.do(self.leader, self.cores[self.leader].propose(self.now_ms, 1, command))
        self.run(300)
        for name in self.cores:
            assert self.applied[name][-1] == command

    def replace(self, name: str, core: Any) -> None:
        """A member is stopped, and goes on with another release; meanwhile the others work."""
        self.stop(name)
        self.run(3000)
        self.put(b"without " + name.encode())
        self.start(name, core)
        self.run(1000)
        self.put(b"with " + name.encode())

    def nobody_complained(self) -> bool:
        return not any(core.refused for core in self.cores.values())


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    for name in "abc":
        made.start(name)
    made.run(3000)
    made.put(b"before")
    return made


def later_release() -> Any:
    return LATER.load().RaftCore


def test_members_of_both_releases_work_together_and_know_what_all_can_read(
    cluster: Cluster,
) -> None:
    assert cluster.level == 1
    for name in "abc":
        assert cluster.level == 1
        cluster.replace(name, later_release())
    cluster.run(500)
    assert cluster.level == 2
    # One that goes back to the release before is understood, and is counted with.
    cluster.replace("b", RaftCore)
    assert cluster.level == 1
    assert cluster.nobody_complained()
    assert any(MARK in message for sent in cluster.sent.values() for message in sent)


def test_a_leader_of_either_release_is_followed_by_the_other(cluster: Cluster) -> None:
    led = set()
    for name in ("a", "b", "c", "a", "b", "c"):
        core = cluster.cores[name]
        other = RaftCore if not isinstance(core, RaftCore) else later_release()
        cluster.replace(name, other)
        led.add(isinstance(cluster.cores[cluster.leader], RaftCore))
    assert led == {True, False}
    assert cluster.nobody_complained()


def test_a_kind_of_message_that_is_not_known_is_refused_and_changes_nothing(
    cluster: Cluster,
) -> None:
    core, before = cluster.cores["a"], cluster.cores["a"].term
    unknown = msgspec.msgpack.encode([99, CLUSTER, 9, "from the future"])
    assert not any(isinstance(e, Send | Save) for e in core.receive(cluster.now_ms, "b", unknown))
    assert core.term == before
    assert core.refused == {"no sound message": 1}


def test_what_a_later_release_appends_is_bounded_like_all_else() -> None:
    grown = msgspec.msgpack.encode([7, CLUSTER, 3, bytes(8 * COMMAND_BYTES_MAX)])
    with pytest.raises(wire.MessageError, match="a message of"):
        wire.decode(grown, CLUSTER)
    assert wire.decode(msgspec.msgpack.encode([7, CLUSTER, 3, b"new"]), CLUSTER) == wire.TimeoutNow(
        CLUSTER, 3
    )


class EitherRelease:
    """In the place of the core's module: each life of a member is of one release, by chance."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(f"release {seed}")
        self.made: set[Any] = set()

    def RaftCore(
        self,
        name: str,
        members: Mapping[str, str],
        records: list[bytes],
        settings: RaftSettings,
        rng: random.Random,
    ) -> Any:
        core = self.chance.choice((RaftCore, later_release()))
        self.made.add(core)
        return core(name, members, records, settings, rng)


@pytest.mark.slow
@pytest.mark.no_cover
def test_the_laws_hold_under_faults_while_members_go_to_and_fro_between_releases() -> None:
    for seed in range(12):
        releases = EitherRelease(seed)
        simulator = scenario(
            seed, None, cast(ModuleType, SimpleNamespace(RaftCore=releases.RaftCore))
        )
        assert len(releases.made) == 2
        assert isinstance(simulator.world, RaftWorld)
        for process in simulator.world.processes.values():
            assert "no sound message" not in process.core.refused
