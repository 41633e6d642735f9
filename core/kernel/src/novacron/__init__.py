"""NovaCron moves running machines between sites over a wide-area network.

This is the kernel: hooks, loader, configuration, operations, the migration session and the node.
It names no plugin. What stands in ``__all__`` here is what plugins may use; everything else may
change without notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from novacron_dwcp import (
    ADDRESS_BYTES,
    BATCH_BYTES_MAX,
    BATCH_BYTES_TARGET,
    Batch,
    Buffer,
    Gauge,
    PathReading,
    ProtocolError,
    Steer,
    Steering,
)
from novacron_dwcp.effort import Effort

from novacron.config import Config, Profile, structure
from novacron.errors import (
    Cancelled,
    ConfigError,
    Conflict,
    Fenced,
    InternalError,
    MachineError,
    MigrationFailed,
    NodeUnavailable,
    NotFound,
    NovacronError,
    PeerProtocolError,
    PluginLoadError,
    Refusal,
    Refused,
    TransportError,
    Untrusted,
)
from novacron.hookspecs import DOMAINS
from novacron.hookspecs.command import Finding
from novacron.hookspecs.compliance import LogEntry, MigrationPlan, OperationLog, OperationRequest
from novacron.hookspecs.compression import CodecSession, Compression, Decoder, Encoder, Pressure
from novacron.hookspecs.consensus import Ownership, OwnershipRegister, check_record, fenced
from novacron.hookspecs.machine import (
    CopyProgress,
    Incoming,
    Machine,
    MachineDriver,
    MachineSpec,
    MachineState,
    MoveLimits,
    MoveWish,
    Obstacle,
    Outgoing,
)
from novacron.hookspecs.move import (
    MoveContext,
    MoveEstimate,
    MoveFacts,
    MoveNeed,
    OperationKind,
)
from novacron.hookspecs.node import Channels, NodeFacts, OperationEvent, Service
from novacron.hookspecs.placement import Choice, NodeReport, Placement
from novacron.hookspecs.security import Channel, Identity, SecureStream, Security
from novacron.hookspecs.transport import Listener, Stream, Transport
from novacron.loader import PluginManager, PluginSource
from novacron.markers import API_VERSION, hookimpl, hookspec
from novacron.operations import Operation, Operations, OperationState

if TYPE_CHECKING:
    from novacron.node import Node
    from novacron.shell import ShellState

__all__ = [
    "ADDRESS_BYTES", "API_VERSION", "BATCH_BYTES_MAX", "BATCH_BYTES_TARGET", "DOMAINS", "Batch",
    "Buffer", "Cancelled", "Channel", "Channels", "Choice", "CodecSession", "Compression", "Config",
    "ConfigError", "Conflict", "CopyProgress", "Decoder", "Effort", "Encoder", "Fenced", "Finding",
    "Gauge", "Identity", "Incoming", "InternalError", "Listener", "LogEntry", "Machine",
    "MachineDriver", "MachineError", "MachineSpec", "MachineState", "MigrationFailed",
    "MigrationPlan", "MoveContext", "MoveEstimate", "MoveFacts", "MoveLimits", "MoveNeed",
    "MoveWish", "Node", "NodeFacts", "NodeReport", "NodeUnavailable", "NotFound", "NovacronError",
    "Obstacle", "Operation", "OperationEvent", "OperationKind", "OperationLog", "OperationRequest",
    "OperationState", "Operations", "Outgoing", "Ownership", "OwnershipRegister", "PathReading",
    "PeerProtocolError", "Placement", "PluginLoadError", "PluginManager", "PluginSource",
    "Pressure", "Profile", "ProtocolError", "Refusal", "Refused", "SecureStream", "Security",
    "Service", "ShellState", "Steer", "Steering", "Stream", "Transport", "TransportError",
    "Untrusted", "check_record", "fenced", "hookimpl", "hookspec", "structure",
]  # fmt: skip


def __getattr__(name: str) -> object:
    # The node and the shell bring most of the kernel with them, which a codec need not load.
    if name == "Node":
        from novacron.node import Node

        return Node
    if name == "ShellState":
        from novacron.shell import ShellState

        return ShellState
    raise AttributeError(f"module 'novacron' has no attribute {name!r}")
