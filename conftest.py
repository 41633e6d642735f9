"""What all tests of the workspace share."""

from __future__ import annotations

import pytest

# Tests that start virtual machines or make network namespaces share the host; they run one after
# the other while the rest goes on beside them.
ONE_AT_A_TIME = ("qemu", "netns")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.get_closest_marker(name) for name in ONE_AT_A_TIME):
            item.add_marker(pytest.mark.xdist_group("host"))
        # Coverage makes the simulator three times slower, and says nothing new there.
        if item.get_closest_marker("slow"):
            item.add_marker("no_cover")
