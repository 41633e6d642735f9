"""What this plugin is held to, on a real etcd of its own; the tests and ``novacron plugins check``
run it. Needs the program etcd and the extra ``local``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import evolve
from novacron import NodeFacts
from novacron_testkit.contracts import ConsensusContract

from novacron_consensus_etcd._register import EtcdRegister
from novacron_consensus_etcd.local import LocalCluster, local_cluster, program


class EtcdContract(ConsensusContract):
    provider = EtcdRegister
    cluster: ClassVar[LocalCluster]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _etcd(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        if program() is None:
            pytest.skip("the program etcd is not installed")
        with local_cluster(tmp_path_factory.mktemp("etcd")) as cluster:
            cls.cluster = cluster
            yield

    def make(self, tmp_path: Path, name: str = "a") -> Any:
        prefix = "/" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]
        settings = evolve(self.cluster.settings, prefix=prefix)
        return EtcdRegister(settings, NodeFacts(name=name, state_dir=tmp_path / name))
