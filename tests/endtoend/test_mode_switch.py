"""A move goes over to the providers of another mode while it runs, and loses nothing by it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster, assert_never_two_ran, done
from waiting import until

SWITCHES = 100
FILL_MIB = 24
SLOW = 100_000
MODES = """
[use]
security = "tls"

[modes.datacenter]
transport = "tcp"
compression = "zstd"

[modes.hybrid]
transport = "amst"
compression = "hde"

[modes.internet]
transport = "amst"
compression = "hde"
"""


def copied(cluster: Cluster, operation: str) -> int:
    progress = cluster.a.client.operation(operation)["progress"]
    return int(progress.get("wire_bytes") or 0)


@pytest.mark.slow
def test_a_move_whose_mode_is_switched_a_hundred_times_loses_nothing(tmp_path: Path) -> None:
    with Cluster(tmp_path, settings=MODES) as cluster:
        cluster.create("vm", memory_mib=64, guest="kv", fill_bytes=FILL_MIB << 20)
        move = cluster.a.client.migrate("vm", "b", rate_bytes_per_s=SLOW, verify="memory")
        until(lambda: copied(cluster, move["id"]), 30)
        for number in range(SWITCHES):
            mode = ("datacenter", "internet")[number % 2]
            shown = cluster.a.client.adjust(move["id"], mode=mode)
            assert shown["progress"]["mode"] == mode
        cluster.a.client.adjust(move["id"], rate_bytes_per_s=0)
        result = done(cluster.a, move)["result"]
        assert result["node"] == "b"
        assert result["resent_bytes"] == 0
        assert_never_two_ran(cluster.runs_log)
