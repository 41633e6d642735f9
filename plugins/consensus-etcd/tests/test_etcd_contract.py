"""The laws that every provider of this domain keeps, on a real etcd."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from novacron import NodeFacts
from novacron_consensus_etcd import EtcdRegister
from novacron_consensus_etcd.local import LocalCluster
from novacron_testkit.contracts import ConsensusContract


class TestEtcdRegister(ConsensusContract):
    provider = EtcdRegister
    cluster: LocalCluster

    @pytest.fixture(autouse=True)
    def _etcd(self, etcd: LocalCluster) -> None:
        self.cluster = etcd

    def make(self, tmp_path: Path, name: str = "a") -> Any:
        prefix = "/" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]
        settings = evolve(self.cluster.settings, prefix=prefix)
        return EtcdRegister(settings, NodeFacts(name=name, state_dir=tmp_path / name))
