"""State as a service of the node, and the socket by which the command line asks it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec
from attrs import asdict, field, frozen
from novacron import ConfigError, NovacronError
from novacron_agreement.control import Asker, ControlSocket
from novacron_agreement.peers import Peers

from novacron_consensus_state import _kinds
from novacron_consensus_state._driver import StateDriver, StateRefused
from novacron_consensus_state._effects import Answer
from novacron_consensus_state._logs import log_factory, log_named
from novacron_consensus_state._member import LogFactory
from novacron_consensus_state._metrics import metrics, status
from novacron_consensus_state._replica import Level
from novacron_consensus_state._settings import ReplicaSettings

if TYPE_CHECKING:
    from novacron import Node, SecureStream

FOLDER: Final = "service-state"
SOCKET: Final = "state.sock"
PROTOCOL: Final = "state/1"
REQUEST_BYTES_MAX: Final = 1 << 20
WATCH_MAX: Final = 1_000


@frozen(kw_only=True)
class StateSettings:
    """The section ``[service.state]``.

    Attributes:
        enabled: Keep state. Off by default: it needs to know its members.
        cluster: The cluster's name; messages of another one are refused.
        members: Region by name, of all nodes that keep the state, this one among them. The same on
            all of them; their addresses stand in ``[peers]``.
        log: The replicated log for strong reads and writes, by the name that a plugin offers it
            under ("raft"); empty for none: strong requests then go to members that have one.
        log_members: Who takes part in the log; empty for all.
        round_trip_ms: About how long a message and its answer take between the log's members; its
            timeouts are made from it. On all members the same.
        probe_ms, patience_ms, silent_ms, history_bytes: See `ReplicaSettings`.
        repeat_ms: See `ReplicaSettings`; 0, since a node's streams lose nothing while they last.
    """

    enabled: bool = False
    cluster: str = "novacron"
    members: dict[str, str] = field(factory=dict)
    log: str = ""
    log_members: list[str] = field(factory=list)
    round_trip_ms: int = 100
    probe_ms: int = 500
    patience_ms: int = 60
    silent_ms: int = 2_500
    repeat_ms: int = 0
    history_bytes: int = 32 << 20

    def replica(self) -> ReplicaSettings:
        """Raises: ConfigError."""
        try:
            return ReplicaSettings(
                probe_ms=self.probe_ms,
                patience_ms=self.patience_ms,
                silent_ms=self.silent_ms,
                repeat_ms=self.repeat_ms,
                history_bytes=self.history_bytes,
            )
        except ValueError as error:
            raise ConfigError(f"[service.state] {error}") from error


class StateService:
    """Keeps the state on this node."""

    name: ClassVar[str] = "state"
    Settings: ClassVar[type] = StateSettings

    def __init__(self, settings: Any, node: Node) -> None:
        made: StateSettings = settings
        me, folder = node.facts.name, node.facts.state_dir / FOLDER
        if me not in made.members:
            raise ConfigError(
                f"[service.state] members does not name this node, {me!r}",
                hint=f'give the region of each: members = {{ {me} = "eu", … }}',
            )
        channels = node.facts.channels
        if channels is None:
            raise ConfigError("this node has no channels to other nodes")
        self.peers = Peers(
            lambda peer, address: channels.open(peer, PROTOCOL, address), self._deliver
        )
        self.driver = StateDriver(
            me,
            made.members,
            folder / "journal",
            made.replica(),
            made.cluster,
            self.peers,
            self._log(made, node),
        )
        channels.serve(PROTOCOL, self._serve)
        self._control = Control(self.driver, folder / SOCKET)

    def _log(self, settings: StateSettings, node: Node) -> LogFactory | None:
        if not settings.log:
            return None
        names = sorted(settings.log_members or settings.members)
        unknown = [name for name in names if name not in settings.members]
        if unknown:
            raise ConfigError(f"[service.state] log_members: {unknown[0]!r} is not in members")
        if node.facts.name not in names:
            return None
        engine = log_named(node.manager, settings.log)
        return log_factory(
            engine, node.facts.name, names, f"{settings.cluster}/state", settings.round_trip_ms
        )

    async def start(self) -> None:
        """Read the state and take part. Raises NovacronError or OSError; nothing runs then."""
        await asyncio.to_thread(self.driver.start)
        try:
            await self._control.start()
        except BaseException:
            await self._end()
            raise

    async def stop(self) -> None:
        """Twice is once."""
        await self._control.stop()
        await self._end()

    async def _end(self) -> None:
        await asyncio.to_thread(self.driver.stop)
        self.peers.close()

    def _serve(self, stream: SecureStream) -> None:
        self.peers.receive_from(stream.peer.node, stream)

    def _deliver(self, sender: str, message: bytes) -> None:
        self.driver.receive(sender, message)


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of JSON that asks the service.

    Attributes:
        do: ``read``, ``write``, ``watch``, ``status`` or ``metrics``.
        kind: Of the key; empty to read whatever there is of that name.
        token: Of the session, base64.
    """

    do: str
    name: str = ""
    kind: str = ""
    operation: str = ""
    values: list[Any] = []
    level: str = "eventual"
    token: str = ""
    expected: int | None = None
    max_staleness_s: float | None = None
    timeout_s: float = 5.0


