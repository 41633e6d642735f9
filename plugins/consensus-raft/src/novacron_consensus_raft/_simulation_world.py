"""A raft cluster in a simulated world: members with disks, clients, and an operator.

The members run the class that real nodes run. What is simulated is what a driver does: effects in
their order, saves that take time, a process that dies in between.
"""

from __future__ import annotations

import random
from collections import deque
from types import ModuleType
from typing import Any

from attrs import define, field, frozen
from novacron_agreement import (
    Commit,
    Done,
    Effect,
    Note,
    Readable,
    Rejected,
    Restore,
    Save,
    Send,
)
from novacron_agreement import keyvalue as kv
from novacron_testkit.disk import SimulatedDisk
from novacron_testkit.linearizability import History
from novacron_testkit.simulator import Crash, World

from novacron_consensus_raft import _framing
from novacron_consensus_raft._messages import Vote, decode
from novacron_consensus_raft._settings import RaftSettings
from novacron_consensus_raft._simulation_laws import Laws

KEYS = ("x", "y")
ASK_AGAIN_MS = 400
CLUSTER = "sim"
WATCHERS = ("c0", "c1")
# Trouble that waits for its moment: an election, a vote, a change of members.
WAITING = {
    "crash-new-leader",
    "isolate-new-leader",
    "isolate-deposed",
    "crash-voter",
    "split-change",
}
# The numbers by which these messages begin.
REQUEST_VOTE, VOTE, TIMEOUT_NOW = 1, 2, 7


@frozen(kw_only=True)
class Plan:
    """What a run is about; chosen by its seed.

    Attributes:
        voters, spares: How many members begin, and how many may join.
        clients: How many ask; each one thing at a time.
        pause_ms: How long a client may wait before it asks the next thing.
        requests: How many each client asks at least.
        changes: Whether an operator changes the members.
        transfers: Whether an operator hands the office over.
        compact_every: A member compacts when it has applied so many entries since the last time.
        trouble: What is done to the leader and its followers on purpose, besides what chance does.
        decays: How many members may lose their disk to a corrupt sector.
        settings: Of all members.
    """

    voters: int = 3
    spares: int = 0
    clients: int = 4
    pause_ms: int = 60
    requests: int = 12
    changes: bool = False
    transfers: bool = False
    compact_every: int = 8
    trouble: tuple[str, ...] = ()
    decays: int = 0
    settings: RaftSettings


class Shown(bytes):
    """A message that shows in a trace what it says."""

    def __repr__(self) -> str:
        return repr(decode(self, CLUSTER))


@define(eq=False)
class Process:
    """A member's volatile state."""

    core: Any
    machine: kv.KeyValueMachine
    waiting: deque[tuple[Effect, int]] = field(factory=deque)  # with the core's term then
    syncing: bool = False
    timer_ms: int | None = None
    applied: int = 0
    compacted: int = 0


@define(eq=False)
class Client:
    """Someone who asks one thing at a time, and asks again until there is an answer."""

    name: str
    number: int = 0
    writes: int = 0
    attempt: int = 0
    operation: tuple[Any, ...] = ()
    token: int = -1
    believed: str = ""
    answered: int = 0


