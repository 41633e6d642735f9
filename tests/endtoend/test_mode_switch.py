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


INTERNET_ALONE = """
[modes.internet]
transport = "amst"
compression = "hde"
security = "tls"
consensus = "sqlite"
placement = "fit"
compliance = "local"
"""


@pytest.mark.slow
def test_a_link_that_calls_for_a_mode_that_is_not_configured_is_used_as_it_is(
    tmp_path: Path,
) -> None:
    cluster = Cluster(tmp_path, settings=INTERNET_ALONE)
    for node in cluster.nodes.values():  # without a profile, which would choose for all modes
        text = node.config_path.read_text()
        node.config_path.write_text(text.replace("[node]\n", '[node]\nprofile = "bare"\n', 1))
        with node.config_path.open("a") as file:
            file.write('\n[profiles.bare]\ndescription = "nothing chosen"\n')
    with cluster:
        cluster.create("vm", memory_mib=32, guest="kv", fill_bytes=8 << 20)
        # Slow enough for the link to be found to be a short one.
        move = cluster.a.client.migrate("vm", "b", rate_bytes_per_s=400_000)
        until(
            lambda: "stays as it is: no compression provider" in cluster.a.story(),
            60,
            cluster.a.story,
        )
        cluster.a.client.adjust(move["id"], rate_bytes_per_s=0)
        assert done(cluster.a, move)["result"]["node"] == "b"
