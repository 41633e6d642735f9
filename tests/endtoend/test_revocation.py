"""A node that is revoked while a machine moves to it gets no further, and the machine runs on."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster, assert_never_two_ran, done, move
from novacron_security_tls import Authority
from waiting import until


@pytest.mark.slow
def test_a_move_to_a_node_that_is_revoked_meanwhile_ends_and_the_machine_runs_at_its_source(
    tmp_path: Path,
) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.create("vm", memory_mib=32, guest="kv", fill_bytes=8 << 20)
        operation = cluster.a.client.migrate("vm", "b", rate_bytes_per_s=100_000)
        until(lambda: copied(cluster, operation["id"]), 30)
        authority = Authority.open(tmp_path / "authority")
        authority.revoke("b")
        authority.publish(cluster.a.state_dir)
        ended = cluster.a.client.wait(operation["id"])
        assert ended["state"] == "failed"
        assert "revoked" in ended["error"]["message"]
        assert cluster.a.client.machine("vm")["state"] == "running"
        # Issued anew, it may have the machine after all.
        authority.issue("b", cluster.b.state_dir)
        move(cluster.a, cluster.b, "vm")
        assert_never_two_ran(cluster.runs_log)


@pytest.mark.slow
def test_certificates_are_renewed_in_the_middle_of_a_move_and_nothing_is_sent_twice(
    tmp_path: Path,
) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.create("vm", memory_mib=32, guest="kv", fill_bytes=8 << 20)
        operation = cluster.a.client.migrate("vm", "b", rate_bytes_per_s=400_000)
        until(lambda: copied(cluster, operation["id"]), 30)
        authority = Authority.open(tmp_path / "authority")
        for node in cluster.nodes.values():
            authority.issue(node.name, node.state_dir)
        cluster.a.client.adjust(operation["id"], rate_bytes_per_s=0)
        assert done(cluster.a, operation)["result"]["resent_bytes"] == 0


def copied(cluster: Cluster, operation: str) -> bool:
    return bool(cluster.a.client.operation(operation)["progress"].get("wire_bytes"))
