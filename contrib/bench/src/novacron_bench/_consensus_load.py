"""Clients of a key-value store in a process of their own: they put, and say how long it took.

    python -m novacron_bench._consensus_load SETUP.json

The setup says which store; the figures are JSON on the standard output.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from attrs import frozen
from cattrs import structure

from novacron_bench._consensus_worker import READY, MemberSetup, Node, member_of, say

Put = Callable[[str, bytes], Awaitable[None]]
VALUE_BYTES = 128
PUT_S = 10.0
# After a leader was killed, a put that is not answered by then is asked anew, of another member:
# one that the leader had when it died would wait for much longer.
RECOVERY_PUT_S = 0.5


@frozen(kw_only=True)
class LoadSetup:
    """What the clients are told.

    Attributes:
        raft: The setup of a member of `_consensus_worker` that only asks; None for etcd.
        etcd: The settings of the etcd provider; None for raft.
        part: Which process of several this is; each has keys of its own.
        clients: So many at a time, each with one put under way.
        seconds: For how long, after a second to warm up.
        until_one: Stop at the first put that was answered, and say when that was.
    """

    raft: dict[str, Any] | None = None
    etcd: dict[str, Any] | None = None
    part: int = 0
    clients: int = 1
    seconds: float = 5.0
    until_one: bool = False


def raft_put(setup: dict[str, Any], timeout_s: float) -> Put:
    from novacron_agreement import keyvalue

    told = structure(setup, MemberSetup)
    member = member_of(told, Node(told.name, Path(told.folder), told.addresses))

    async def put(key: str, value: bytes) -> None:
        await member.ask("propose", keyvalue.put(key, value), timeout_s)

    return put


def etcd_put(settings: dict[str, Any], timeout_s: float) -> Put:
    from aetcd import rpc  # type: ignore[import-untyped]
    from novacron_consensus_etcd import EtcdSettings
    from novacron_consensus_etcd._client import Client

    client = Client(EtcdSettings(**{**settings, "timeout_s": timeout_s}))

    async def put(key: str, value: bytes) -> None:
        request = rpc.PutRequest(key=key.encode(), value=value)
        await client.call(
            # A member that knows no leader is to say so at once: then the next one is asked.
            lambda channel, s: rpc.KVStub(channel).Put(
                request, timeout=s, metadata=(("hasleader", "true"),)
            )
        )

    return put


async def measure(put: Put, setup: LoadSetup) -> dict[str, Any]:
    """Puts of all clients for a time: milliseconds of each that was answered, and the others."""
    value = b"v" * VALUE_BYTES
    taken_ms: list[float] = []
    began_s = time.monotonic() + 1.0  # what is done before then warms up and is not counted
    ends_s = began_s + setup.seconds
    errors = 0

    async def client(number: int) -> None:
        nonlocal errors
        count = 0
        while (start_s := time.monotonic()) < ends_s:
            count += 1
            try:
                await put(f"key-{setup.part}-{number}-{count % 1000}", value)
            except Exception:
                errors += 1
                continue
            done_s = time.monotonic()
            if start_s >= began_s and done_s <= ends_s:
                taken_ms.append((done_s - start_s) * 1e3)

    await asyncio.gather(*(client(number) for number in range(setup.clients)))
    return {"taken_ms": taken_ms, "errors": errors}


async def watch_for_one(put: Put) -> None:
    """For each line that comes, put until one is answered, and say when (a monotonic second).

    All processes of a host share that clock, so whoever broke the store knows how long it was away.
    """
    loop = asyncio.get_running_loop()
    say(READY)
    while await loop.run_in_executor(None, sys.stdin.readline):
        while True:
            try:
                await put("recovery", b"v")
                break
            except Exception:
                await asyncio.sleep(0.005)
        say(f"{time.monotonic():.6f}")


def percentile(ordered: list[float], percent: float) -> float:
    """Of numbers in ascending order, the nearest rank; 0 if there are none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


async def main(setup: LoadSetup) -> None:
    timeout_s = RECOVERY_PUT_S if setup.until_one else PUT_S
    if setup.raft is not None:
        put = raft_put(setup.raft, timeout_s)
    else:
        put = etcd_put(setup.etcd or {}, timeout_s)
    if setup.until_one:
        await watch_for_one(put)
    else:
        say(json.dumps(await measure(put, setup)))


if __name__ == "__main__":
    asyncio.run(main(structure(json.loads(Path(sys.argv[1]).read_text()), LoadSetup)))
