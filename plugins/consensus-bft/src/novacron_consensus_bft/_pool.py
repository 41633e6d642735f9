"""Requests that are not done yet, each origin within bounds of its own.

Whoever holds a request expects the leader to serve it in time, and gives the view up otherwise: a
leader cannot leave one member's requests out for ever. A member that floods fills only its share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from attrs import define

from novacron_consensus_bft._wire import Request


@define
class Waiting:
    """A request and since when it is here.

    Attributes:
        since_ms: When it came.
        passed_on: The view in which it was last handed to the leader; -1: in none.
    """

    request: Request
    since_ms: int
    passed_on: int = -1


@define
class _Share:
    epoch: int
    waiting: dict[int, Waiting]
    bytes: int = 0


class Pool:
    """See the module.

    Args:
        share_bytes: What one origin's waiting commands may take.
    """

    def __init__(self, share_bytes: int) -> None:
        self._share_bytes = share_bytes
        self._shares: dict[str, _Share] = {}

    def __iter__(self) -> Iterator[Waiting]:
        for share in self._shares.values():
            yield from share.waiting.values()

    def __len__(self) -> int:
        return sum(len(share.waiting) for share in self._shares.values())

    def get(self, key: tuple[str, int, int]) -> Waiting | None:
        origin, epoch, number = key
        share = self._shares.get(origin)
        return share.waiting.get(number) if share and share.epoch == epoch else None

    def has_room(self, request: Request) -> bool:
        share = self._shares.get(request.origin)
        if share is None or share.epoch < request.epoch:
            return True
        if share.epoch > request.epoch:
            return False
        return not share.waiting or share.bytes + len(request.command) <= self._share_bytes

    def add(self, request: Request, now_ms: int) -> bool:
        """Whether it was taken: there was room, and none with its number."""
        if not self.has_room(request):
            return False
        share = self._shares.get(request.origin)
        if share is None or share.epoch < request.epoch:
            share = self._shares[request.origin] = _Share(request.epoch, {})
        if request.number in share.waiting:
            return False
        share.waiting[request.number] = Waiting(request, now_ms)
        share.bytes += len(request.command)
        return True

    def prune(self, useless: Callable[[Request], bool]) -> list[Request]:
        """Remove and return those that can not be done any more, or are done."""
        gone: list[Request] = []
        for origin, share in list(self._shares.items()):
            for number, waiting in list(share.waiting.items()):
                if useless(waiting.request):
                    del share.waiting[number]
                    share.bytes -= len(waiting.request.command)
                    gone.append(waiting.request)
            if not share.waiting:
                del self._shares[origin]
        return gone

    def remove(self, key: tuple[str, int, int]) -> None:
        origin, epoch, number = key
        share = self._shares.get(origin)
        if share is None or share.epoch != epoch:
            return
        waiting = share.waiting.pop(number, None)
        if waiting is not None:
            share.bytes -= len(waiting.request.command)
        if not share.waiting:
            del self._shares[origin]

    def oldest_ms(self) -> int | None:
        """Since when the oldest one waits."""
        return min((waiting.since_ms for waiting in self), default=None)

    def take(
        self, count: int, size: int, skip: Callable[[tuple[str, int, int]], bool]
    ) -> list[Request]:
        """What the next block holds: in turn from each origin, the lowest number first.

        Args:
            size: Bytes of commands at the most; the first one is taken however long it is.
            skip: Says of a request's key that it is in a block already.
        """
        queues = deque(
            deque(share.waiting[number].request for number in sorted(share.waiting))
            for _, share in sorted(self._shares.items())
        )
        found: list[Request] = []
        taken = 0
        while queues and len(found) < count:
            queue = queues.popleft()
            while queue and skip(queue[0].key):
                queue.popleft()
            if not queue:
                continue
            request = queue.popleft()
            weight = len(request.command) + len(request.signature) + len(request.origin) + 64
            if found and taken + weight > size:
                break
            found.append(request)
            taken += weight
            queues.append(queue)
        return found
