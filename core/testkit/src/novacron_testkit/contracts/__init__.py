"""The laws of each domain as test classes. Subclass one and pytest finds its tests:

    class TestMyCodec(CompressionContract):
        provider = MyCodec

No conftest, no fixtures of your own. Override `Contract.make` if ``Settings()`` will not do.
"""

from __future__ import annotations

from novacron_testkit.contracts import _rewrite
from novacron_testkit.contracts.compliance import ComplianceContract
from novacron_testkit.contracts.compression import CompressionContract
from novacron_testkit.contracts.consensus import ConsensusContract
from novacron_testkit.contracts.machine import MachineContract
from novacron_testkit.contracts.placement import PlacementContract
from novacron_testkit.contracts.security import SecurityContract, TrustSetup
from novacron_testkit.contracts.support import Contract
from novacron_testkit.contracts.transport import TransportContract

CONTRACTS: dict[str, type[Contract]] = {
    "machine": MachineContract,
    "compression": CompressionContract,
    "security": SecurityContract,
    "transport": TransportContract,
    "consensus": ConsensusContract,
    "placement": PlacementContract,
    "compliance": ComplianceContract,
}

# What a generated subclass cannot guess: a plugin in these domains brings its own contract module.
NEEDS_FACTORY = frozenset({"machine", "security"})

assert _rewrite.NAMES

__all__ = [
    "CONTRACTS",
    "NEEDS_FACTORY",
    "ComplianceContract",
    "CompressionContract",
    "ConsensusContract",
    "Contract",
    "MachineContract",
    "PlacementContract",
    "SecurityContract",
    "TransportContract",
    "TrustSetup",
]
