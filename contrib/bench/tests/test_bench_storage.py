"""A small form of `novacron bench storage`: a guest with a sparse disk moves there and back."""

from __future__ import annotations

import os
import shutil

import pytest
from novacron import NotFound
from novacron_bench._storage import StorageSetup, run_storage
from novacron_machine_qemu.guest import find_busybox, find_kernel

MIB = 1 << 20


@pytest.fixture
def host() -> None:
    """Skips aloud where no guest can move between namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2: run as root")
    if shutil.which("qemu-system-x86_64") is None or shutil.which("qemu-img") is None:
        pytest.skip("no QEMU: run scripts/debian-packages")
    try:
        find_kernel(), find_busybox()
    except NotFound as missing:
        pytest.skip(f"{missing}; {missing.hint}")


@pytest.mark.qemu
@pytest.mark.netns
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("host")
def test_a_sparse_disk_follows_its_guest_and_its_return_costs_the_difference() -> None:
    setup = StorageSetup(
        size_bytes=1024 * MIB,
        content_bytes=32 * MIB,
        memory_bytes=128 * MIB,
        providers={"transport": "tcp", "compression": "hde", "security": "tls"},
    )
    steps: list[str] = []
    result = run_storage(setup, steps.append)
    assert result.held, result
    there, back, _ = result.moves
    assert there.raw_bytes > 32 * MIB
    # What is left are the guest's memory and the blocks that it wrote to.
    assert back.raw_bytes < there.raw_bytes - 28 * MIB
    assert [len(move.digest) for move in result.moves] == [64, 0, 64]
    assert "moving back" in steps
