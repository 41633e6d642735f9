"""Where the kernel asks and tells: one `Mind` per node, its lessons kept in the node's folder."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import Final

from novacron import MoveFacts, NodeFacts

from novacron_transport_pba import _lessons as lessons
from novacron_transport_pba._mind import Mind

log = logging.getLogger("novacron.pba")
_minds: Final[dict[Path, Mind]] = {}
_writing: Final = threading.Lock()


def mind_of(node: NodeFacts) -> Mind:
    """What this node knows; read from its folder when first asked for."""
    mind = _minds.get(node.state_dir)
    if mind is None:
        mind = Mind.of(lessons.read(lessons.folder_of(node.state_dir)))
        _minds[node.state_dir] = mind
    return mind


def forget(node: NodeFacts) -> None:
    """The node has ended; what it learnt is on disk."""
    _minds.pop(node.state_dir, None)


def learn_end(move: MoveFacts, moved: bool, downtime_ms: float, node: NodeFacts) -> None:
    """Score a move, and keep what was learnt without holding the event loop up."""
    mind = mind_of(node)
    if not mind.end(move, moved, downtime_ms, time.time()):
        return
    folder, content = lessons.folder_of(node.state_dir), lessons.encode(mind.lessons)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        _write(folder, content)
    else:
        loop.run_in_executor(None, _write, folder, content)


def _write(folder: Path, content: bytes) -> None:
    try:
        with _writing:
            lessons.write(folder, content)
    except OSError as error:
        log.warning("what was learnt of a move cannot be kept: %s", error)
