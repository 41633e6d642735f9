"""Raft as one of the logs that the adaptive log chooses from."""

from __future__ import annotations

from typing import Final

from novacron_agreement import LogCore
from novacron_agreement.engines import EngineStart, LogEngine

from novacron_consensus_raft._core import RaftCore
from novacron_consensus_raft._settings import RaftSettings


def _make(start: EngineStart) -> LogCore:
    settings = RaftSettings(
        cluster=start.cluster,
        heartbeat_ms=2 * start.round_trip_ms,
        election_ms=12 * start.round_trip_ms,
    )
    return RaftCore(start.name, start.members, start.records, settings, start.rng)


ENGINE: Final = LogEngine(name="raft", survives="crashes", members_min=3, make=_make)
