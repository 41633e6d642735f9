"""Imported first: pytest then explains the asserts in the contracts as it does those in tests."""

from __future__ import annotations

import pytest

NAMES = (
    "compression",
    "compliance",
    "consensus",
    "machine",
    "placement",
    "security",
    "support",
    "transport",
)
pytest.register_assert_rewrite(*(f"novacron_testkit.contracts.{name}" for name in NAMES))
