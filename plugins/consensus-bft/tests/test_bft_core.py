from __future__ import annotations

import random
import sys
from base64 import b64encode
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from statistics import median
from typing import Any

import pytest
from novacron_agreement import (
    Commit,
    Effect,
    Note,
    Readable,
    Reason,
    Rejected,
    Restore,
    Save,
    Send,
)
from novacron_consensus_bft import (
    BftCore,
    CoreSettings,
    Ed25519Signer,
    Member,
    MlDsa65Signer,
    RecordsError,
    Schemes,
    Signer,
    verify_proof,
)
from novacron_consensus_bft import Verifier as AnyVerifier
from novacron_consensus_bft import _wire as wire
from novacron_consensus_bft._node import seen_of

FOUR = ("a", "b", "c", "d")
SETTINGS = CoreSettings(view_timeout_ms=1_000, retry_ms=300, status_ms=500, checkpoint_every=4)


def seed_of(name: str) -> bytes:
    return name.encode().ljust(32, b".")


class Cluster:
    """Members by name; what each said is done at once, what it sends arrives after a delay.

    Attributes:
        now: Milliseconds.
        commits: What each member committed: index, command, ticket, and when.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        delay: Callable[[str, str], int] = lambda a, b: 10,
        settings: CoreSettings = SETTINGS,
        sign: Callable[[str], Signer] = lambda name: Ed25519Signer.from_seed(seed_of(name)),
        later: Sequence[str] = (),
    ) -> None:
        self.now = 0
        self.delay = delay
        self.settings = settings
        self.sign = sign
        self.verifier: AnyVerifier = Schemes()
        self.first = [self.member(name) for name in names]
        self.disks: dict[str, list[bytes]] = {name: [] for name in (*names, *later)}
        self.cores: dict[str, BftCore] = {}
        self.commits: dict[str, list[tuple[int, bytes, int | None, int]]] = {}
        self.answers: list[tuple[str, Any]] = []
        self.notes: list[tuple[str, Note]] = []
        self.down: set[str] = set()
        self.dropped: Callable[[str, str, bytes], bool] = lambda a, b, m: False
        self._heap: list[tuple[int, int, str, str, bytes]] = []
        self._count = 0
        for name in (*names, *later):
            self.start(name)

    def member(self, name: str) -> Member:
        return Member(name, self.sign(name).public_key)

    def start(self, name: str) -> None:
        self.commits[name] = []
        self.down.discard(name)
        core = self.cores[name] = BftCore(
            name,
            self.first,
            self.disks[name],
            self.settings,
            random.Random(name),
            signer=self.sign(name),
            verifier=self.verifier,
        )
        self.perform(name, core.start(self.now))

    def perform(self, name: str, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    if not self.dropped(name, to, message):
                        self._count += 1
                        at = self.now + self.delay(name, to)
                        heappush(self._heap, (at, self._count, name, to, message))
                case Save(records, replaces):
                    if replaces:
                        self.disks[name].clear()
                    self.disks[name] += records
                case Commit(index, command, ticket):
                    self.commits[name].append((index, command, ticket, self.now))
                case Restore(index, snapshot):
                    self.commits[name] = [(index, snapshot, None, self.now)]
                case Readable() | Rejected():
                    self.answers.append((name, effect))
                case Note():
                    self.notes.append((name, effect))

    def propose(self, name: str, ticket: int, command: bytes) -> None:
        self.perform(name, self.cores[name].propose(self.now, ticket, command))

    def run(self, ms: int, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass, until something holds; whether it does."""
        end = self.now + ms
        while not until():
            ticks = [
                (core.deadline_ms or end, name)
                for name, core in self.cores.items()
                if name not in self.down
            ]
            first = min(ticks)
            if self._heap and self._heap[0][0] <= first[0]:
                at, _, src, dst, message = heappop(self._heap)
                if at > end:
                    self._heap.append((at, 0, src, dst, message))
                    self._heap.sort()
                    break
                self.now = max(self.now, at)
                if dst not in self.down:
                    self.perform(dst, self.cores[dst].receive(self.now, src, message))
            elif first[0] > end:
                break
            else:
                self.now = max(self.now, first[0])
                self.perform(first[1], self.cores[first[1]].tick(self.now))
        self.now = end if not until() else self.now
        return until()

    def logs(self) -> dict[str, list[bytes]]:
        return {name: [row[1] for row in rows] for name, rows in self.commits.items()}


