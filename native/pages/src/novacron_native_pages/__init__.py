"""Page kernels and the QEMU stream splitter: C where a compiler was there, else numpy.

No policy, no I/O. `implementation` says which is in use; the modules ``_c`` and ``_twin`` have the
same functions, for tests that want one of them by name.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal

from novacron_native_pages._format import (
    JOINED_MAX,
    Counters,
    JoinProblem,
    Piece,
    Reason,
    StreamFormatError,
)

_COMPILED: Final = find_spec("novacron_native_pages._ffi") is not None

if TYPE_CHECKING or _COMPILED:
    from novacron_native_pages._c import (
        Splitter,
        changed_pages,
        hash_pages,
        join_into,
        take_changed,
        zero_pages,
    )
else:
    from novacron_native_pages._twin import (
        Splitter,
        changed_pages,
        hash_pages,
        join_into,
        take_changed,
        zero_pages,
    )


def implementation() -> Literal["c", "numpy"]:
    """Which implementation this installation uses."""
    return "c" if _COMPILED else "numpy"


__all__ = [
    "JOINED_MAX",
    "Counters",
    "JoinProblem",
    "Piece",
    "Reason",
    "Splitter",
    "StreamFormatError",
    "changed_pages",
    "hash_pages",
    "implementation",
    "join_into",
    "take_changed",
    "zero_pages",
]
