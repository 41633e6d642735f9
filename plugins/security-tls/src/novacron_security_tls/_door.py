"""The service that keeps the authority's office on a node. See `_office`."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from attrs import field, frozen
from attrs.validators import ge, le
from novacron import ConfigError, NovacronError, ProtocolError, TransportError

if TYPE_CHECKING:
    from novacron import Listener, Node, Stream

    from novacron_security_tls._office import Office

_log = logging.getLogger(__name__)

# Handshakes are dear, and anybody may ask for one at this door.
_AT_ONCE: Final = 8


@frozen(kw_only=True)
class OfficeSettings:
    """The section ``[service.authority]``: this node gives certificates.

    Attributes:
        enabled: Keep the office on this node.
        folder: The authority's folder, as ``novacron trust init --dir`` made it.
        listen: Where hosts with a token come to; empty for renewals alone.
        life_h: How long certificates live, in hours. Nodes renew theirs after two thirds of it.
    """

    enabled: bool = False
    folder: str = ""
    listen: str = ""
    life_h: int = field(default=24, validator=[ge(24), le(366 * 24)])

    def life(self) -> timedelta:
        return timedelta(hours=self.life_h)


class AuthorityService:
    """The service ``authority``."""

    name: ClassVar[str] = "authority"
    Settings: ClassVar[type] = OfficeSettings

    def __init__(self, settings: OfficeSettings, node: Node) -> None:
        self._settings = settings
        self._node = node
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._turns = threading.Semaphore(_AT_ONCE)
        self.address = ""

    async def start(self) -> None:
        from novacron_security_tls._authority import Authority
        from novacron_security_tls._office import RENEWAL, Office
        from novacron_security_tls._provider import TlsSecurity

        settings, security = self._settings, self._node.provider("security")
        if not isinstance(security, TlsSecurity):
            raise ConfigError(
                "[service.authority] works for nodes that the provider 'tls' protects",
                hint='choose security = "tls"',
            )
        authority = Authority.open(_folder(settings))
        if security.current_trust().ca != authority.certificate:
            raise ConfigError(
                f"the authority in {settings.folder} is not the one that this node trusts",
                hint="enrol the node with that authority",
            )
        office = Office(authority, settings.life())
        self._node.channels.serve(RENEWAL, office.renew)
        if settings.listen:
            self._listener = listener = self._node.provider("transport").listen(settings.listen)
            self.address = listener.address
            self._thread = threading.Thread(
                target=self._accept, args=(listener, office, security), name="office", daemon=True
            )
            self._thread.start()
            _log.warning("hosts with a token are enrolled at %s", self.address)

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _accept(self, listener: Listener, office: Office, security: Any) -> None:
        while True:
            try:
                stream = listener.accept()
            except TransportError:
                return
            if not self._turns.acquire(blocking=False):
                stream.close()
                continue
            threading.Thread(
                target=self._serve, args=(stream, office, security), name="enrol", daemon=True
            ).start()

    def _serve(self, stream: Stream, office: Office, security: Any) -> None:
        from OpenSSL import SSL

        from novacron_security_tls._office import TIMEOUT_S, receive_stranger
        from novacron_security_tls._tls import deadline

        try:
            with deadline(stream, TIMEOUT_S):
                office.enrol(receive_stranger(stream, security.current_trust()))
        except (NovacronError, ProtocolError, SSL.Error, OSError) as error:
            _log.warning("%s was not enrolled: %s", stream.peer_address, error)
        finally:
            stream.close()
            self._turns.release()


def _folder(settings: OfficeSettings) -> Path:
    if not settings.folder:
        raise ConfigError(
            "[service.authority] has no folder",
            hint="say where `novacron trust init --dir` made the authority",
        )
    return Path(settings.folder).expanduser()
