"""The laws that every provider of this domain keeps."""

from __future__ import annotations

from novacron_placement_fit import FitPlacement
from novacron_testkit.contracts import PlacementContract


class TestFitPlacement(PlacementContract):
    provider = FitPlacement
