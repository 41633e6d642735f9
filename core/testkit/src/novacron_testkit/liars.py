"""Members that do not keep to the protocol, for simulations of Byzantine faults.

A liar is an honest member whose messages are not what it would say: `Simulator.lie` puts one
between a node and the network. It cannot send in another's name (a link is authenticated), but it
may repeat to anyone what anyone has said, and say different things to different members.

    def twisted(message, rng):                 # knows the protocol: returns another sound message
        return encode(Vote(decode(message).view, block=rng.randbytes(32)))

    sim.lie("d", Liar(sim, "d", forge=twisted, equivocate=0.2, withhold=0.1, replay=0.1))
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from novacron_testkit.simulator import Simulator

Forge = Callable[[Any, random.Random], Any]


class Liar:
    """What becomes of one node's messages. See the module.

    Args:
        forge: Makes another message of one; whatever it has to sign, it can sign only as the liar.
            None if it cannot.
        equivocate: How likely a message is exchanged for a forged one, for each receiver anew.
        withhold: How likely a message is not sent.
        replay: How likely an old message is sent, besides.
        memory: How many old messages it keeps; `hears` adds those of others.
        still_lies: Whether it goes on when the faults are over; Byzantine members do.
    """

    def __init__(
        self,
        sim: Simulator,
        node: str,
        *,
        forge: Forge | None = None,
        equivocate: float = 0.0,
        withhold: float = 0.0,
        replay: float = 0.0,
        memory: int = 200,
        still_lies: bool = True,
    ) -> None:
        self._sim, self._node, self._forge = sim, node, forge
        self._equivocate, self._withhold, self._replay = equivocate, withhold, replay
        self._old: deque[Any] = deque(maxlen=memory)
        self._still_lies = still_lies

    def __call__(self, receiver: str, message: Any) -> Iterable[tuple[str, Any]]:
        """What it says instead of this message."""
        rng = self._sim.rng
        said: list[tuple[str, Any]] = []
        if not self._does("withhold", self._withhold):
            if self._forge is not None and self._does("equivocate", self._equivocate):
                message = self._forge(message, rng)
            self._old.append(message)
            said.append((receiver, message))
        if self._old and self._does("replay", self._replay):
            others = [node for node in self._sim.nodes if node != self._node]
            said.append((rng.choice(others), self._old[rng.randrange(len(self._old))]))
        return said

    def hears(self, message: Any) -> None:
        """Something that came to the node, which it may repeat to others."""
        self._old.append(message)

    def _does(self, kind: str, probability: float) -> bool:
        if self._still_lies and self._sim.quiet_now:
            return self._sim.rng.random() < probability
        return self._sim.strikes(kind, probability)
