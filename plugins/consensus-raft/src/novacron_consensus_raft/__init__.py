"""The ownership register on a raft cluster of the nodes themselves (provider ``raft``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click
from novacron import OwnershipRegister, Service, hookimpl
from novacron_agreement.engines import LogEngine

from novacron_consensus_raft._cluster import cluster
from novacron_consensus_raft._configuration import Configuration, ConfigurationError
from novacron_consensus_raft._control import ControlService
from novacron_consensus_raft._core import PeerStatus, RaftCore, Status
from novacron_consensus_raft._engine import ENGINE
from novacron_consensus_raft._member import RaftError, RaftMember
from novacron_consensus_raft._provider import RaftRegister
from novacron_consensus_raft._records import RecordsError
from novacron_consensus_raft._settings import RaftSettings
from novacron_consensus_raft._toml import RaftSection

NOVACRON_API = 1

__all__ = [
    "NOVACRON_API",
    "Configuration",
    "ConfigurationError",
    "PeerStatus",
    "RaftCore",
    "RaftError",
    "RaftMember",
    "RaftRegister",
    "RaftSection",
    "RaftSettings",
    "RecordsError",
    "Status",
]


@hookimpl
def novacron_register_consensus() -> Sequence[type[OwnershipRegister]]:
    return [RaftRegister]


@hookimpl
def novacron_register_service() -> Sequence[type[Service]]:
    return [ControlService]


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    return [cluster]


@hookimpl(optionalhook=True)
def novacron_register_log_engines() -> Sequence[LogEngine]:
    return [ENGINE]


@hookimpl(optionalhook=True)
def novacron_register_simulations() -> Mapping[str, str]:
    here = "novacron_consensus_raft"
    return {
        "raft": f"{here}._simulation:RAFT",
        "ownership": f"{here}._simulation_ownership:OWNERSHIP",
    }
