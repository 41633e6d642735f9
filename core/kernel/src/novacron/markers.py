"""The markers that declare and implement hooks, and the version of their contract."""

from __future__ import annotations

from typing import Final

import pluggy

PROJECT: Final = "novacron"

# Raised when a plugin written for the old hooks could no longer work. A plugin states the one it
# was built for as the module attribute NOVACRON_API.
API_VERSION: Final = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
