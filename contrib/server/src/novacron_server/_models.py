"""What the API takes and gives, typed. The OpenAPI document is made from these classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeVar

import msgspec
from attrs import field, frozen
from novacron import ConfigError, structure

T = TypeVar("T")

INTEGER_MAX: Final = (1 << 63) - 1
DEPTH_MAX: Final = 32
DOWNTIME_MS_MAX: Final = 3_600_000
TIME_S_MAX: Final = 30 * 86_400
KEY_CHARACTERS_MAX: Final = 200
PRIORITY_MAX: Final = 1000


# Requests: attrs, as all settings are, so that a wrong key or type is told in the same words.


@frozen(kw_only=True)
class CreateMachine:
    """A machine to make.

    Attributes:
        name: Unique among all nodes that may exchange machines; ``[a-z0-9][a-z0-9-]{0,62}``.
        driver: The machine provider's name.
        memory_bytes: What the guest may use.
        settings: The driver's own part.
        tenant: Whose it is; empty for nobody's.
        start: Start it at once.
    """

    name: str
    driver: str
    memory_bytes: int
    settings: dict[str, Any] = field(factory=dict)
    tenant: str = ""
    start: bool = True

    def parameters(self) -> dict[str, Any]:
        _within("memory_bytes", self.memory_bytes, INTEGER_MAX)
        return {
            "driver": self.driver,
            "memory_bytes": self.memory_bytes,
            "settings": self.settings,
            "tenant": self.tenant,
            "start": self.start,
        }


@frozen(kw_only=True)
class Migrate:
    """A move to another node.

    Attributes:
        target: The node to move to; ``auto`` lets placement choose.
        max_downtime_ms: The longest pause that the guest may feel; two and a half round trips and
            100 ms if left out.
        max_time_s: The move is given up when it has taken that long.
        max_bytes: The move is given up when it has sent that much.
        slow_guest: Slow the guest down when it writes faster than its memory leaves.
        rate_bytes_per_s: The most to send; no limit if left out.
        mode: ``datacenter``, ``hybrid`` or ``internet``; the node's own if left out.
        verify: ``stream``, or ``memory`` to compare the paused machine's whole memory too.
        storage: What becomes of its disks: ``copy``, they go along; ``shared``, both nodes reach
            them, which is proved; as the machine's settings say if left out.
        priority: Where moves share a link, higher goes first.
        deadline_s: When it should be over, from now; it is not given up then.
        dry_run: Only say what would happen, as a plan.
    """

    target: str
    max_downtime_ms: int | None = None
    max_time_s: float | None = None
    max_bytes: int | None = None
    slow_guest: bool | None = None
    rate_bytes_per_s: int | None = None
    mode: str | None = None
    verify: Literal["stream", "memory"] | None = None
    storage: Literal["copy", "shared"] | None = None
    priority: int | None = None
    deadline_s: float | None = None
    dry_run: bool = False

    def parameters(self) -> dict[str, Any]:
        _within("max_downtime_ms", self.max_downtime_ms, DOWNTIME_MS_MAX)
        _within("max_time_s", self.max_time_s, TIME_S_MAX)
        _within("max_bytes", self.max_bytes, INTEGER_MAX)
        _within("rate_bytes_per_s", self.rate_bytes_per_s, INTEGER_MAX)
        _within("deadline_s", self.deadline_s, TIME_S_MAX)
        if self.priority is not None and abs(self.priority) > PRIORITY_MAX:
            raise ConfigError(f"priority must be within {PRIORITY_MAX}", hint="correct the value")
        given = {
            "target": self.target,
            "max_downtime_ms": self.max_downtime_ms,
            "max_time_s": self.max_time_s,
            "max_bytes": self.max_bytes,
            "slow_guest": self.slow_guest,
            "rate_bytes_per_s": self.rate_bytes_per_s,
            "mode": self.mode,
            "verify": self.verify,
            "storage": self.storage,
            "priority": self.priority,
            "deadline_s": self.deadline_s,
        }
        return {name: value for name, value in given.items() if value is not None}


@frozen(kw_only=True)
class BeginOperation:
    """An operation of any kind: those of the kernel, and those that plugins add.

    Attributes:
        kind: Its name (``migrate``, or what a plugin calls its own).
        machine: The machine that it concerns, or the node.
        parameters: Of its kind.
    """

    kind: str
    machine: str
    parameters: dict[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class Adjust:
    """A change of a migration that is under way.

    Attributes:
        rate_bytes_per_s: The most to send from now on; 0 for no limit.
        mode: ``datacenter``, ``hybrid`` or ``internet``: go on with its providers.
    """

    rate_bytes_per_s: int | None = None
    mode: str | None = None

    def parameters(self) -> dict[str, Any]:
        if self.rate_bytes_per_s:
            _within("rate_bytes_per_s", self.rate_bytes_per_s, INTEGER_MAX)
        given = {"rate_bytes_per_s": self.rate_bytes_per_s, "mode": self.mode}
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            raise ConfigError("nothing is to be changed", hint="give rate_bytes_per_s or mode")
        return given


def _within(name: str, value: float | None, most: int) -> None:
    if value is not None and not 1 <= value <= most:
        raise ConfigError(f"{name} must be from 1 to {most}, not {value}", hint="correct the value")


def decode(cls: type[T], body: bytes) -> T:
    """The request in a body. Raises ConfigError that names what is wrong, and the nearest key."""
    try:
        values = msgspec.json.decode(body)
    except RecursionError:
        raise ConfigError("the body is nested too deeply", hint="flatten it") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"the body is no sound JSON: {error}", hint="send a JSON object") from (
            error
        )
    if not isinstance(values, dict):
        raise ConfigError("the body is no JSON object", hint="send a JSON object")
    _bounded(values)
    return structure(cls, values, "the request")


def _bounded(value: Any, depth: int = 0) -> None:
    """Refuse what could not be stored and given back as it came."""
    if depth > DEPTH_MAX:
        raise ConfigError(f"the body is nested deeper than {DEPTH_MAX} levels", hint="flatten it")
    if isinstance(value, dict):
        for key, below in value.items():
            _bounded(key, depth + 1)
            _bounded(below, depth + 1)
    elif isinstance(value, list):
        for below in value:
            _bounded(below, depth + 1)
    elif isinstance(value, int) and not -INTEGER_MAX <= value <= INTEGER_MAX:
        raise ConfigError("a number is beyond 64 bits", hint="use a smaller one")


# Answers: msgspec structs. The node gives JSON-like mappings; these are their contract.


class Machine(msgspec.Struct, kw_only=True):
    """A machine of this node.

    `owner` and `epoch` are what the ownership register says; `note` tells what an operator
    should know ("handed to beta, waiting …"); `facts` is the driver's own description.
    """

    name: str
    driver: str
    memory_bytes: int
    settings: dict[str, Any]
    state: str
    owner: str | None = None
    epoch: int | None = None
    note: str = ""
    facts: dict[str, Any] = {}


class NodeStatus(msgspec.Struct, kw_only=True):
    """What the node is and does.

    `providers` are those of its mode, by domain; `failures` tells of plugins that did not load.
    """

    node: str
    version: str
    mode: str
    profile: str
    providers: dict[str, str]
    listen: str
    state_dir: str
    started: str
    machines: int
    sessions: int
    plugins: list[str]
    failures: list[str]


class Peer(msgspec.Struct, kw_only=True):
    """Another node, and whether it answers; what it said and what was measured if it does."""

    name: str
    address: str
    reachable: bool
    round_trip_ms: float | None = None
    rate_bytes_per_s: float | None = None
    free_memory_bytes: int | None = None
    drivers: list[str] = []
    codecs: list[str] = []
    error: str | None = None


class Plugin(msgspec.Struct, kw_only=True):
    """A plugin that was loaded, and the hooks it answers."""

    name: str
    distribution: str
    version: str
    hooks: list[str]


class PluginFailure(msgspec.Struct, kw_only=True):
    """A plugin that could not be loaded: the cause and the cure."""

    name: str
    distribution: str
    cause: str
    cure: str


class Plugins(msgspec.Struct, kw_only=True):
    """The plugins of the node."""

    loaded: list[Plugin]
    failed: list[PluginFailure]


class ErrorMembers(msgspec.Struct, kw_only=True):
    """What an operation ended with."""

    code: str
    message: str
    hint: str
    truth: str
    facts: dict[str, Any]


class Operation(msgspec.Struct, kw_only=True):
    """A change of the world.

    `state` is running, succeeded, failed, cancelled or interrupted. The figures in `progress`
    have their units in their names.
    """

    id: str
    kind: str
    machine: str
    subject: str
    parameters: dict[str, Any]
    state: str
    phase: str
    progress: dict[str, Any]
    result: dict[str, Any]
    error: ErrorMembers | None
    began: str
    ended: str | None
    key: str


class Stopping(msgspec.Struct, kw_only=True):
    """The node is ending; its machines go on."""

    stopping: bool


class Problem(msgspec.Struct, kw_only=True):
    """A problem document (RFC 9457): what happened, what to do, and what is true now."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    hint: str
    truth: str
    facts: dict[str, Any]


def answer(cls: type[T], values: Mapping[str, Any]) -> T:
    """The node's mapping as the typed answer."""
    return msgspec.convert(
        msgspec.to_builtins(values, enc_hook=str, str_keys=True), cls, strict=False
    )
