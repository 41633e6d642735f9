"""Logs by name, for who chooses among them: what a log's plugin says of itself.

A plugin offers its engines by the hook ``novacron_register_log_engines``, which the adaptive log
declares; no plugin has to import another for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from attrs import frozen

from novacron_agreement.effects import LogCore


class Signer(Protocol):
    """Signs with one member's key."""

    @property
    def public_key(self) -> bytes:
        """With its scheme: ``ed25519:…``."""
        ...

    def sign(self, statement: bytes) -> bytes: ...


class Verifier(Protocol):
    """Checks signatures of the schemes that it knows."""

    def verify(self, public_key: bytes, statement: bytes, signature: bytes) -> bool:
        """Whether it is sound; False for an unknown scheme or a malformed key, too."""
        ...

    def signature_bytes(self, public_key: bytes) -> int:
        """How long signatures by this key are at most. Raises ValueError for an unknown scheme."""
        ...


@frozen(kw_only=True)
class EngineStart:
    """What a core is made from, whatever its protocol.

    Attributes:
        name: This member.
        members: Those that the log begins with, and their addresses; on all members the same.
        keys: Their public keys; an engine that survives only crashes needs none.
        records: The durable records read back, none at the very beginning.
        cluster: A name that no other log has: messages and records of others are refused by it.
        round_trip_ms: About how long a message and its answer take between members; timeouts are
            made from it. On all members the same.
        rng: A seeded ``random.Random``.
    """

    name: str
    members: Mapping[str, str]
    keys: Mapping[str, bytes]
    records: Sequence[bytes]
    cluster: str
    round_trip_ms: int
    rng: Any
    signer: Signer
    verifier: Verifier


@frozen(kw_only=True)
class LogEngine:
    """One kind of replicated log.

    Attributes:
        name: By which it is chosen.
        survives: What its members may do: be away (``crashes``), or also lie (``lies``).
        members_min: With fewer members than that it survives nothing.
        make: Raises what the engine raises for records that are not its own.
    """

    name: str
    survives: Literal["crashes", "lies"]
    members_min: int
    make: Callable[[EngineStart], LogCore]
