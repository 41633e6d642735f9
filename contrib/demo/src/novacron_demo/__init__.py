"""``novacron demo``: two nodes, a shaped link, and a machine that moves there and back."""

from __future__ import annotations

NOVACRON_API = 1

__all__ = ["NOVACRON_API"]
