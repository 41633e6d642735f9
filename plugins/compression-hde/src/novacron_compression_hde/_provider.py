"""The provider ``hde``."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from novacron import CodecSession, Decoder, Encoder, NodeFacts

from novacron_compression_hde._decoder import HdeDecoder
from novacron_compression_hde._encoder import HdeEncoder
from novacron_compression_hde._settings import Settings
from novacron_compression_hde._store import FOLDER, ReferenceStore

log = logging.getLogger("novacron.compression.hde")


class HdeCompression:
    """Makes the encoders and decoders of a node, and keeps what they leave."""

    name: ClassVar[str] = "hde"
    Settings: ClassVar[type] = Settings

    def __init__(self, settings: Any, node: NodeFacts) -> None:
        self._settings: Settings = settings
        self.kept = ReferenceStore(node.state_dir / FOLDER, settings.store_bytes)
        self._adopt()

    def encoder(self, session: CodecSession) -> Encoder:
        return HdeEncoder(self._settings, self.kept, session)

    def decoder(self, session: CodecSession) -> Decoder:
        # Of this process too, sessions may have ended without a word.
        self._adopt()
        return HdeDecoder(self._settings, self.kept, session)

    def _adopt(self) -> None:
        try:
            for name in self.kept.adopt():
                log.info("adopted what an interrupted migration left as reference %s", name)
        except OSError as error:
            log.warning("what interrupted migrations left cannot be adopted: %s", error)
