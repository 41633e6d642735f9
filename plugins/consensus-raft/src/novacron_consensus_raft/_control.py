"""How commands reach the member in a node's process: a unix socket for the node's own user.

One request per connection: a line of JSON each way. The socket is in a folder of mode 0700.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from attrs import field, frozen
from novacron import ConfigError, InternalError, NodeUnavailable, NovacronError

from novacron_consensus_raft._backup import Backup
from novacron_consensus_raft._member import RaftMember, Step, encode
from novacron_consensus_raft._provider import Query, RaftRegister

if TYPE_CHECKING:
    from novacron import Node

SOCKET: Final = "control.sock"
REQUEST_BYTES_MAX: Final = 64 << 10
ANSWER_S: Final = 180.0
_PATH_BYTES_MAX: Final = 107  # sun_path, without the ending zero


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
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        if self._member is None:
            return
        path = self._member.folder / SOCKET
        path.unlink(missing_ok=True)  # of a process that is dead: the node holds its lock
        with _reachable(path) as name:
            self._server = await asyncio.start_unix_server(
                self._serve, name, limit=REQUEST_BYTES_MAX
            )
        path.chmod(0o600)

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None and self._member is not None:
            server.close()
            (self._member.folder / SOCKET).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._member is not None
        try:
            request = json.loads(await reader.readuntil(b"\n"))
            answer: dict[str, Any] = {"done": await _do(self._member, request)}
        except NovacronError as error:
            answer = {"error": error.to_json() | {"exit_code": error.exit_code}}
        except (OSError, ValueError, TypeError, KeyError, asyncio.IncompleteReadError) as error:
            wrong = error if isinstance(error, OSError) else ConfigError(f"no request: {error!r}")
            answer = {"error": NovacronError(str(wrong)).to_json() | {"exit_code": 1}}
        with contextlib.suppress(OSError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()


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
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with connection:
        try:
            connection.settimeout(ANSWER_S)
            with _reachable(path) as name:
                connection.connect(name)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
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


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name for a path that a socket's address can hold, however deep it is."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
