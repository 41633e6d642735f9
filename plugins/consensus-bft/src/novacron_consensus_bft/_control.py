"""How commands look at the member in a node's process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from attrs import frozen
from novacron import NodeUnavailable
from novacron_agreement.control import Asker, ControlSocket, ask

from novacron_consensus_bft._provider import BftRegister
from novacron_consensus_bft._toml import FOLDER

if TYPE_CHECKING:
    from novacron import Node

SOCKET: Final = "control.sock"
REQUEST_BYTES_MAX: Final = 1024
ANSWER_S: Final = 30.0


@frozen(kw_only=True)
class ControlSettings:
    """The section ``[service.bft]``.

    Attributes:
        enabled: Whether ``novacron consensus status`` works on this node.
    """

    enabled: bool = True


class ControlService:
    """Serves ``novacron consensus status`` while the node runs, if its register is ``bft``."""

    name: ClassVar[str] = "bft"
    Settings: ClassVar[type] = ControlSettings

    def __init__(self, settings: Any, node: Node) -> None:
        self._socket: ControlSocket | None = None
        if isinstance(node.register, BftRegister):
            self._member = node.register.node
            path = self._member.folder / SOCKET
            self._socket = ControlSocket(path, self._answer, request_bytes_max=REQUEST_BYTES_MAX)

    async def start(self) -> None:
        if self._socket is not None:
            await self._socket.start()

    async def stop(self) -> None:
        if self._socket is not None:
            await self._socket.stop()

    async def _answer(self, _: bytes, asker: Asker) -> None:
        await asker.tell(json.dumps(await self._member.status()).encode())


def call(state_dir: Path) -> dict[str, Any]:
    """The status of the node whose state folder this is. Raises: NodeUnavailable."""
    path = state_dir / FOLDER / SOCKET
    try:
        line = next(ask(path, b"status", ANSWER_S), b"")
    except OSError as error:
        raise NodeUnavailable(
            f"no node with the consensus provider bft answers at {path}: {error.strerror or error}",
            hint='start it with `novacron node start`; its mode must have consensus = "bft"',
        ) from error
    if not line:
        raise NodeUnavailable("the node ended while it was asked", hint="look at its log")
    found: dict[str, Any] = json.loads(line)
    return found
