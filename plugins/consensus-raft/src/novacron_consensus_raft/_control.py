"""How commands reach the member in a node's process: a unix socket for the node's own user.

One request per connection: a line of JSON each way.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from attrs import field, frozen
from novacron import ConfigError, InternalError, NodeUnavailable, NovacronError
from novacron_agreement.control import Asker, ControlSocket, ask

from novacron_consensus_raft._backup import Backup
from novacron_consensus_raft._member import RaftMember, Step, encode
from novacron_consensus_raft._provider import Query, RaftRegister

if TYPE_CHECKING:
    from novacron import Node

SOCKET: Final = "control.sock"
REQUEST_BYTES_MAX: Final = 64 << 10
ANSWER_S: Final = 180.0


@frozen(kw_only=True)
class ControlSettings:
    """The section ``[service.cluster]``.

    Attributes:
        enabled: Whether ``novacron cluster`` works on this node.
    """

    enabled: bool = field(default=True)


class ControlService:
    """Serves ``novacron cluster`` while the node runs, if its register is this plugin's."""

    name: ClassVar[str] = "cluster"
    Settings: ClassVar[type] = ControlSettings

    def __init__(self, settings: Any, node: Node) -> None:
        register = node.register
        self._member = register.member if isinstance(register, RaftRegister) else None
        self._socket: ControlSocket | None = None
        if self._member is not None:
            path = self._member.folder / SOCKET
            self._socket = ControlSocket(path, self._asked, request_bytes_max=REQUEST_BYTES_MAX)

    async def start(self) -> None:
        if self._socket is not None:
            await self._socket.start()

    async def stop(self) -> None:
        if self._socket is not None:
            await self._socket.stop()

    async def _asked(self, line: bytes, asker: Asker) -> None:
        assert self._member is not None
        try:
            answer: dict[str, Any] = {"done": await _do(self._member, json.loads(line))}
        except NovacronError as error:
            answer = {"error": error.to_json() | {"exit_code": error.exit_code}}
        except (OSError, ValueError, TypeError, KeyError) as error:
            wrong = error if isinstance(error, OSError) else ConfigError(f"no request: {error!r}")
            answer = {"error": NovacronError(str(wrong)).to_json() | {"exit_code": 1}}
        await asker.tell(json.dumps(answer).encode())


async def _do(member: RaftMember, request: dict[str, Any]) -> Any:
    """One request of `novacron cluster`."""
    match request["do"]:
        case "status":
            return await member.status()
        case "init":
            names = [str(name) for name in request["members"]] or list(member.section.members)
            await member.begin(names or [member.name])
            return {"members": sorted(names or [member.name])}
        case "join":
            await member.join(str(request["via"]), str(request["address"]))
            return {"member": member.name}
        case "leave":
            return {"member": member.name, "aside": str(await member.leave())}
        case "remove":
            await member.step(Step("remove", str(request["member"])))
            return {"member": request["member"]}
        case "transfer":
            await member.step(Step("transfer", str(request["member"])))
            return {"leader": request["member"]}
        case "snapshot":
            path = Path(str(request["path"]))
            state = await member.ask("query", encode(Query("snapshot")))
            taken = datetime.now(UTC).isoformat(timespec="seconds")
            backup = Backup.of(member.section.cluster, taken, state)
            await asyncio.to_thread(backup.write, path)
            return {"path": str(path), "taken": taken, "bytes": len(state)}
        case "restore":
            backup = await asyncio.to_thread(Backup.read, Path(str(request["path"])))
            await member.restore(backup)
            return {"cluster": backup.cluster, "taken": backup.taken, "bytes": len(backup.state)}
        case other:
            raise ConfigError(f"there is no request {other!r}")


def call(state_dir: Path, **request: Any) -> Any:
    """Ask the node whose state folder this is.

    Raises: NodeUnavailable; or what the node answered, with its exit code.
    """
    path = state_dir / "consensus-raft" / SOCKET
    try:
        line = next(ask(path, json.dumps(request).encode(), ANSWER_S), b"")
    except OSError as error:
        raise NodeUnavailable(
            f"no node with the consensus provider raft answers at {path}: "
            f"{error.strerror or error}",
            hint='start it with `novacron node start`; its mode must have consensus = "raft"',
        ) from error
    if not line:
        raise NodeUnavailable("the node ended while it was asked", hint="look at its log")
    answer = json.loads(line)
    if "error" in answer:
        raise _Answered(answer["error"])
    return answer["done"]


class _Answered(InternalError):
    """An error that the node reported: its words, and its exit code."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"], hint=error["hint"], truth=error["truth"])
        self.code = error["code"]  # type: ignore[misc]
        self.exit_code = error["exit_code"]  # type: ignore[misc]
