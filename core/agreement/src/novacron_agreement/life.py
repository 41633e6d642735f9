"""What a driver needs: a core, where its records are durable, and what carries its messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from attrs import frozen

from novacron_agreement.machine import StateMachine

__all__ = ["Carrier", "Life", "Machine", "Store"]

Machine = TypeVar("Machine", bound=StateMachine)


class Store(Protocol):
    """Where a core's records are durable."""

    def append(self, records: Sequence[bytes]) -> None:
        """Add records; durable after the next `sync`. Raises OSError."""
        ...

    def replace(self, records: Sequence[bytes]) -> None:
        """Put records in the place of all, in one step. Durable on return. Raises OSError."""
        ...

    def sync(self) -> None:
        """Make durable what was added. Raises OSError; what was added is then in doubt."""
        ...

    def close(self) -> None: ...


class Carrier(Protocol):
    """What carries messages: `peers.Peers`, or a test's own."""

    def send(self, to: str, message: bytes) -> None: ...

    def know(self, addresses: dict[str, str]) -> None: ...

    def look_after(self) -> None: ...


@frozen
class Life(Generic[Machine]):
    """A core with its store and its empty state machine, made from what is durable."""

    core: Any  # a LogCore, and what its protocol offers beyond that
    store: Store
    machine: Machine