def test_four_members_commit_what_one_asks_for() -> None:
    cluster = Cluster(FOUR)
    cluster.propose("c", 1, b"x")
    cluster.run(500)
    assert set(map(tuple, cluster.logs().values())) == {(b"x",)}
    assert [row[2] for name in FOUR for row in cluster.commits[name]] == [None, None, 1, None]


def test_a_single_member_commits_at_once() -> None:
    cluster = Cluster("a")
    cluster.propose("a", 1, b"x")
    assert cluster.logs() == {"a": [b"x"]}


def test_members_may_sign_with_ml_dsa_65() -> None:
    cluster = Cluster(FOUR, sign=lambda name: MlDsa65Signer.from_seed(seed_of(name)))
    cluster.propose("b", 1, b"x")
    assert cluster.run(2_000, lambda: all(cluster.commits.values()))


def test_a_crashed_leader_is_replaced_and_nothing_is_lost() -> None:
    cluster = Cluster(FOUR)
    cluster.down.add("a")
    cluster.propose("b", 1, b"x")
    assert cluster.run(5_000, lambda: all(cluster.commits[name] for name in "bcd"))
    cluster.start("a")
    assert cluster.run(5_000, lambda: cluster.logs()["a"] == [b"x"])


def test_two_crashed_leaders_in_a_row_are_replaced_among_seven() -> None:
    cluster = Cluster("abcdefg")
    cluster.down |= {"a", "b"}
    cluster.propose("d", 1, b"x")
    assert cluster.run(20_000, lambda: all(cluster.commits[name] for name in "cdefg"))


def test_a_leader_that_leaves_one_member_out_is_replaced() -> None:
    cluster = Cluster(FOUR)
    asks = wire.Ask

    def ignores_c(src: str, dst: str, message: bytes) -> bool:
        said = wire.decode(message)
        return dst == "a" and isinstance(said, asks) and said.request.origin == "c"

    cluster.dropped = ignores_c
    cluster.propose("c", 1, b"x")
    assert cluster.run(10_000, lambda: bool(cluster.commits["c"]))
    assert cluster.cores["b"].view > 0


def test_a_read_waits_for_what_was_committed_before_it() -> None:
    cluster = Cluster(FOUR)
    cluster.propose("b", 1, b"x")
    cluster.run(500)
    cluster.perform("d", cluster.cores["d"].read(cluster.now, 7))
    assert cluster.run(500, lambda: ("d", Readable(7, 1)) in cluster.answers)


def test_no_quorum_no_commit_and_no_read() -> None:
    cluster = Cluster(FOUR)
    cluster.down |= {"c", "d"}
    cluster.propose("b", 1, b"x")
    cluster.perform("b", cluster.cores["b"].read(cluster.now, 2))
    cluster.run(20_000)
    assert cluster.logs()["b"] == []
    assert cluster.answers == []


def test_members_are_changed_by_a_quorum_and_the_new_one_gets_everything() -> None:
    cluster = Cluster(FOUR, later="e")
    for number in range(6):
        cluster.propose("b", number, b"%d" % number)
    cluster.run(1_000)
    wanted = [cluster.member(name) for name in ("b", "c", "d", "e")]
    for name in ("b", "c"):
        cluster.perform(name, cluster.cores[name].change(cluster.now, wanted))
    cluster.run(2_000)
    assert cluster.cores["b"].era.number == 0, "two of four are no quorum"
    cluster.perform("d", cluster.cores["d"].change(cluster.now, wanted))
    assert cluster.run(3_000, lambda: all(cluster.cores[name].era.number == 1 for name in "bcde"))
    cluster.down.add("a")
    cluster.propose("e", 99, b"by e")
    assert cluster.run(3_000, lambda: cluster.logs()["e"][-1:] == [b"by e"])
    assert cluster.logs()["e"] == cluster.logs()["b"]


