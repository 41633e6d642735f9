"""Clients that read, write and swap values while everything around them breaks, in a process of
their own; what they asked and saw is written down as a history.

    python -m novacron_bench._nemesis_load SETUP.json

It ends when a line comes on its standard input, after it has read every key once more.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from cattrs import structure
from novacron_agreement import keyvalue
from novacron_consensus_raft import RaftError, RaftMember

from novacron_bench._consensus_worker import READY, MemberSetup, Node, member_of, say

# A key is used for so long, and then never again: a history in small parts is judged fast.
KEY_LIFE_S = 10.0
ASK_S = 3.0
FINAL_S = 60.0


@frozen(kw_only=True)
class NemesisLoad:
    """What the clients are told.

    Attributes:
        member: A member's setup that only asks.
        history: The file for the history: a line of JSON for each operation.
        pause_s: What a client waits between two operations.
    """

    member: MemberSetup
    history: str
    seed: int
    clients: int = 8
    keys: int = 4
    pause_s: float = 0.03


@define(eq=False)
class Clients:
    """The clients, and what they have seen."""

    setup: NemesisLoad
    member: RaftMember
    done: list[list[Any]] = field(factory=list)
    used: set[str] = field(factory=set)
    ended: bool = False

    async def run(self, number: int) -> None:
        chance = random.Random(self.setup.seed * 1000 + number)
        seen: dict[str, str | None] = {}
        while not self.ended:
            era = int(time.monotonic() / KEY_LIFE_S)
            key = f"{era}-{chance.randrange(self.setup.keys)}"
            self.used.add(key)
            value = secrets.token_hex(4)
            match chance.choice(("get", "get", "put", "cas")):
                case "put":
                    asked: tuple[Any, ...] = ("put", key, value)
                case "cas":
                    asked = ("cas", key, seen.get(key), value)
                case _:
                    asked = ("get", key)
            answer = await self.operation(f"client-{number}", asked, ASK_S)
            if asked[0] == "get" and answer is not None:
                seen[key] = answer[0]
            await asyncio.sleep(self.setup.pause_s * chance.random() * 2)

    async def operation(
        self, client: str, asked: tuple[Any, ...], timeout_s: float
    ) -> tuple[Any] | None:
        """Do it and note it. Returns: what was answered; None if nothing was."""
        called = time.monotonic()
        try:
            answer = await self._ask(asked, timeout_s)
        except RaftError as error:
            # An error that leaves no doubt, and every read without an answer, is no part of it.
            if error.truth and asked[0] != "get":
                self.done.append([client, asked, called * 1e3, None, None])
            return None
        self.done.append([client, asked, called * 1e3, time.monotonic() * 1e3, answer])
        return (answer,)

    async def _ask(self, asked: tuple[Any, ...], timeout_s: float) -> Any:
        # A client's name of its own: however often it is sent again, it takes effect once.
        once: dict[str, Any] = {"client": secrets.token_hex(8), "number": 1}
        match asked:
            case ("get", key):
                found = await self.member.ask("query", key.encode(), timeout_s)
                return found[1:].decode() if found else None
            case ("put", key, value):
                command = keyvalue.put(key, value.encode(), **once)
            case ("cas", key, expected, value):
                before = None if expected is None else expected.encode()
                command = keyvalue.compare_and_set(key, before, value.encode(), **once)
            case _:
                raise AssertionError(asked)
        return keyvalue.answer(await self.member.ask("propose", command, timeout_s)).done


async def main(setup: NemesisLoad) -> None:
    node = Node(setup.member.name, Path(setup.member.folder), setup.member.addresses)
    clients = Clients(setup, member_of(setup.member, node))
    loop = asyncio.get_running_loop()
    running = [asyncio.create_task(clients.run(number)) for number in range(setup.clients)]
    say(READY)
    await loop.run_in_executor(None, sys.stdin.readline)
    clients.ended = True
    await asyncio.gather(*running)
    # All faults are over: what was acknowledged must be there now.
    unread = [
        key
        for key in sorted(clients.used)
        if await clients.operation("last", ("get", key), FINAL_S) is None
    ]
    lines = "".join(json.dumps(one) + "\n" for one in clients.done)
    await asyncio.to_thread(Path(setup.history).write_text, lines)
    say(json.dumps({"unread": unread}))


if __name__ == "__main__":
    asyncio.run(main(structure(json.loads(Path(sys.argv[1]).read_text()), NemesisLoad)))
