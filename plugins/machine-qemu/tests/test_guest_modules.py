"""The modules with which a test guest's kernel sees a disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from novacron_machine_qemu.guest import DISK_MODULES, cache_dir, find_modules


def test_modules_are_found_beside_the_fetched_kernel_in_the_order_of_their_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_dir() / "modules" / "6.1.0-test"
    folder.mkdir(parents=True)
    for name in sorted(DISK_MODULES):
        (folder / f"{name}.ko").write_bytes(b"")
    found = find_modules(cache_dir() / "boot" / "vmlinuz-6.1.0-test")
    assert [path.stem for path in found] == list(DISK_MODULES)


def test_a_kernel_that_has_them_built_in_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_modules(tmp_path / "vmlinuz-0.0.0-none") == []
