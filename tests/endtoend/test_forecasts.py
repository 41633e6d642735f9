"""A node foresees its moves, is right about them, and still knows it after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, RealNode, done

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("host")]

FILL_BYTES = 2 << 20
RATE = 2 << 20


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as made:
        made.create("vm", guest="kv", fill_bytes=FILL_BYTES)
        yield made


def there_and_back(cluster: Cluster) -> None:
    a, b = cluster.a, cluster.b
    for source, target in ((a, b), (b, a)):
        done(source, source.client.migrate("vm", target.name, rate_bytes_per_s=RATE))


def planned(node: RealNode) -> Any:
    return node.client.plan("vm", "b", rate_bytes_per_s=RATE)["estimate"]


def test_what_moves_have_shown_is_in_the_next_plan_and_survives_a_restart(
    cluster: Cluster,
) -> None:
    assert "as a rule" in planned(cluster.a)["reason"]
    there_and_back(cluster)
    estimate = planned(cluster.a)
    assert "the last 1 moves of vm" in estimate["reason"]
    low, middle, high = estimate["seconds"]
    assert low <= middle <= high

    cluster.a.stop()
    cluster.a.start()
    assert planned(cluster.a)["bytes"] == estimate["bytes"]

    told = cluster.novacron("a", "predict", "calibration")
    (moved,) = told["moves"]
    assert (moved["machine"], moved["target"]) == ("vm", "b")
    assert moved["bytes"] == pytest.approx(estimate["bytes"][1], rel=0.5)
