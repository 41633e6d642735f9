"""The laws that every provider of this domain keeps, on a real etcd."""

from __future__ import annotations

from novacron_consensus_etcd.contract import EtcdContract


class TestEtcdRegister(EtcdContract):
    pass
