"""Raft: a replicated log whose members crash and come back, without I/O."""

from __future__ import annotations

from novacron_consensus_raft._configuration import Configuration, ConfigurationError
from novacron_consensus_raft._core import PeerStatus, RaftCore, Status
from novacron_consensus_raft._logfile import LogDamaged, LogFile
from novacron_consensus_raft._records import RecordsError
from novacron_consensus_raft._settings import RaftSettings

NOVACRON_API = 1

__all__ = [
    "NOVACRON_API",
    "Configuration",
    "ConfigurationError",
    "LogDamaged",
    "LogFile",
    "PeerStatus",
    "RaftCore",
    "RaftSettings",
    "RecordsError",
    "Status",
]
