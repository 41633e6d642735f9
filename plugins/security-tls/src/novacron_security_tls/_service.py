"""What a node does for its trust while it runs: it notices changes, acts, and passes them on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

from attrs import field, frozen
from attrs.validators import gt
from novacron import NovacronError, ProtocolError, Untrusted

from novacron_security_tls._spread import Spread

if TYPE_CHECKING:
    from novacron import Node

    from novacron_security_tls._provider import TlsSecurity

_log = logging.getLogger(__name__)

# Handshakes cost processor time on both sides: a large fleet is told in turns.
_TELLS_AT_ONCE: Final = 8
# After a renewal that failed, or did not help.
_RENEW_AGAIN_S: Final = 60.0


@frozen(kw_only=True)
class ServiceSettings:
    """The section ``[service.trust]``.

    Attributes:
        enabled: Watch over the trust of this node.
        watch_s: How often its files, and the ends of certificates, are looked at.
        renew_from: The peers that keep an office of the authority (``[service.authority]``), in the
            order in which they are asked to renew this node's certificate. None: nobody is asked.
        ask_s: How often each peer is asked whether it has a newer revocation list. A new one is
            told to all at once, so this is for peers that were away.
    """

    enabled: bool = True
    watch_s: float = field(default=0.25, validator=gt(0))
    renew_from: list[str] = field(factory=list)
    ask_s: float = field(default=60.0, validator=gt(0))


class TrustService:
    """The service ``trust``; idle where another provider than ``tls`` protects the node."""

    name: ClassVar[str] = "trust"
    Settings: ClassVar[type] = ServiceSettings

    def __init__(self, settings: ServiceSettings, node: Node) -> None:
        self._settings = settings
        self._node = node
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        from novacron_security_tls._provider import TlsSecurity

        security = self._node.provider("security")
        if isinstance(security, TlsSecurity):
            watcher = Watcher(security, self._settings, lambda: list(self._node.config.peers))
            self._task = asyncio.create_task(watcher.run(), name="trust")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


class Watcher:
    """Looks at a node's trust again and again, and tells the peers what is new.

    Args:
        peers: Their names, asked for each time.
    """

    def __init__(self, security: TlsSecurity, settings: ServiceSettings, peers: Any) -> None:
        self._security = security
        self._settings = settings
        self._peers = peers
        self._spread = Spread(settings.ask_s)
        self._tells: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(_TELLS_AT_ONCE)
        self._wake = asyncio.Event()
        self._renew_at_s = 0.0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()

        def heard(peer: str, number: int) -> None:
            loop.call_soon_threadsafe(self._heard, peer, number)

        self._security.on_list = heard
        try:
            while True:
                await asyncio.to_thread(self._security.review)
                await self._renew()
                self._tell()
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.watch_s):
                        await self._wake.wait()
        finally:
            self._security.on_list = lambda peer, number: None
            for task in self._tells:
                task.cancel()
            await asyncio.gather(*self._tells, return_exceptions=True)

    async def _renew(self) -> None:
        now_s = time.monotonic()
        offices = self._settings.renew_from
        try:
            if not offices or now_s < self._renew_at_s or not self._security.due():
                return
        except Untrusted:
            return  # too late: it must be enrolled again
        self._renew_at_s = now_s + _RENEW_AGAIN_S
        for peer in offices:
            try:
                await asyncio.to_thread(self._security.renew, peer)
            except (NovacronError, ProtocolError, OSError) as error:
                _log.warning("%s did not renew this node's certificate: %s", peer, error)
            else:
                return

    def _heard(self, peer: str, number: int) -> None:
        self._spread.heard(peer, number)
        self._wake.set()

    def _tell(self) -> None:
        try:
            number, _ = self._security.revocations()
        except Untrusted:
            return  # who is not trusted itself has nothing to say
        for peer in self._spread.due(time.monotonic(), number, self._peers()):
            task = asyncio.create_task(self._tell_one(peer))
            self._tells.add(task)
            task.add_done_callback(self._tells.discard)

    async def _tell_one(self, peer: str) -> None:
        try:
            async with self._turn:
                number = await asyncio.to_thread(self._security.tell, peer)
        except (NovacronError, ProtocolError, OSError) as error:
            _log.debug("%s was not told of revocations: %s", peer, error)
            self._spread.failed(time.monotonic(), peer)
        else:
            self._spread.done(time.monotonic(), peer, number)
