"""A node's end of a move with disks that is killed when the first blocks have come.

Its arguments: the machine's home, the folder of its files, and its spec as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from novacron import MachineSpec, MoveLimits, NodeFacts
from novacron_machine_qemu import QemuDriver, Settings
from novacron_qemu.blocks import Have, HeldDisk


async def begin_and_die(home: Path, files: str, spec: MachineSpec) -> None:
    driver = QemuDriver(Settings(files=files), NodeFacts(name="here", state_dir=home.parent))
    machine = await driver.open(spec, home)
    size = machine.describe()["disks"][0]["size_bytes"]
    outgoing = await machine.send(MoveLimits(storage="copy"))
    outgoing.peer_has(Have(disks=[HeldDisk(disk=0, size_bytes=size)]).pack())
    assert await asyncio.to_thread(outgoing.read) is not None
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(
        begin_and_die(
            Path(sys.argv[1]),
            sys.argv[2],
            MachineSpec(driver="qemu", memory_bytes=16 << 20, **json.loads(sys.argv[3])),
        )
    )
