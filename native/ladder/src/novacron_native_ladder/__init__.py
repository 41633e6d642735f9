"""The rungs of hierarchical delta encoding and their page store: C where a compiler was there.

Reads and writes the file that it is given, and nothing else; no policy. `implementation` says which
is in use; the modules ``_c`` and ``_twin`` have the same classes, for tests that want one of them.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal

from novacron_native_ladder._format import (
    PAGE_SIZE_MAX,
    PAGE_SIZE_MIN,
    DecodeProblem,
    Encoded,
    Hashes,
    LadderFormatError,
    Parts,
    Places,
    Rung,
    StoreTableError,
)

_COMPILED: Final = find_spec("novacron_native_ladder._ffi") is not None

if TYPE_CHECKING or _COMPILED:
    from novacron_native_ladder._c import Origins, References, Store, hash_file, hash_pages
else:
    from novacron_native_ladder._twin import Origins, References, Store, hash_file, hash_pages


def implementation() -> Literal["c", "python"]:
    """Which implementation this installation uses."""
    return "c" if _COMPILED else "python"


__all__ = [
    "PAGE_SIZE_MAX",
    "PAGE_SIZE_MIN",
    "DecodeProblem",
    "Encoded",
    "Hashes",
    "LadderFormatError",
    "Origins",
    "Parts",
    "Places",
    "References",
    "Rung",
    "Store",
    "StoreTableError",
    "hash_file",
    "hash_pages",
    "implementation",
]
