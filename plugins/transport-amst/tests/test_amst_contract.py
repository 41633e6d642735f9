"""The AMST transport keeps the laws of all transports."""

from __future__ import annotations

from novacron_testkit.contracts.transport import TransportContract
from novacron_transport_amst import AmstTransport


class TestAmst(TransportContract):
    provider = AmstTransport