class RaftWorld(World):
    """Members, clients and an operator. ``core`` is the module whose `RaftCore` they run."""

    def __init__(self, plan: Plan, core: ModuleType) -> None:
        self.plan = plan
        self.core = core
        self.laws = Laws()
        voters = [chr(ord("a") + n) for n in range(plan.voters)]
        self.beginning = dict.fromkeys(voters, "")
        self.nodes = [*voters, *(chr(ord("p") + n) for n in range(plan.spares))]
        self.processes: dict[str, Process] = {}
        self.disks: dict[str, SimulatedDisk] = {}
        # Whose leadership is in doubt, and until when.
        self.watched, self.watched_ms = "", 0
        self.lull_ms = 0  # until then clients ask for nothing new
        self.decayed: set[str] = set()
        # How much of each log is not of the last save: decay in that one looks like a torn tail.
        self.early: dict[str, int] = {}
        self.clients = {f"c{n}": Client(f"c{n}") for n in range(plan.clients)}
        self.tickets: dict[int, tuple[str, Client, int, int]] = {}
        self.count = 0

    def begin(self) -> None:
        """Before the first event, when the simulator is there."""
        self.history = History(lambda: self.sim.now)
        for node in self.nodes:
            self.disks[node] = SimulatedDisk(
                self.sim, node, frame=_framing.frame, parse=_framing.parse
            )
        for client in self.clients.values():
            self.sim.at(int(self.sim.rng.random() * 200), self._ask_next, client)
        if self.plan.changes or self.plan.transfers:
            self.sim.at(400, self._operate)
        if self.plan.trouble:
            self.sim.at(350, self._trouble)

    # A member's life.

    def boot(self, node: str) -> None:
        try:
            records = self._read(node)
        except _framing.Damaged:
            self.decayed.add(node)
            return
        self.laws.recovered(node, records)
        members = self.beginning if node in self.beginning else {}
        rng = random.Random(self.sim.rng.random())
        core = self.core.RaftCore(node, members, records, self.plan.settings, rng)
        self.processes[node] = Process(core, kv.KeyValueMachine())
        self._do(node, core.start(self.sim.steady(node)))

    def _read(self, node: str) -> list[bytes]:
        disk = self.disks[node]
        early = self.early.get(node, 0)
        if early and len(self.decayed) < self.plan.decays and self.sim.strikes("corrupt", 0.1):
            disk.spoil(int(self.sim.rng.random() * early))
        return disk.read()

    def crashed(self, node: str) -> None:
        self.processes.pop(node, None)
        self.disks[node].crash()

    def deliver(self, src: str, dst: str, message: bytes) -> None:
        process = self.processes.get(dst)
        if process is not None:
            self._do(dst, process.core.receive(self.sim.steady(dst), src, bytes(message)))

    def _tick(self, node: str) -> None:
        process = self.processes[node]
        process.timer_ms = None
        self._do(node, process.core.tick(self.sim.steady(node)))

    def _do(self, node: str, effects: list[Effect]) -> None:
        """Take a core's effects, and see when it wants to be called."""
        process = self.processes[node]
        core = process.core
        for effect in effects:
            if isinstance(effect, Note) and effect.kind == "leader":
                self.laws.leads(node, core)
                self._elected(node)
        process.waiting.extend((effect, core.term) for effect in effects)
        due = core.deadline_ms
        if due is not None and (process.timer_ms is None or due < process.timer_ms):
            process.timer_ms = due
            self.sim.at(self.sim.until(node, due), self._timer, node, due, node=node)
        if not process.syncing:
            self._go_on(node)

    def _timer(self, node: str, due: int) -> None:
        # A timer that was set before an earlier one is of no account.
        if self.processes[node].timer_ms != due:
            return
        if self.sim.steady(node) > due + 100 and not self.sim.quiet_now:
            # It stood still: chance says whether it sees its timers or what came meanwhile first.
            self.sim.at(self._random_ms(1, 60), self._late, node, due, node=node)
        else:
            self._tick(node)

    def _late(self, node: str, due: int) -> None:
        if self.processes[node].timer_ms == due:
            self._tick(node)

    def _synced(self, node: str) -> None:
        self.processes[node].syncing = False
        self._go_on(node)

    def _go_on(self, node: str) -> None:
        """Perform effects up to a save that takes time. The process may die before each."""
        process = self.processes[node]
        waiting = process.waiting
        while waiting:
            effect, term = waiting.popleft()
            if not isinstance(effect, Save):
                self._perform(node, process, effect, term)
                continue
            wait_ms = self._save(node, effect)
            if wait_ms:
                process.syncing = True
                self.sim.at(wait_ms, self._synced, node, node=node)
                return
        if process.applied >= process.compacted + self.plan.compact_every:
            process.compacted = process.applied
            self._do(node, process.core.compact(process.applied, process.machine.snapshot()))

    def _save(self, node: str, save: Save) -> int:
        self.sim.point(node)
        disk = self.disks[node]
        try:
            if save.replaces:
                wait_ms = disk.replace(save.records)
                self.early[node] = 0
            else:
                self.early[node] = disk.synced_bytes
                disk.append(save.records)
                self.sim.point(node)
                wait_ms = disk.sync()
        except OSError:
            # A core whose save failed is finished; the driver begins anew from the disk.
            raise Crash(node) from None
        self.laws.saved(node, save.records, replaces=save.replaces)
        self.sim.point(node)
        return wait_ms

    def _perform(self, node: str, process: Process, effect: Effect, term: int) -> None:
        if self.sim.trace is not None and not isinstance(effect, Send):
            self.sim.trace.append(f"{self.sim.now:6} {node} {effect!r:.200}")
        match effect:
            case Send(to, message):
                shown = Shown(message) if self.sim.trace is not None else message
                self.sim.send(node, to, shown)
                self._sent(node, to, message)
            case Commit(index, command, ticket):
                self.laws.applied(node, term, index, command)
                assert index > process.applied, f"{node} applies {index} twice"
                process.applied = index
                answer = kv.answer(process.machine.apply(index, command))
                if ticket is not None and ticket >= 0:
                    self._answer(ticket, answer)
            case Restore(index, snapshot):
                assert index >= process.applied, f"{node} goes back to {index}"
                process.machine.restore(snapshot)
                process.applied = process.compacted = index
            case Readable(ticket):
                _, client, _, _ = self.tickets[ticket]
                value = process.machine.get(client.operation[1]) if client.operation else None
                self._answer(ticket, kv.Answer(True, value))
            case Rejected(ticket, _, leader):
                self._rejected(ticket, leader)
            case Done() | Note():
                pass
            case _:
                raise AssertionError(f"the world does not know {effect}")

    # Clients.

    def _ask_next(self, client: Client) -> None:
        """Begin a new request."""
        enough = client.answered >= self.plan.requests
        if enough and self.sim.quiet_now:
            client.operation = ()
            return
        chance, choose = self.sim.rng.random, self.sim.rng.choice
        if self.sim.now < self.lull_ms:
            self.sim.at(self.lull_ms - self.sim.now + int(chance() * 40), self._ask_next, client)
            return
        key = choose(KEYS)
        client.number += 1
        value = f"{client.name}-{client.number}"
        if (kind := chance()) < 0.5:
            client.operation = ("get", key)
        elif kind < 0.8:
            client.operation = ("put", key, value)
        else:
            expected = choose((None, f"c0-{client.number}", f"c1-{client.number}"))
            client.operation = ("cas", key, expected, value)
        if self.sim.now < self.watched_ms and client.name in WATCHERS:
            # They read from the one who may lead no more, as fast as they can.
            client.operation, client.believed = ("get", key), self.watched
        elif chance() < 0.4:
            client.believed = choose(self.nodes)
        client.writes += client.operation[0] != "get"
        client.token = self.history.call(client.name, client.operation)
        self._ask(client, client.number)

    def _ask(self, client: Client, number: int) -> None:
        """Ask for the request that is open, or ask again."""
        if client.number != number or not client.operation:
            return
        client.attempt += 1
        self.sim.at(ASK_AGAIN_MS, self._doubt, client, client.attempt)
        up = [node for node in self.nodes if node in self.processes]
        node = client.believed if client.believed in up else ""
        if not node and up:
            node = self.sim.rng.choice(up)
        if node:
            wait_ms = 1 + int(self.sim.rng.random() * 5)
            ask = (client, number, client.attempt)
            self.sim.at(wait_ms, self._asked, node, *ask, node=node)

    def _doubt(self, client: Client, attempt: int) -> None:
        if client.attempt == attempt and client.operation:
            client.believed = ""
            self._ask(client, client.number)

    def _asked(self, node: str, client: Client, number: int, attempt: int) -> None:
        if client.number != number or not client.operation:
            return
        process = self.processes[node]
        self.count += 1
        self.tickets[self.count] = (node, client, number, attempt)
        now = self.sim.steady(node)
        asked = client.operation
        if asked[0] == "get":
            effects = process.core.read(now, self.count)
        elif asked[0] == "put":
            command = kv.put(asked[1], asked[2].encode(), client=client.name, number=client.writes)
            effects = process.core.propose(now, self.count, command)
        else:
            expected = asked[2].encode() if asked[2] is not None else None
            command = kv.compare_and_set(
                asked[1], expected, asked[3].encode(), client=client.name, number=client.writes
            )
            effects = process.core.propose(now, self.count, command)
        self._do(node, effects)

    def _answer(self, ticket: int, answer: kv.Answer) -> None:
        node, client, number, _ = self.tickets.pop(ticket)
        self.sim.at(
            1 + int(self.sim.rng.random() * 5), self._answered, node, client, number, answer
        )

    def _answered(self, node: str, client: Client, number: int, answer: kv.Answer) -> None:
        if client.number != number or not client.operation:
            return
        assert not answer.error, f"{client.name}'s request {number} was refused: {answer.error}"
        client.believed = node
        client.answered += 1
        if client.operation[0] == "get":
            self.history.answer(client.token, answer.value.decode() if answer.value else None)
        else:
            self.history.answer(client.token, answer.done)
        client.operation = ()
        self.sim.at(1 + int(self.sim.rng.random() * self.plan.pause_ms), self._ask_next, client)

    def _rejected(self, ticket: int, leader: str | None) -> None:
        if ticket not in self.tickets:
            return  # the operator's
        _, client, number, attempt = self.tickets.pop(ticket)
        if client.attempt != attempt:
            return  # it has asked again since
        client.believed = leader or ""
        self.sim.at(self._random_ms(10, 80), self._ask, client, number)

    # The operator.

    def _operate(self) -> None:
        if self.sim.quiet_now:
            return
        self.sim.at(200 + int(self.sim.rng.random() * 800), self._operate)
        leading = [
            node for node, process in self.processes.items() if process.core.role == "leader"
        ]
        if not leading:
            return
        node = self.sim.rng.choice(leading)
        core, now = self.processes[node].core, self.sim.steady(node)
        self.count += 1
        if self.plan.transfers and (not self.plan.changes or self.sim.rng.random() < 0.3):
            effects = core.transfer(now, self.count, self.sim.rng.choice(self.nodes))
            self._watch(core.name)
        else:
            effects = self._change(core, now)
        self._do(node, effects)

    def _change(self, core: Any, now: int) -> list[Effect]:
        asked: dict[str, Any]
        known = core.configuration
        some = self.sim.rng.sample(self.nodes, self.sim.rng.randint(1, 2))
        kind = self.sim.rng.random()
        voters = len(known.voters)
        staying = voters - len(set(some) & set(known.voters))
        if kind < 0.3:
            # All who are there, or none but those with whom it began.
            more = [one for one in self.nodes if one not in known.voters]
            fewer = [one for one in known.members if one not in self.beginning]
            asked = {"voters": dict.fromkeys(more, "")} if more else {"remove": fewer}
        elif kind < 0.5:
            asked = {"voters": dict.fromkeys(some, "")}
        elif staying < 2:
            return []
        elif kind < 0.7:
            asked = {"learners": dict.fromkeys(some, "")}
        else:
            asked = {"remove": [one for one in some if one in known.members]}
        try:
            effects: list[Effect] = core.change_members(now, self.count, **asked)
        except ValueError:  # another change is under way
            return []
        under_way = any(isinstance(effect, Save) for effect in effects)
        if under_way and self._wants("split-change", 0.7):
            others = [node for node in self.nodes if node != core.name]
            most = max(1, len(self.nodes) // 2)
            group = self.sim.rng.sample(others, self._random_ms(0, most + 1))
            self.sim.at(self._random_ms(0, 60), self._split, [core.name, *group])
        return effects

    def _split(self, group: list[str]) -> None:
        if not self.sim.quiet_now:
            self.sim.partition(group, for_ms=self._random_ms(400, 1200))

    # Trouble.

    def _trouble(self) -> None:
        """Do to the leader what is worst for it, at a time that suits it least."""
        if self.sim.quiet_now:
            return
        random_ms = self._random_ms
        self.sim.at(random_ms(80, 500), self._trouble)
        leading = [
            node for node, process in self.processes.items() if process.core.role == "leader"
        ]
        what = self.sim.rng.choice(self.plan.trouble)
        while what in WAITING and set(self.plan.trouble) - WAITING:
            what = self.sim.rng.choice(self.plan.trouble)
        if not leading or not self.sim.strikes(what, 1.0):
            return
        leader = self.sim.rng.choice(leading)
        others = [node for node in self.nodes if node != leader]
        self._watch(leader)
        match what:
            case "stall-leader":
                stalled_ms = random_ms(250, 900)
                self.sim.stall(leader, stalled_ms)
                if self.sim.rng.random() < 0.7:
                    # When it goes on, nobody but its clients tells it anything for a while.
                    self.sim.partition((leader,), for_ms=stalled_ms + random_ms(50, 300))
            case "isolate-leader":
                one_way = self.sim.rng.random() < 0.3
                self.sim.partition((leader,), one_way=one_way, for_ms=random_ms(200, 1200))
                self.sim.at(random_ms(0, 60), self._burst, leader)
            case "bridge":
                # One follower does not reach the leader, and all others reach both.
                if self.sim.now > self.lull_ms + 400:
                    # First a lull, so that who is cut off lacks nothing, and could be elected.
                    self.lull_ms = self.sim.now + random_ms(300, 450)
                    cut_off = self.sim.rng.choice(others)
                    self.sim.at(random_ms(20, 80), self._bridge, leader, cut_off)
            case "minority":
                some = self.sim.rng.sample(others, min(len(others), 1 + len(self.beginning) // 2))
                self.sim.partition(some, for_ms=random_ms(200, 1200))
            case "crash-leader":
                self.sim.crash(leader, restart_ms=random_ms(0, 200))
            case "crash-followers":
                for node in others:
                    if node in self.processes:
                        self.sim.crash(node, restart_ms=random_ms(0, 60))
            case "power":
                for node in list(self.processes):
                    self.sim.crash(node, restart_ms=random_ms(0, 120))
            case "burst":
                self._burst(leader)
            case _:
                assert what in WAITING, f"the world does not know the trouble {what!r}"

    def _watch(self, node: str) -> None:
        self.watched, self.watched_ms = node, self.sim.now + 1000

    def _bridge(self, leader: str, cut_off: str) -> None:
        if self.sim.quiet_now:
            return
        self.sim.cut(leader, cut_off, for_ms=self._random_ms(400, 900))

    def _burst(self, node: str) -> None:
        """Somebody asks for many things at once, and does not wait for answers."""
        process = self.processes.get(node)
        if process is not None:
            count = self._random_ms(1, 12)
            commands = [(-1, kv.put("z", bytes([n]))) for n in range(count)]
            self._do(node, process.core.propose_all(self.sim.steady(node), commands))

    def _wants(self, what: str, probability: float) -> bool:
        """Whether the plan has this trouble, and chance wants it now."""
        return what in self.plan.trouble and self.sim.strikes(what, probability)

    def _elected(self, node: str) -> None:
        """Somebody leads: whoever believes that it still does is cut off, and may go on believing;
        or the new one dies before it has done much."""
        deposed = [
            other
            for other, process in self.processes.items()
            if other != node and process.core.role == "leader"
        ]
        if deposed and self._wants("isolate-deposed", 0.8):
            self.sim.at(0, self._isolate, deposed)
        if self._wants("isolate-new-leader", 0.6):
            self.sim.at(self._random_ms(0, 12), self._isolate, [node])
            self.sim.at(self._random_ms(0, 60), self._burst, node)
        if self._wants("crash-new-leader", 0.5):
            self.sim.at(self._random_ms(1, 40), self._kill, node)

    def _isolate(self, group: list[str]) -> None:
        if not self.sim.quiet_now:
            self.sim.partition(group, for_ms=self._random_ms(200, 700))

    def _kill(self, node: str) -> None:
        if not self.sim.quiet_now:
            self.sim.crash(node, restart_ms=self._random_ms(0, 150))

    def _sent(self, node: str, to: str, message: bytes) -> None:
        """Whoever is asked for a vote, or has just voted, dies and is back before the election is
        over; and who hands its office over hears no more of it."""
        asks = message[1] == REQUEST_VOTE and "bridge" in self.plan.trouble
        if asks and self.sim.strikes("crash-asked", 0.4):
            self.sim.at(0, self._kill_shortly, [to])
        if message[1] == TIMEOUT_NOW and self._wants("isolate-deposed", 0.7):
            self.sim.at(self._random_ms(2, 25), self._isolate, [node])
        if "crash-voter" in self.plan.trouble and message[1] == VOTE:
            vote = decode(message, CLUSTER)
            given = isinstance(vote, Vote) and vote.granted and not vote.pre
            if given and self.sim.strikes("crash-voter", 0.5):
                self.sim.at(0, self._kill_shortly, [node])

    def _kill_shortly(self, group: list[str]) -> None:
        for node in group:
            if node in self.processes and not self.sim.quiet_now:
                self.sim.crash(node, restart_ms=self._random_ms(0, 10))

    def _random_ms(self, least: int, most: int) -> int:
        return least + int(self.sim.rng.random() * (most - least))

    # What must hold when the faults are over.

    def done(self) -> bool:
        """All is answered, and all members that take part have the same."""
        if any(
            client.operation or client.answered < self.plan.requests
            for client in self.clients.values()
        ):
            return False
        leading = [process for process in self.processes.values() if process.core.role == "leader"]
        if not leading:
            return False
        leader = max(leading, key=lambda process: process.core.term)
        core = leader.core
        if core.configuration.joint or core.commit < core.log.last_index:
            return False
        taking_part = core.configuration.members - self.decayed
        states = {
            (process.applied, process.machine.snapshot()) if process else None
            for process in map(self.processes.get, sorted(taking_part))
        }
        return states == {(leader.applied, leader.machine.snapshot())}