class Control:
    """A unix socket that answers requests, one line of JSON each, with lines of JSON."""

    def __init__(self, driver: StateDriver, path: Path) -> None:
        self._driver = driver
        self._socket = ControlSocket(path, self._asked, request_bytes_max=REQUEST_BYTES_MAX)
        self.start, self.stop = self._socket.start, self._socket.stop

    async def _asked(self, line: bytes, asker: Asker) -> None:
        try:
            await self._answer(msgspec.json.decode(line, type=Request), asker)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            wrong = ConfigError(f"not a request: {error}")
            await _tell(asker, {"error": wrong.to_json()})
        except NovacronError as error:
            await _tell(asker, {"error": error.to_json()})

    async def _answer(self, ask: Request, asker: Asker) -> None:
        match ask.do:
            case "read":
                await _tell(asker, await self._read(ask))
            case "write":
                answer = await self._driver.write(
                    ask.name,
                    ask.kind,
                    ask.operation,
                    ask.values,
                    level=_level(ask.level),
                    token=_token(ask.token),
                    expected=ask.expected,
                    timeout_s=ask.timeout_s,
                )
                await _tell(asker, _told(answer))
            case "watch":
                await self._watch(ask, asker)
            case "status":
                told = await self._driver.inspect(status)
                notes = [(at, note.kind, note.detail) for at, note in self._driver.notes]
                counts = dict(self._driver.counts)
                await _tell(asker, told | {"counts": counts, "notes": notes})
            case "metrics":
                await _tell(asker, {"text": await self._driver.inspect(metrics)})
            case _:
                raise ConfigError(f"{ask.do!r:.40} is none of read, write, watch, status, metrics")

    async def _read(self, ask: Request) -> dict[str, Any]:
        kinds = [ask.kind] if ask.kind else await self._kinds_of(ask.name)
        if not kinds:
            # At the other levels there may be something elsewhere, which only its type finds.
            hint = f"name its --type to ask others for it: {', '.join(_kinds.KINDS)}"
            raise StateRefused(
                f"there is no key {ask.name!r:.60} here", hint=hint, reason="not-found"
            )
        found: dict[str, Any] = {}
        for kind in kinds:
            answer = await self._driver.read(
                ask.name,
                kind,
                level=_level(ask.level),
                token=_token(ask.token),
                max_staleness_s=ask.max_staleness_s,
                timeout_s=ask.timeout_s,
            )
            found[kind] = _told(answer)
        return {"name": ask.name, "kinds": found}

    async def _kinds_of(self, name: str) -> list[str]:
        return await self._driver.inspect(lambda replica, _: replica.store.kinds_of(name))

    async def _watch(self, ask: Request, asker: Asker) -> None:
        """The key's value now, and whenever it has changed."""
        loop = asyncio.get_running_loop()
        changes: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

        def changed(name: str, kind: str) -> None:
            if name == ask.name or (ask.name.endswith("*") and name.startswith(ask.name[:-1])):
                loop.call_soon_threadsafe(note, (name, kind))

        def note(key: tuple[str, str]) -> None:
            if changes.qsize() < WATCH_MAX:  # who does not read misses something
                changes.put_nowait(key)

        end = self._driver.watch(changed)
        try:
            for kind in await self._kinds_of(ask.name):
                changes.put_nowait((ask.name, kind))
            async with contextlib.aclosing(asker.until_it_goes(changes)) as changed_keys:
                async for name, kind in changed_keys:
                    answer = await self._driver.read(name, kind)
                    await _tell(asker, {"name": name, "kind": kind, "value": answer.value})
        finally:
            end()


def _level(name: str) -> Level:
    try:
        return Level(name)
    except ValueError:
        names = ", ".join(Level)
        raise ConfigError(f"there is no level {name!r:.40}", hint=f"one of {names}") from None


def _token(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ConfigError(f"not a session's token: {error}") from error


def _told(answer: Answer) -> dict[str, Any]:
    return asdict(answer) | {"token": base64.b64encode(answer.token).decode()}


def _plain(value: object) -> object:
    """What JSON has no form for."""
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(value).decode()
    raise NotImplementedError(type(value).__name__)


async def _tell(asker: Asker, value: Any) -> None:
    await asker.tell(msgspec.json.encode(value, enc_hook=_plain))
