"""State in a simulated world: members in regions, their disks, clients that write and read at all
levels, and every fault. For ``novacron simulate state``."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from attrs import define, field
from novacron_agreement import Effect, Note, Save, Send
from novacron_testkit.disk import SimulatedDisk
from novacron_testkit.faults import Faults
from novacron_testkit.linearizability import History, KeyValueModel
from novacron_testkit.linearizability import check as check_history
from novacron_testkit.simulation import Simulation
from novacron_testkit.simulator import Simulator
from novacron_testkit.world import World

from novacron_consensus_state import _records, _replica
from novacron_consensus_state._messages import decode_vector
from novacron_consensus_state._settings import ReplicaSettings
from novacron_consensus_state._simulation_laws import Asked, Truth
from novacron_consensus_state._simulation_log import FixedLog
from novacron_consensus_state._simulation_mutants import MUTANTS
from novacron_consensus_state._vector import covers

REGIONS: Final = {"a1": "a", "b1": "b", "a2": "a", "c1": "c", "b2": "b"}
FAULTS_MS: Final = 4_000
OPERATIONS: Final = 70
TIMEOUT_MS: Final = 2_000
FAULTS: Final = Faults(
    loss=0.03,
    duplicate=0.03,
    reorder=0.05,
    cut=0.004,
    cut_one_way=0.002,
    partition=0.0007,
    partition_one_way=0.0003,
    crash=0.0008,
    disk=0.002,
    delay_ms=(2, 60),
    partition_ms=1_500,
    cut_ms=800,
    restart_ms=900,
    skew_ms=400,
)


@define
class Client:
    """One session that wanders between members: it must always find what it has written and read.

    It writes growing numbers into a register that nobody else writes.
    """

    name: str
    token: bytes = b""
    wrote: int = 0
    found: int = 0
    asking: str = ""  # the member that it waits for: it does one thing at a time


@define
class Member:
    replica: Any
    saved: list[bytes]  # events that are about to be saved
    tickets: dict[int, Callable[[Any], None]] = field(factory=dict)
    tick_at: int = -1


class StateWorld(World):
    """See the module.

    Args:
        rng: What kind of world it is.
        core: The module with the `Replica` to use.
    """

    def __init__(self, rng: random.Random, core: ModuleType) -> None:
        names = list(REGIONS)[: rng.choice((3, 4, 5))]
        self.core = core
        self.members = {name: REGIONS[name] for name in names}
        self.settings = ReplicaSettings(
            probe_ms=120,
            repeat_ms=rng.choice((0, 30)),
            patience_ms=40,
            silent_ms=500,
            # Some worlds forget events so soon that whoever was away has to compare trees.
            history_bytes=rng.choice((300, 1_500, 1 << 20)),
            snapshot_bytes=rng.choice((1 << 10, 1 << 20)),
            leaves_per_want=rng.choice((1, 512)),
            forward_ms=300,
        )
        self.disks: dict[str, SimulatedDisk] = {}
        self.up: dict[str, Member] = {}
        self.truth = Truth()
        self.clients = [Client(f"session-{n}") for n in range(3)]
        self.quorum_written: set[int] = set()
        self.left = OPERATIONS
        self.count = 0
        self.ticket = 0
        self.base = {name: rng.randrange(1_000_000) for name in names}
        self.history = History(lambda: self.sim.now)
        self.strong = self.strong_asked = 0
        self.divergences = 0

    # Processes.

    def now(self, node: str) -> int:
        """Each process's clock begins somewhere else."""
        return self.sim.now + self.base[node]

    def boot(self, node: str) -> None:
        if node not in self.disks:
            self.disks[node] = SimulatedDisk(self.sim, node)
        records = self.disks[node].read()
        for record in records:
            if record[:1] == _records.EVENT:
                self.truth.durable(record[1:], self.sim.now)
        self.truth.forgotten(node)
        names = list(self.members)[:3]
        offset = 1_700_000_000_000 + self.sim.clock(node) - self.now(node)
        saved: list[bytes] = []

        class Watched(self.core.Replica):  # type: ignore[name-defined,misc]
            def _collected(self) -> list[Effect]:
                # A snapshot swallows the events of the call that it is made in.
                records = self.member.out.records
                saved.extend(r[1:] for r in records if r[:1] == _records.EVENT)
                found: list[Effect] = super()._collected()
                return found

        replica = Watched(
            node,
            self.members,
            records,
            self.settings,
            random.Random(f"{self.sim.seed} {node} {self.sim.now}"),
            cluster="simulated",
            wall_offset_ms=offset,
            log=(lambda kept: FixedLog(node, names, kept)) if node in names else None,
        )
        self.up[node] = Member(replica, saved)
        self.perform(node, replica.start(self.now(node)))
        if self.left == OPERATIONS and node == next(iter(self.members)):
            self.sim.at(5, self.operate)

    def crashed(self, node: str) -> None:
        self.up.pop(node, None)
        for client in self.clients:
            if client.asking == node:
                client.asking = ""
        self.disks[node].crash()

    def deliver(self, src: str, dst: str, message: Any) -> None:
        self.perform(dst, self.up[dst].replica.receive(self.now(dst), src, message))

    def perform(self, node: str, effects: list[Effect]) -> None:
        member, core = self.up[node], self.core
        for effect in effects:
            self.sim.point(node)
            match effect:
                case Save(records, replaces):
                    try:
                        self.save(node, records, replaces)
                    except OSError:
                        self.sim.crash(node)
                        return
                case Send(to, message):
                    self.sim.send(node, to, message)
                case core.Done(ticket) | core.Refused(ticket):
                    answered = member.tickets.pop(ticket, None)
                    if answered is not None:
                        answered(effect)
                case Note(kind):
                    self.divergences += kind == "divergence"
                    assert kind != "amnesia", "a member forgot what it had made"
                case core.Changed():
                    pass
                case _:
                    raise AssertionError(f"the world does not know {effect}")
        self.wake(node, member)

    def save(self, node: str, records: tuple[bytes, ...], replaces: bool) -> None:
        disk = self.disks[node]
        if replaces:
            disk.replace(records)
        else:
            disk.append(records)
            self.sim.point(node)
            disk.sync()
        for raw in self.up[node].saved:
            self.truth.durable(raw, self.sim.now)
        self.up[node].saved.clear()

    def wake(self, node: str, member: Member) -> None:
        due = member.replica.deadline_ms
        if due != member.tick_at:
            member.tick_at = due
            self.sim.at(max(0, due - self.now(node)), self.tick, node, member, due, node=node)

    def tick(self, node: str, member: Member, due: int) -> None:
        if self.up.get(node) is member and member.tick_at == due:
            member.tick_at = -1
            self.perform(node, member.replica.tick(self.now(node)))

    # What clients do.

    def operate(self) -> None:
        self.left -= 1
        if self.left:
            self.sim.at(1 + int(self.sim.rng.random() * 100), self.operate)
        up = sorted(self.up)
        if not up:
            return
        node = self.sim.rng.choice(up)
        self.judge(node)
        kind = self.sim.rng.random()
        if kind < 0.5:
            self.write_any(node)
        elif kind < 0.65:
            self.session(node)
        elif kind < 0.8:
            self.quorum(node)
        else:
            self.strongly(node)

    def write_any(self, node: str) -> None:
        """Some operation of some type, without waiting for anybody."""
        chance, self.count = self.sim.rng, self.count + 1
        n = self.count
        kind = chance.choice(("pn-counter", "g-set", "or-set", "mv", "lww", "or-map", "list"))
        key = (f"{kind}-{chance.randrange(2)}", kind)
        store = self.up[node].replica.store
        before = store.value(key)
        operation, at = "delete", 0
        values: list[Any] = []
        match kind:
            case "pn-counter":
                operation, values = "increment", [chance.randint(-5, 9) or 1]
            case "g-set":
                operation, values = "add", [n]
            case "or-set" | "mv" | "lww" | "or-map" if chance.random() < 0.08:
                pass
            case "or-set":
                operation = chance.choice(("add", "add", "remove"))
                values = [chance.randrange(4)]
            case "mv" | "lww":
                operation, values = "set", [n]
            case "or-map":
                name = chance.choice("xyz")
                operation = chance.choice(("set", "set", "remove"))
                values = [name, "lww", "set", n] if operation == "set" else [name]
                if operation == "remove" and name not in before:
                    return
            case "list":
                operation, at = "insert", chance.randrange(len(before) + 1)
                values = [at, *(n + 10_000 * more for more in range(chance.randint(1, 3)))]
                if before and chance.random() < 0.3:
                    operation, values = "remove", [chance.randrange(len(before))]
        saw = frozenset(dot for row in store.rows(key).values() for dot in row)
        asked = Asked(operation, values, saw)
        if kind == "list" and operation == "insert":
            asked = Asked(operation, values[1:], saw, before, at)
        elif kind == "list":
            asked = Asked(operation, values, saw, [before[values[0]]])
        self.write(node, key, operation, values, asked)

    def write(
        self,
        node: str,
        key: tuple[str, str],
        operation: str,
        values: list[Any],
        asked: Asked | None = None,
        then: Callable[[Any], None] | None = None,
        **more: Any,
    ) -> None:
        member = self.up[node]
        self.ticket += 1
        member.tickets[self.ticket] = then or (lambda effect: None)
        before = dict(member.replica.store.vector)
        seen = before.get(member.replica.member.origin, 0)
        effects = member.replica.write(
            self.now(node),
            self.ticket,
            *key,
            operation,
            values,
            timeout_ms=TIMEOUT_MS,
            **more,
        )
        origin = member.replica.member.origin
        made = member.replica.store.vector.get(origin, 0) > seen
        # Without a dot of its own, an add would be undone by a remove that never saw it.
        assert made or (key[1], operation) != ("or-set", "add"), f"an add to {key} left no trace"
        if made:
            self.truth.causes[origin, seen + 1] = before
            if asked is not None:
                self.truth.asked[origin, seen + 1] = asked
        self.perform(node, effects)

    def read(
        self, node: str, key: tuple[str, str], then: Callable[[Any], None], **more: Any
    ) -> None:
        member = self.up[node]
        self.ticket += 1
        member.tickets[self.ticket] = then
        self.perform(
            node,
            member.replica.read(self.now(node), self.ticket, *key, timeout_ms=TIMEOUT_MS, **more),
        )

    def session(self, node: str) -> None:
        client = self.sim.rng.choice(self.clients)
        if client.asking:
            return
        client.asking = node
        key = (client.name, "lww")
        level = self.core.Level.LOCAL

        def wrote(effect: Any) -> None:
            client.asking = ""
            if isinstance(effect, self.core.Done):
                client.wrote = max(client.wrote, number)
                self.follow(client, effect.answer.token)

        def found(effect: Any) -> None:
            client.asking = ""
            if isinstance(effect, self.core.Done):
                value = effect.answer.value or 0
                least = max(expected, client_found)
                assert value >= least, f"{client.name} found {value} after {least}"
                client.found = max(client.found, value)
                self.follow(client, effect.answer.token)

        if self.sim.rng.random() < 0.5:
            self.count += 1
            number = self.count
            self.write(node, key, "set", [number], then=wrote, level=level, token=client.token)
        else:
            expected, client_found = client.wrote, client.found
            self.read(node, key, found, level=level, token=client.token)

    def follow(self, client: Client, token: bytes) -> None:
        """Answers may overtake each other; a session knows all that it was ever told."""
        tokens = [one for one in (client.token, token) if one]
        client.token = self.core.token_of(tokens)

    def quorum(self, node: str) -> None:
        level = self.core.Level.QUORUM
        key = ("quorum", "g-set")
        if self.sim.rng.random() < 0.5:
            self.count += 1
            number = self.count

            def wrote(effect: Any) -> None:
                if isinstance(effect, self.core.Done):
                    self.quorum_written.add(number)

            self.write(node, key, "add", [number], then=wrote, level=level)
            return
        before = set(self.quorum_written)

        def found(effect: Any) -> None:
            if isinstance(effect, self.core.Done):
                lost = before - set(effect.answer.value)
                assert not lost, f"a quorum read at {node} does not see {sorted(lost)}"

        self.read(node, key, found, level=level)

    def strongly(self, node: str) -> None:
        level = self.core.Level.STRONG
        kind = self.sim.rng.random()
        if kind < 0.2:
            amount = 1 + self.sim.rng.randrange(5)
            self.strong_asked += amount

            def counted(effect: Any) -> None:
                if isinstance(effect, self.core.Done):
                    self.strong += amount
                elif (
                    isinstance(effect, self.core.Refused) and effect.truth == "nothing was changed"
                ):
                    self.strong_asked -= amount

            self.write(
                node, ("total", "g-counter"), "increment", [amount], then=counted, level=level
            )
            return
        if kind < 0.4:
            self.count += 1
            self.write(node, ("mv-0", "mv"), "set", [self.count], level=level)
            return
        key = ("strong", "lww")
        if kind < 0.7:
            self.count += 1
            token = self.history.call(node, ("put", "strong", self.count))

            def wrote(effect: Any) -> None:
                if isinstance(effect, self.core.Done):
                    self.history.answer(token, None)
                elif (
                    isinstance(effect, self.core.Refused) and effect.truth == "nothing was changed"
                ):
                    self.history.failed(token)

            self.write(node, key, "set", [self.count], then=wrote, level=level)
            return
        token = self.history.call(node, ("get", "strong"))

        def found(effect: Any) -> None:
            if isinstance(effect, self.core.Done):
                self.history.answer(token, effect.answer.value)

        self.read(node, key, found, level=level)

    # What must hold.

    def judge(self, node: str) -> None:
        """What a member holds agrees with what it says it has seen, and how fresh it is."""
        replica = self.up[node].replica
        seen = replica.store.vector
        self.truth.check_causes(seen)
        for key in {*self.truth.of_key, *replica.store.entries}:
            self.truth.check_rows(key, replica.store.rows(key), seen)
        freshness = replica.member.freshness
        for other in replica.member.topology.others:
            age = freshness.age_ms(other, self.now(node))
            for made, key_range, event in self.truth.unseen(other, seen):
                assert age is None or made >= self.sim.now - age, (
                    f"{node} says {other} is seen as of {age} ms ago, and has not seen {event}"
                )
                in_range = freshness.age_ms(other, self.now(node), key_range)
                if in_range is not None and made < self.sim.now - in_range:
                    self.check_effect(node, replica.store, event)

    def check_effect(self, node: str, store: Any, event: Any) -> None:
        """In a range that was compared, an event may be there before it is delivered."""
        dot, key = (event.origin, event.number), (event.name, event.kind)
        entry = store.entries.get(key)
        rows = store.rows(key)
        for path, _ in event.adds:
            here = dot in rows.get(path, {}) or (entry and (path, dot) in entry.doomed)
            assert here or (key, (path, dot)) in self.truth.gone, (
                f"{node} says it is fresh, and does not have {dot} in {key}"
            )
        for path, dots in event.drops:
            for one in dots:
                assert one not in rows.get(path, {}), f"{node} says it is fresh, and has {one}"

    def done(self) -> bool:
        """Everybody is up, has everything, holds the same, and has nothing left to remember."""
        if self.left or len(self.up) < len(self.members):
            return False
        full = self.truth.vector
        replicas = {name: member.replica for name, member in self.up.items()}
        for replica in replicas.values():
            store = replica.store
            if store.vector != full or store.held or len(store.history) or store.waiting.count:
                return False
        if any(member.tickets for member in self.up.values()):
            return False
        if len({replica.store.tree.root() for replica in replicas.values()}) > 1:
            return False
        self.judge_end(replicas)
        return True

    def judge_end(self, replicas: dict[str, Any]) -> None:
        for node, replica in replicas.items():
            store = replica.store
            assert not any(entry.doomed for entry in store.entries.values()), "doomed rows are left"
            for key in self.truth.of_key:
                self.truth.check_rows(key, store.rows(key), store.vector)
                found = store.value(key)
                if key[1] == "list":
                    self.truth.check_list(key, found)
                    continue
                expected = self.truth.expected(key)
                assert expected is None or found == expected, (
                    f"{key} at {node} is {found}, not {expected}"
                )
            for client in self.clients:
                value = store.value((client.name, "lww")) or 0
                assert value >= client.wrote, f"the write {client.wrote} was lost at {node}"
                if client.token:
                    told = decode_vector(client.token)
                    assert all(covers(store.vector, dot) for dot in told.items())
            lost = self.quorum_written - set(store.value(("quorum", "g-set")))
            assert not lost, f"{sorted(lost)} were lost at {node}"
            counted = store.value(("total", "g-counter"))
            assert self.strong <= counted <= self.strong_asked, (
                f"{node} counts {counted} of {self.strong} to {self.strong_asked}"
            )
        problem = check_history(self.history.operations(), KeyValueModel())
        assert problem is None, str(problem)


def scenario(seed: int, trace: list[str] | None = None, core: ModuleType = _replica) -> Simulator:
    """One world: faults for some seconds, then none, and everything must come right."""
    rng = random.Random(seed)
    world = StateWorld(rng, core)
    simulator = Simulator(seed, FAULTS, world, tuple(world.members), trace=trace)
    simulator.run(faults_ms=FAULTS_MS, done=world.done, quiet_events=6_000)
    return simulator


STATE: Final = Simulation(name="state", scenario=scenario, mutants=list(MUTANTS))
