"""``novacron lab``: sites joined by wide-area links, as network namespaces of one machine."""

from __future__ import annotations

from novacron_lab._lab import DirectionStats, Lab
from novacron_lab._spec import Bursts, LinkSpec, Outage, Site

NOVACRON_API = 1

__all__ = ["NOVACRON_API", "Bursts", "DirectionStats", "Lab", "LinkSpec", "Outage", "Site"]
