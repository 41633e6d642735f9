"""Replicated logs that other plugins offer, for strong reads and writes."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Sequence
from typing import Final

from novacron import ConfigError, PluginManager
from novacron_agreement import LogCore
from novacron_agreement.engines import EngineStart, LogEngine

from novacron_consensus_state._member import LogFactory

# By which plugins offer replicated logs; see `novacron_agreement.engines`.
HOOK: Final = "novacron_register_log_engines"


class _NoKeys:
    """For logs whose members trust each other, and that sign nothing."""

    public_key = b""

    def sign(self, statement: bytes) -> bytes:
        raise ValueError("there are no keys")

    def verify(self, public_key: bytes, statement: bytes, signature: bytes) -> bool:
        return False

    def signature_bytes(self, public_key: bytes) -> int:
        raise ValueError("there are no keys")


def log_named(manager: PluginManager, name: str) -> LogEngine:
    """The log that a plugin offers by that name. Raises ConfigError."""
    offered: dict[str, LogEngine] = {}
    with contextlib.suppress(AttributeError):  # no plugin knows the hook
        for plugin, found, error in manager.call(HOOK):
            if error is not None:
                raise ConfigError(f"the plugin {plugin!r} offers no log: {error}") from error
            offered.update((engine.name, engine) for engine in found or ())
    engine = offered.get(name)
    if engine is None or engine.survives != "crashes":
        fit = sorted(other for other, one in offered.items() if one.survives == "crashes")
        raise ConfigError(
            f"no plugin offers the replicated log {name!r:.40} for members that trust each other",
            hint=f"[service.state] log is one of: {', '.join(fit) or 'none; install one'}",
        )
    return engine


def log_factory(
    engine: LogEngine, name: str, members: Sequence[str], cluster: str, round_trip_ms: int
) -> LogFactory:
    """What makes a node's member of a log, of its records."""

    def make(records: Sequence[bytes]) -> LogCore:
        no_keys = _NoKeys()
        return engine.make(
            EngineStart(
                name=name,
                members=dict.fromkeys(members, ""),
                keys={},
                records=records,
                cluster=cluster,
                round_trip_ms=round_trip_ms,
                # Drawn anew in each life, so that members do not stand for election in step.
                rng=random.Random(os.urandom(16)),
                signer=no_keys,
                verifier=no_keys,
            )
        )

    return make
