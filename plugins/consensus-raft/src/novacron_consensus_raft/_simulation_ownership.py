"""The ownership of machines, simulated over raft: hand-overs, leases, partitions."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

from novacron_testkit.ownership import ownership_simulation

from novacron_consensus_raft._core import RaftCore
from novacron_consensus_raft._settings import RaftSettings

SETTINGS: Final = RaftSettings(cluster="sim", heartbeat_ms=80, election_ms=350)


def _member(
    name: str, members: Mapping[str, str], records: list[bytes], rng: random.Random
) -> RaftCore:
    return RaftCore(name, members, records, SETTINGS, rng)


OWNERSHIP: Final = ownership_simulation("ownership", _member)
