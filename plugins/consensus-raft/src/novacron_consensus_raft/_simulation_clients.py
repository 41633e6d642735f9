"""Clients of a simulated raft cluster, and the history of what they were answered."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from attrs import define
from novacron_agreement import keyvalue as kv
from novacron_testkit.linearizability import History

from novacron_consensus_raft._simulation_members import Members, Plan

KEYS = ("x", "y")
ASK_AGAIN_MS = 400
WATCHERS = ("c0", "c1")


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


class Clients(Members):
    """Clients that write, compare and read until they have had enough answers."""

    def __init__(self, plan: Plan, core: ModuleType) -> None:
        super().__init__(plan, core)
        self.clients = {f"c{n}": Client(f"c{n}") for n in range(plan.clients)}
        self.tickets: dict[int, tuple[str, Client, int, int]] = {}
        self.count = 0
        # Whose leadership is in doubt, and until when.
        self.watched, self.watched_ms = "", 0
        self.lull_ms = 0  # until then clients ask for nothing new

    def begin(self) -> None:
        super().begin()
        self.history = History(lambda: self.sim.now)
        for client in self.clients.values():
            self.sim.at(int(self.sim.rng.random() * 200), self._ask_next, client)

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

    def _readable(self, ticket: int, machine: kv.KeyValueMachine) -> None:
        _, client, _, _ = self.tickets[ticket]
        value = machine.get(client.operation[1]) if client.operation else None
        self._answer(ticket, kv.Answer(True, value))
