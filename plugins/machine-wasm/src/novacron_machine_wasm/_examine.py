"""What stands in the way of a WebAssembly machine's move, found before it begins.

It brings all it needs (its module, its memory), so there is little: room, settings, and a port.
"""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from novacron import ConfigError, MachineSpec, Obstacle, Refused

from novacron_machine_wasm._settings import Settings, check_spec

# The node's own journals and logs.
_RESERVE_BYTES: Final = 16 << 20


def examine_leaving(spec: MachineSpec, home: Path) -> Iterator[Obstacle]:
    """The source keeps what it has sent of the memory in a file in the machine's home."""
    yield from _room(home, spec.memory_bytes, "source", "what was sent of its memory")


def examine_arrival(
    spec: MachineSpec,
    settings: Settings,
    state_dir: Path,
    judge: Callable[[Mapping[str, Any]], tuple[str, int]],
    origin: Mapping[str, Any],
) -> Iterator[Obstacle]:
    """What keeps it from coming here.

    Args:
        judge: Gives the module's digest and length by the origin; raises Refused.
    """
    try:
        asked = check_spec(spec, settings)
    except ConfigError as error:
        yield Obstacle(
            code="settings.refused",
            what=error.message,
            cure=error.hint or "make the machine anew with another value of that setting",
            side="target",
            facts={"setting": str(error.facts.get("setting", ""))},
        )
        return
    try:
        _, module_bytes = judge(origin)
    except Refused as error:
        cure = error.hint or "use the same version of novacron-machine-wasm on both nodes"
        yield Obstacle(code="origin.unsound", what=error.message, cure=cure, side="target")
        return
    yield from _room(state_dir, module_bytes, "target", "its module")
    if asked.tcp_port and (why := _why_taken(asked.tcp_port)):
        yield Obstacle(
            code="network.port-taken",
            what=f"it serves requests on port {asked.tcp_port} of 127.0.0.1, which it cannot here "
            f"before that is free: {why}",
            cure=f"free it (ss -ltp 'sport = :{asked.tcp_port}' says who has it)",
            blocks=False,
            side="target",
            facts={"port": asked.tcp_port},
        )


def _room(folder: Path, count: int, side: str, what: str) -> Iterator[Obstacle]:
    free, wanted = shutil.disk_usage(folder).free, count + _RESERVE_BYTES
    if free < wanted:
        yield Obstacle(
            code="disk.no-room",
            what=f"{what} takes {count >> 20} MiB in {folder}, which has {free >> 20} MiB free "
            f"({_RESERVE_BYTES >> 20} MiB must stay)",
            cure=f"free {-(-(wanted - free) >> 20)} MiB there, or give the node another [node] "
            "state_dir",
            side=side,
            facts={"path": str(folder), "needed_bytes": wanted, "free_bytes": free},
        )


def _why_taken(port: int) -> str:
    with closing(socket.socket()) as trying:
        trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trying.bind(("127.0.0.1", port))
        except OSError as error:
            return "somebody has it" if error.errno == errno.EADDRINUSE else str(error)
    return ""