def test_a_removed_member_is_told_that_its_requests_come_to_nothing() -> None:
    cluster = Cluster((*FOUR, "e"))
    wanted = [cluster.member(name) for name in FOUR]
    for name in FOUR:
        cluster.perform(name, cluster.cores[name].change(cluster.now, wanted))
    assert cluster.run(3_000, lambda: cluster.cores["e"].era.number == 1)
    cluster.propose("e", 1, b"x")
    assert cluster.answers == [("e", Rejected(1, Reason.INVALID, "a"))]


def test_a_checkpoint_lets_the_log_go_and_brings_a_late_member_up() -> None:
    cluster = Cluster(FOUR)
    cluster.down.add("d")
    for number in range(8):
        cluster.propose("b", number, b"%d" % number)
    cluster.run(1_000)
    before = len(cluster.disks["a"])
    for name in ("a", "b", "c"):
        cluster.perform(name, cluster.cores[name].compact(8, b"state" * 100_000))
    cluster.run(1_000)
    assert len(cluster.disks["a"]) < before
    cluster.start("d")
    assert cluster.run(5_000, lambda: cluster.cores["d"].ledger.index == 8)
    assert cluster.logs()["d"] == [b"state" * 100_000]
    cluster.propose("d", 100, b"more")
    assert cluster.run(3_000, lambda: cluster.logs()["d"][-1] == b"more")


def test_a_member_that_is_restarted_knows_everything() -> None:
    cluster = Cluster(FOUR)
    for number in range(5):
        cluster.propose("a", number, b"%d" % number)
    cluster.run(1_000)
    for name in ("a", "b", "c"):
        cluster.perform(name, cluster.cores[name].compact(4, b"0123"))
    cluster.run(1_000)
    for name in FOUR:
        cluster.start(name)
    assert cluster.logs()["a"] == [b"0123", b"4"]
    cluster.propose("a", 5, b"5")
    assert cluster.run(3_000, lambda: cluster.logs()["b"][-1] == b"5")


def test_compacting_at_an_index_that_was_never_committed_is_an_error() -> None:
    cluster = Cluster(FOUR)
    with pytest.raises(ValueError, match="never committed"):
        cluster.cores["a"].compact(1, b"")


def test_two_blocks_at_one_place_convict_their_leader() -> None:
    cluster = Cluster(FOUR)
    first = cluster.cores["b"]
    root, key = first.era.root_certificate(), Ed25519Signer.from_seed(seed_of("a"))
    for position in (1, 2):
        block = wire.Block(0, 0, 1, position, first.era.root, root, None, (), None)
        raw = wire.encode(block)
        statement = wire.to_propose(first.cluster, 0, 0, 1, wire.sha256(raw))
        message = wire.encode(wire.Proposal(0, raw, key.sign(statement)))
        cluster.perform("b", first.receive(cluster.now, "a", message))
    (proof,) = first.proofs
    told = [note for name, note in cluster.notes if note.kind == "equivocation"]
    assert told == [Note("equivocation", f"a signed two blocks to propose: {proof.hex()}")]
    assert verify_proof(proof, first.cluster, key.public_key, Schemes()).member == "a"
    seen = seen_of(first)
    assert [member["lied"] for member in seen["members"]] == [True, False, False, False]
    assert seen["proofs"] == [{"member": "a", "era": 0, "proof": b64encode(proof).decode()}]
    assert (seen["role"], seen["leader"], seen["quorum"], seen["may_lie"]) == ("member", "a", 3, 1)
    other = Ed25519Signer.from_seed(seed_of("b")).public_key
    with pytest.raises(ValueError, match="has not signed"):
        verify_proof(proof, first.cluster, other, Schemes())
    with pytest.raises(ValueError, match="no proof"):
        verify_proof(b"\x00", first.cluster, other, Schemes())


