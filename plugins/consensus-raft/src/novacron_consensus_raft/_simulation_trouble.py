"""Trouble made on purpose: what an operator does, and what is worst for a leader, at a bad time."""

from __future__ import annotations

from typing import Any

from novacron_agreement import Effect, Save
from novacron_agreement import keyvalue as kv

from novacron_consensus_raft._messages import Vote, decode
from novacron_consensus_raft._simulation_clients import Clients
from novacron_consensus_raft._simulation_members import CLUSTER, Process

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


class Trouble(Clients):
    """An operator and an adversary."""

    def begin(self) -> None:
        super().begin()
        if self.plan.changes or self.plan.transfers:
            self.sim.at(400, self._operate)
        if self.plan.trouble:
            self.sim.at(350, self._trouble)

    # The operator.

    def _operate(self) -> None:
        if self.sim.quiet_now:
            return
        self.sim.at(self._random_ms(150, 600), self._operate)
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
        if under_way and self._wants("split-change", 0.9):
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
            if self.sim.rng.random() < 0.6:
                self._isolate([node])  # before its first word is out
            else:
                self.sim.at(self._random_ms(0, 12), self._isolate, [node])
            self.sim.at(self._random_ms(0, 60), self._burst, node)
        if self._wants("crash-new-leader", 0.5):
            self.sim.at(self._random_ms(1, 40), self._kill, node)

    def _committed(self, node: str, process: Process, index: int) -> None:
        """A leader that has committed what an earlier one left dies at once: is it safe?"""
        core = process.core
        if "crash-new-leader" not in self.plan.trouble or core.role != "leader":
            return
        if (core.log.term(index) or core.term) < core.term and self._wants("crash-new-leader", 0.9):
            self.sim.at(0, self._kill, node, 700)

    def _isolate(self, group: list[str]) -> None:
        if not self.sim.quiet_now:
            self.sim.partition(group, for_ms=self._random_ms(200, 700))

    def _kill(self, node: str, away_ms: int = 150) -> None:
        if not self.sim.quiet_now:
            self.sim.crash(node, restart_ms=self._random_ms(0, away_ms))

    def _sent(self, node: str, to: str, message: bytes) -> None:
        """Whoever is asked for a vote, or has just voted, dies and is back before the election is
        over; and who hands its office over hears no more of it."""
        asks = message[1] == REQUEST_VOTE and "bridge" in self.plan.trouble
        if asks and self.sim.strikes("crash-asked", 0.5):
            self.sim.at(0, self._kill_shortly, [to], 1)
        if message[1] == TIMEOUT_NOW and self._wants("isolate-deposed", 0.7):
            self.sim.at(self._random_ms(2, 25), self._isolate, [node])
        if "crash-voter" in self.plan.trouble and message[1] == VOTE:
            vote = decode(message, CLUSTER)
            given = isinstance(vote, Vote) and vote.granted and not vote.pre
            if given and self.sim.strikes("crash-voter", 0.5):
                self.sim.at(0, self._kill_shortly, [node])

    def _kill_shortly(self, group: list[str], away_ms: int = 10) -> None:
        for node in group:
            if node in self.processes and not self.sim.quiet_now:
                self.sim.crash(node, restart_ms=self._random_ms(0, away_ms))
