"""One etcd for the tests that leave it alive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from novacron_consensus_etcd.local import LocalCluster, local_cluster, program


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    if program() is None:
        pytest.skip("etcd is not installed (scripts/debian-packages installs it)")
    with local_cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster
