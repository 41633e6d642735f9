"""A plugin for tests: kills its own node, as `kill -9` would, when a session enters a phase.

NOVACRON_CHAOS names where: ``source:commit``. It strikes once; the file NOVACRON_CHAOS_DONE says
that it has.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from novacron import hookimpl

NOVACRON_API = 1


@hookimpl
def novacron_on_session_phase(role: str, phase: str) -> None:
    done = Path(os.environ.get("NOVACRON_CHAOS_DONE", ""))
    if os.environ.get("NOVACRON_CHAOS") == f"{role}:{phase}" and not done.exists():
        done.touch()
        os.kill(os.getpid(), signal.SIGKILL)
