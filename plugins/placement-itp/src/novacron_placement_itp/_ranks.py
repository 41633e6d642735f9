"""Shares of a link by rank: who goes first has it for himself, the next is held ready.

Copies that share a link evenly all last long, and what their guests write meanwhile goes again;
so one is sent at a time, and the next, prepared already, follows without a gap. Guests that
hardly write lose nothing by sharing: these are left to share, which keeps the link full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from novacron import MoveNeed

# The ranks of an evacuation lie below every priority that an operator may give to a single move
# (1000 to -1000), so that those go first and these are known by their number.
_BASE: Final = -1_000_000
_STEP: Final = 10_000
# What who waits for his turn may send meanwhile, of what the first one sends.
_TRICKLE: Final = 0.05
_TRICKLE_MIN: Final = 64 << 10
# Who writes less than this part of what is sent may share.
_WRITES: Final = 0.05
# The next one starts so long before the first has ended, for a link needs time to find its rate.
_OVERLAP_S: Final = 3.0


def rank(priority: int, begun: int) -> int:
    """Of a move of an evacuation: by its machine's priority, and by how many began before it."""
    most = 40
    return _BASE + max(-most, min(priority, most)) * _STEP - min(begun, _STEP - 1)


def by_rank(moves: Sequence[MoveNeed]) -> Mapping[str, int | None] | None:
    """Limits by session; None if none of the moves is of an evacuation."""
    if all(move.priority > _BASE / 2 for move in moves):
        return None
    limits: dict[str, int | None] = {}
    for target in sorted({move.target for move in moves}):
        there = [move for move in moves if move.target == target]
        there.sort(key=lambda move: (-move.priority, move.session))
        limits |= _on_one_way(there)
    return limits


def _on_one_way(moves: Sequence[MoveNeed]) -> dict[str, int | None]:
    limits: dict[str, int | None] = {}
    held: int | None = None
    writes = max(move.dirty_bytes_per_s for move in moves)
    for move in moves:
        limits[move.session] = held
        rate = move.rate_bytes_per_s
        busy = rate > 0 and move.remaining_bytes > rate * _OVERLAP_S
        if held is None and busy and writes > _WRITES * rate:
            held = max(int(rate * _TRICKLE), _TRICKLE_MIN)
    return limits
