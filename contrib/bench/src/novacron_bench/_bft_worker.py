"""A member of a cluster whose members do not trust each other, in a process of its own.

    python -m novacron_bench._bft_worker SETUP.json

Only members use such a register, so the load is made here, too. Lines on the standard input:
``leader`` is answered with who leads, as far as this member knows, ``put SECONDS`` with what it
took, one record after the other, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from attrs import field, frozen
from cattrs import structure
from novacron import Ownership
from novacron_consensus_bft import BftError, BftRegister, BftSection

from novacron_bench._consensus_worker import READY, Node, say


@frozen(kw_only=True)
class BftSetup:
    """What a process is told.

    Attributes:
        addresses: Of all members, by name.
        keys: Their public keys.
    """

    name: str
    folder: str
    addresses: dict[str, str]
    keys: dict[str, str]
    round_trip_ms: int = 50
    timeout_s: float = field(default=60.0)


async def put(register: BftRegister, name: str, seconds: float) -> dict[str, Any]:
    """Write one new record after the other, and see what each took."""
    taken_ms: list[float] = []
    errors = 0
    ends_s = time.monotonic() + seconds
    while (began_s := time.monotonic()) < ends_s:
        machine = f"vm-{name}-{began_s:.6f}"
        try:
            await register.advance(
                Ownership(machine=machine, owner=name, epoch=1), expected_epoch=0
            )
        except BftError:
            errors += 1
        else:
            taken_ms.append((time.monotonic() - began_s) * 1e3)
    return {"taken_ms": taken_ms, "errors": errors}


async def main(setup: BftSetup) -> None:
    node = Node(setup.name, Path(setup.folder), setup.addresses)
    section = BftSection(
        cluster="bench",
        members=setup.keys,
        round_trip_ms=setup.round_trip_ms,
        timeout_s=setup.timeout_s,
    )
    register = BftRegister(section, node.facts)
    node.listen()
    say(READY)
    loop = asyncio.get_running_loop()
    try:
        while line := (await loop.run_in_executor(None, sys.stdin.readline)).split():
            if line[0] == "leader":
                # Whoever leads when something was agreed on does lead.
                await register.read("nobody")
                say(json.dumps(register.node.driver.leader))
            else:
                say(json.dumps(await put(register, setup.name, float(line[1]))))
    finally:
        await register.close()


if __name__ == "__main__":
    asyncio.run(main(structure(json.loads(Path(sys.argv[1]).read_text()), BftSetup)))
