"""The guest's files, and what is said where they cannot be made. Needs no QEMU."""

from __future__ import annotations

import gzip
import stat
from pathlib import Path

import pytest
from novacron import ConfigError, NotFound
from novacron_machine_qemu import GuestOptions, build_guest
from novacron_machine_qemu.guest import (
    BUSYBOX_VARIABLE,
    KERNEL_VARIABLE,
    build_initrd,
    cpio_archive,
    find_busybox,
    find_kernel,
)


def read_cpio(archive: bytes) -> dict[str, tuple[int, bytes]]:
    entries: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name_length, size = numbers[11], numbers[6]
        name = archive[at + 110 : at + 109 + name_length].decode()
        at = (at + 110 + name_length + 3) & ~3
        if name == "TRAILER!!!":
            return entries
        entries[name] = (numbers[1], archive[at : at + size])
        at = (at + size + 3) & ~3


def test_an_archive_gives_back_what_was_put_in() -> None:
    entries = [
        ("folder", stat.S_IFDIR | 0o755, b""),
        ("folder/file", stat.S_IFREG | 0o644, b"content"),
        ("empty", stat.S_IFREG | 0o600, b""),
    ]
    assert read_cpio(cpio_archive(entries)) == {name: (mode, data) for name, mode, data in entries}


def test_the_same_input_makes_the_same_initrd(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"not really")
    made = build_initrd(busybox, GuestOptions(tick_s=0.25, dirty_mib=3))
    assert made == build_initrd(busybox, GuestOptions(tick_s=0.25, dirty_mib=3))
    init = read_cpio(gzip.decompress(made))["init"][1].decode()
    assert "read -r -t 0.25 nothing" in init
    assert "size=3m" in init
    assert "@" not in init


def test_a_kernel_that_is_named_and_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, "/nowhere/vmlinuz")
    with pytest.raises(NotFound, match="/nowhere/vmlinuz"):
        find_kernel()


def test_the_newest_fetched_kernel_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(KERNEL_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    boot = tmp_path / "novacron" / "guest-kernel" / "boot"
    boot.mkdir(parents=True)
    for name in ("vmlinuz-6.1.0-9-cloud", "vmlinuz-6.1.0-10-cloud", "vmlinuz-5.10.0-99-cloud"):
        (boot / name).touch()
    assert find_kernel() == boot / "vmlinuz-6.1.0-10-cloud"


def test_a_busybox_that_needs_libraries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUSYBOX_VARIABLE, "/bin/sh")
    with pytest.raises(NotFound, match="not statically linked"):
        find_busybox()


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for options in (GuestOptions(tick_s=0), GuestOptions(dirty_mib=0)):
        with pytest.raises(ConfigError):
            build_guest(tmp_path, options)
