"""A node that begins a move and is killed: says which phase it has reached, and waits for that."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from novacron import MachineSpec, MoveLimits, NodeFacts
from novacron_machine_qemu import QemuDriver, Settings


async def main() -> None:
    order = json.loads(sys.argv[1])
    phase = order["phase"]
    spec = MachineSpec(
        name=order["name"],
        driver="qemu",
        memory_bytes=order["memory_bytes"],
        settings=order["settings"],
    )
    home = Path(order["home"])
    machine = await QemuDriver(Settings(), NodeFacts(name="n", state_dir=home)).open(spec, home)
    rate = 1 << 20 if phase == "copying" else None
    outgoing = await machine.send(MoveLimits(max_downtime_ms=300, rate_bytes_per_s=rate))
    if phase == "copying":
        await asyncio.to_thread(outgoing.read)
    elif phase == "converged":
        reading = asyncio.create_task(asyncio.to_thread(_drain, outgoing))
        await outgoing.converged()
        assert not reading.done()
    else:
        # Nobody reads: QEMU hangs in the middle of its last pass.
        await asyncio.to_thread(outgoing.read)
        await outgoing.switch_over()
    sys.stdout.write(f"{phase}\n")
    sys.stdout.flush()
    await asyncio.sleep(60)


def _drain(outgoing: object) -> None:
    while outgoing.read() is not None:  # type: ignore[attr-defined]
        pass


asyncio.run(main())
