"""The laws that every provider of this domain keeps."""

from __future__ import annotations

from novacron_placement_itp import ItpPlacement
from novacron_testkit.contracts import PlacementContract


class TestItpPlacement(PlacementContract):
    provider = ItpPlacement
