"""The ownership register in an etcd cluster (provider ``etcd``)."""

from __future__ import annotations

from collections.abc import Sequence

from novacron import OwnershipRegister, hookimpl

from novacron_consensus_etcd._errors import EtcdError
from novacron_consensus_etcd._register import EtcdRegister
from novacron_consensus_etcd._settings import EtcdSettings

NOVACRON_API = 1

__all__ = ["NOVACRON_API", "EtcdError", "EtcdRegister", "EtcdSettings"]


@hookimpl
def novacron_register_consensus() -> Sequence[type[OwnershipRegister]]:
    return [EtcdRegister]
