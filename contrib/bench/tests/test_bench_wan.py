"""One real, small benchmark: stock QEMU and NovaCron move a guest over a link, and lose nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from novacron import NotFound
from novacron_bench._guest import built_in_workloads
from novacron_bench._known import pick_workload
from novacron_bench._network import LinkFigures
from novacron_bench._nova import nova_competitors
from novacron_bench._race import Entry, Race
from novacron_bench._rows import summarise
from novacron_bench._stock import stock_competitors
from novacron_bench._table import tables
from novacron_machine_qemu.guest import find_busybox, find_kernel


@pytest.fixture
def host() -> None:
    """Skips aloud where no guest can move between namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2: run as root")
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no qemu-system-x86_64: run scripts/debian-packages")
    try:
        find_kernel(), find_busybox()
    except NotFound as missing:
        pytest.skip(f"{missing}; {missing.hint}")


@pytest.mark.qemu
@pytest.mark.netns
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("host")
def test_guests_move_by_stock_qemu_and_by_novacron_and_are_whole_on_arrival(
    tmp_path: Path,
) -> None:
    known = built_in_workloads()
    competitors = (*stock_competitors(), *nova_competitors())
    race = Race(
        links=[LinkFigures.parse("500mbit,10ms")],
        workloads=[pick_workload("writer:1", known)],
        entries=[
            Entry.parse(text, competitors)
            for text in ("multifd-zstd-tls", "compress", "novacron-tcp")
        ],
        all_workloads=known,
        runs=1,
        memory_mib=128,
        cutoff_s=120,
        keep=tmp_path / "logs",
    )
    told: list[str] = []
    rows = {row.entry: row for row in race.rows(set(), lambda key: told.append(key[2]))}
    assert told == ["multifd-zstd-tls/bbr", "compress/bbr", "novacron-tcp/bbr"]
    for entry in ("multifd-zstd-tls/bbr", "novacron-tcp/bbr"):
        row = rows[entry]
        assert (row.outcome, row.reason, row.intact, row.writes_lost) == ("moved", "", True, False)
        assert row.pause_s is not None
        assert 0 < row.pause_s < row.seconds
        assert row.there_bytes > 10_000_000 > row.back_bytes > 0
    # What this QEMU does not have is a row with its reason, and the rest goes on.
    if rows["compress/bbr"].outcome != "moved":
        assert "compress" in rows["compress/bbr"].reason
    ((_, measured, ratios, _),) = list(tables(summarise(rows.values())))
    assert len(measured) == 3
    assert len(ratios) >= 2
    # Nothing is left: neither a namespace nor a program that was started there.
    names = Path("/run/netns").iterdir() if Path("/run/netns").is_dir() else ()
    assert not [name for name in names if f"nvb{os.getpid() % 1_000_000}" in name.name]
