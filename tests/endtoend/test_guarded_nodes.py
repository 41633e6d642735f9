"""Real nodes that keep machines to attested hosts and shut peers out."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster, move

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("host")]
SETTINGS = '[attestation]\nmachines = ["secret*"]\n'


def test_a_machine_stays_off_hosts_that_are_not_attested_and_a_peer_in_quarantine_gets_nothing(
    tmp_path: Path,
) -> None:
    with Cluster(tmp_path, settings=SETTINGS) as cluster:
        cluster.create("secret")
        cluster.create("plain")
        ended = cluster.a.client.wait(cluster.a.client.migrate("secret", "b")["id"])
        assert ended["state"] == "failed"
        assert "secret may move to attested hosts only" in ended["error"]["message"]
        assert "[peer.not-attested]" in ended["error"]["message"]

        cluster.novacron("a", "threats", "quarantine", "b", "--reason", "found on a list")
        ended = cluster.a.client.wait(cluster.a.client.migrate("plain", "b")["id"])
        assert ended["state"] == "failed"
        assert "'b' is in quarantine" in ended["error"]["message"]
        # The other side gets nothing, either: not even a report.
        (seen,) = cluster.b.client.peers()
        assert not seen["reachable"]
        listed = cluster.novacron("a", "threats", "list")
        assert [one["identity"] for one in listed["quarantined"]] == ["b"]

        cluster.novacron("a", "threats", "release", "b")
        move(cluster.a, cluster.b, "plain")
