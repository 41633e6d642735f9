"""The encoders or decoders that one session goes through, each made once."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Literal

from attrs import define, field
from novacron_dwcp import ProtocolError
from novacron_dwcp import messages as msg

from novacron.errors import NovacronError
from novacron.hookspecs.compression import CodecSession, Compression, Decoder, Encoder

if TYPE_CHECKING:
    from novacron.node import Node

log = logging.getLogger("novacron.session")


@define(eq=False)
class Codecs:
    """What a session encodes or decodes with.

    Attributes:
        first: The name of the codec that the copy begins with.
    """

    node: Node
    session: CodecSession
    first: str
    _made: dict[str, Any] = field(factory=dict, init=False)

    @classmethod
    def of(
        cls, node: Node, offer: msg.Offer, role: Literal["source", "destination"], first: str
    ) -> Codecs:
        session = CodecSession(
            session=offer.session,
            machine=offer.machine,
            driver=offer.driver,
            peer=offer.target if role == "source" else offer.source,
            tenant=offer.tenant,
            memory_bytes=offer.memory_bytes,
            role=role,
        )
        return cls(node, session, first)

    def _provider(self, name: str) -> Compression:
        provider: Compression = self.node.provider("compression", name)
        return provider

    async def encoder(self, name: str) -> Encoder:
        """The encoder of that name. Raises ConfigError if there is none."""
        if name not in self._made:
            make = self._provider(name).encoder
            self._made[name] = await asyncio.to_thread(make, self.session)
        made: Encoder = self._made[name]
        return made

    def decoder(self, name: str) -> Decoder:
        """The same for the other side; may be called by any thread, one at a time."""
        if name not in self._made:
            self._made[name] = self._provider(name).decoder(self.session)
        made: Decoder = self._made[name]
        return made

    async def peer_has(self, have: bytes) -> None:
        """Tell the first codec what the other side's says that it holds. Raises ProtocolError if
        that is not sound."""
        peer_has = getattr(self._made[self.first], "peer_has", None)
        if have and peer_has is not None:
            await asyncio.to_thread(peer_has, have)

    async def have(self) -> bytes:
        """What the first codec says that is held here; nothing if it cannot tell."""
        have = getattr(self._made[self.first], "have", None)
        if have is None:
            return b""
        try:
            said: bytes = await asyncio.to_thread(have)
        except (NovacronError, OSError) as error:
            log.error("session %s: what is held here: %s", self.session.session, error)
            return b""
        most = min(msg.HAVE_BYTES_MAX, self.session.memory_bytes // 100 + 1024)
        if len(said) > (most if self.session.role == "destination" else msg.ENCODER_HAVE_BYTES_MAX):
            raise ProtocolError(f"the codec {self.first!r} says {len(said)} bytes of what it has")
        return said

    async def ended(self, *, moved: bool) -> None:
        """Tell all of them how the session ended. Call it once; never raises."""
        for name, codec in self._made.items():
            if (ended := getattr(codec, "ended", None)) is None:
                continue
            try:
                await asyncio.to_thread(ended, moved)
            except (NovacronError, OSError) as error:
                log.error("session %s: the end of %s: %s", self.session.session, name, error)

    def figures(self) -> dict[str, Any]:
        """Bytes and seconds of each way of encoding, by codec."""
        return {
            name: dict(codec.figures())
            for name, codec in self._made.items()
            if hasattr(codec, "figures")
        }
