"""This log as one of those that the adaptive log chooses from."""

from __future__ import annotations

from typing import Final

from novacron_agreement import LogCore
from novacron_agreement.engines import EngineStart, LogEngine

from novacron_consensus_bft._core import BftCore, CoreSettings, Member


def _make(start: EngineStart) -> LogCore:
    members = [Member(name, start.keys[name], address) for name, address in start.members.items()]
    settings = CoreSettings(
        cluster=start.cluster,
        view_timeout_ms=20 * start.round_trip_ms,
        retry_ms=4 * start.round_trip_ms,
        status_ms=25 * start.round_trip_ms,
    )
    return BftCore(
        start.name,
        members,
        start.records,
        settings,
        start.rng,
        signer=start.signer,
        verifier=start.verifier,
    )


ENGINE: Final = LogEngine(name="bft", survives="lies", members_min=4, make=_make)
