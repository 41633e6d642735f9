"""What is simulated: the part of a simulation that its author writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from novacron_testkit.simulator import Simulator


class Crash(Exception):
    """A process ends here. Raised through the world's code into the simulator; do not catch it."""

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self.node = node


class NoProgress(AssertionError):
    """The faults were over and the world did not get done."""


class World:
    """What is simulated. Override `boot` and `deliver`, and the others if you need them."""

    sim: Simulator

    def boot(self, node: str) -> None:
        """A process begins, for the first time or after a crash: only durable things are left."""

    def deliver(self, src: str, dst: str, message: Any) -> None:
        """A message arrives at a process that is up."""

    def link(self, a: str, b: str, up: bool) -> None:
        """A link was cut or has healed: an event of its own, so never in the midst of a send.

        Real transports tell this late or never; `Simulator.is_up` says whose process still hears.
        """

    def crashed(self, node: str) -> None:
        """A process has ended: drop its volatile state, and whatever dies with it."""

    def check(self) -> None:
        """Assert what must hold after every event."""