def test_a_flood_of_proposals_is_refused_beyond_what_one_origin_may_have_under_way() -> None:
    cluster = Cluster(FOUR)
    cluster.down |= {"c", "d"}
    for ticket in range(300):
        cluster.propose("b", ticket, b"x")
    busy = [answer for _, answer in cluster.answers if answer.reason == Reason.BUSY]
    assert len(busy) == 300 - 256
    assert len(cluster.cores["a"].pool) <= 256


def test_a_command_that_fits_no_message_is_refused() -> None:
    cluster = Cluster(FOUR)
    cluster.propose("a", 1, bytes(cluster.cores["a"].command_bytes_max))
    assert cluster.run(1_000, lambda: len(cluster.commits["d"]) == 1)
    cluster.propose("a", 2, bytes(cluster.cores["a"].command_bytes_max + 1))
    assert cluster.answers == [("a", Rejected(2, Reason.TOO_LARGE, "a"))]


def test_another_clusters_log_is_refused_with_what_to_do() -> None:
    cluster = Cluster(FOUR)
    signer = Ed25519Signer.from_seed(seed_of("a"))

    def begin(names: str, records: list[bytes], name: str = "a") -> BftCore:
        members = [cluster.member(one) for one in names]
        rng = random.Random(1)
        return BftCore(name, members, records, SETTINGS, rng, signer=signer, verifier=Schemes())

    with pytest.raises(RecordsError, match=r"is of cluster .* check the folder"):
        begin("abce", cluster.disks["a"])
    with pytest.raises(RecordsError, match="belongs to 'a', not to 'b'"):
        begin("abcd", cluster.disks["a"], "b")
    with pytest.raises(RecordsError, match="record 1 of the log of 'a' is damaged"):
        begin("abcd", [cluster.disks["a"][0], b"\xc1"])
    with pytest.raises(RecordsError, match="does not begin"):
        begin("abcd", [wire.encode(["Piece", b""])])


def test_members_that_make_no_sense_are_refused() -> None:
    cluster = Cluster(FOUR)
    twice = [Member("x", b"ed25519:1"), Member("y", b"ed25519:1")]
    with pytest.raises(ValueError, match="key of its own"):
        cluster.cores["a"].change(0, twice)
    with pytest.raises(ValueError, match="scheme b'rsa' is unknown"):
        cluster.cores["a"].change(0, [Member("x", b"rsa:1")])


@pytest.mark.parametrize("names", ["abcd", "abcdefg"])
def test_a_commit_over_a_wide_area_takes_at_most_3_2_round_trips_of_the_quorum(
    names: str,
) -> None:
    """Half of the commits, of all members' together, with commands asked for at any time."""
    rng = random.Random(5)
    one_way = {frozenset((a, b)): rng.randint(40, 100) for a in names for b in names if a != b}

    def delay(src: str, dst: str) -> int:
        return one_way[frozenset((src, dst))]

    settings = CoreSettings(view_timeout_ms=4_000, retry_ms=1_500, status_ms=2_000)
    cluster = Cluster(names, delay=delay, settings=settings)
    faulty = (len(names) - 1) // 3
    round_trip = 2 * sorted(delay("a", other) for other in names if other != "a")[-1 - faulty]
    asked: dict[int, int] = {}
    for ticket in range(100):
        name = rng.choice(names)
        asked[ticket] = cluster.now
        cluster.propose(name, ticket, b"%d" % ticket)
        cluster.run(rng.randint(1, 60))
    cluster.run(3_000)
    took = [
        at - asked[ticket]
        for rows in cluster.commits.values()
        for _, _, ticket, at in rows
        if ticket is not None
    ]
    assert len(took) == 100
    share = median(took) / round_trip
    sys.stdout.write(f"{len(names)} members: commit p50 {share:.2f} quorum round trips\n")
    assert median(took) <= 3.2 * round_trip
