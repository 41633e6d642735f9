"""A client of a node's API, on nothing but the standard library."""

from __future__ import annotations

import contextlib
import http.client
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypedDict, Unpack
from urllib.parse import quote, urlencode

import msgspec
from novacron import (
    NodeUnavailable,
    NotFound,
    NovacronError,
    OperationEvent,
    PeerProtocolError,
)

from novacron_server._problems import MEDIA_TYPE, from_problem
from novacron_server._sockets import connect

ANSWER_BYTES_MAX: Final = 64 << 20
EVENT_LINE_BYTES_MAX: Final = 4 << 20
Json = dict[str, Any]


class MoveWish(TypedDict, total=False):
    """What a move may cost and how it is made; see `_models.Migrate`."""

    max_downtime_ms: int | None
    max_time_s: float | None
    max_bytes: int | None
    slow_guest: bool | None
    rate_bytes_per_s: int | None
    mode: str | None
    verify: str | None
    storage: str | None
    priority: int | None
    deadline_s: float | None


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("novacron", timeout=timeout_s)
        self.socket_path = path

    def connect(self) -> None:
        self.sock = connect(self.socket_path, self.timeout)


class Client:
    """Speaks to the node that listens at a unix socket. One thread uses it at a time.

    Every call raises the `NovacronError` that the node raised, and `NodeUnavailable` if nobody
    listens or the node ended before it answered.
    """

    def __init__(self, socket_path: Path, *, timeout_s: float = 30.0) -> None:
        self.socket_path = socket_path
        self.timeout_s = timeout_s
        self._connection: _Connection | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; the next call makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # The transport.

    def _request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        query: Mapping[str, str] | None = None,
    ) -> bytes:
        headers = {"Accept": "application/json"}
        content = None
        if body is not None:
            content = msgspec.json.encode(body)
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Idempotency-Key"] = key
        if query:
            path = f"{path}?{urlencode(query)}"
        # A kept connection may have been closed by the node since. What is safe to say twice (a
        # question, or a request with its key) is said again on a fresh one.
        repeatable = method == "GET" or key is not None
        for attempt in (1, 2):
            kept = self._connection is not None
            try:
                return self._exchange(method, path, content, headers)
            except (http.client.HTTPException, OSError) as error:
                self.close()
                if not (kept and repeatable and attempt == 1):
                    raise self._unavailable(error) from error
        raise AssertionError("unreachable")

    def _exchange(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str]
    ) -> bytes:
        if self._connection is None:
            self._connection = _Connection(self.socket_path, self.timeout_s)
        self._connection.request(method, path, body=content, headers=headers)
        response = self._connection.getresponse()
        answer = response.read(ANSWER_BYTES_MAX + 1)
        if len(answer) > ANSWER_BYTES_MAX:
            self.close()
            raise PeerProtocolError("the node's answer is too large", hint="ask for less")
        if response.status >= 400:
            raise _refusal(response, answer)
        return answer

    def _unavailable(self, error: Exception) -> NovacronError:
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            message = f"no node listens at {self.socket_path}"
            return NodeUnavailable(
                message, hint="start one with `novacron node start`", socket=str(self.socket_path)
            )
        if isinstance(error, PermissionError):
            return NodeUnavailable(
                f"the node at {self.socket_path} belongs to another user",
                hint="be the user that runs it",
                socket=str(self.socket_path),
            )
        if isinstance(error, TimeoutError):
            return NodeUnavailable(
                f"the node at {self.socket_path} gave no answer in {self.timeout_s:g} s",
                hint="look into the node's log",
                truth="what was asked may have been begun; see `novacron operation list`",
                socket=str(self.socket_path),
            )
        return NodeUnavailable(
            f"the node at {self.socket_path} broke off: {str(error) or type(error).__name__}",
            hint="see whether it runs: `novacron node status`",
            truth="what was asked may have been begun; see `novacron operation list`",
            socket=str(self.socket_path),
        )

    def _json(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        answer = self._request(method, path, body, **more)
        try:
            return msgspec.json.decode(answer)
        except msgspec.MsgspecError as error:
            raise PeerProtocolError(
                f"the node's answer to {method} {path} is no JSON: {error}",
                hint=f"is it a node that listens at {self.socket_path}?",
            ) from error

    # The node.

    def node(self) -> Json:
        """What the node is and does."""
        status: Json = self._json("GET", "/v1/node")
        return status

    def stop_node(self) -> None:
        """Ask the node to end; its machines go on."""
        self._request("POST", "/v1/node/stop")

    def peers(self) -> list[Json]:
        peers: list[Json] = self._json("GET", "/v1/peers")
        return peers

    def plugins(self) -> Json:
        plugins: Json = self._json("GET", "/v1/plugins")
        return plugins

    # Machines.

    def machines(self) -> list[Json]:
        machines: list[Json] = self._json("GET", "/v1/machines")
        return machines

    def machine(self, name: str) -> Json:
        machine: Json = self._json("GET", _machine(name))
        return machine

    def create(
        self,
        name: str,
        *,
        driver: str,
        memory_bytes: int,
        settings: Mapping[str, Any] | None = None,
        tenant: str = "",
        start: bool = True,
        key: str | None = None,
    ) -> Json:
        """Make a machine; the operation that does it."""
        body = {
            "name": name,
            "driver": driver,
            "memory_bytes": memory_bytes,
            "settings": settings or {},
            "tenant": tenant,
            "start": start,
        }
        return self._begin("POST", "/v1/machines", body, key)

    def start(self, name: str, *, key: str | None = None) -> Json:
        return self._begin("POST", _machine(name, "start"), None, key)

    def stop(self, name: str, *, key: str | None = None) -> Json:
        return self._begin("POST", _machine(name, "stop"), None, key)

    def pause(self, name: str, *, key: str | None = None) -> Json:
        return self._begin("POST", _machine(name, "pause"), None, key)

    def resume(self, name: str, *, key: str | None = None) -> Json:
        return self._begin("POST", _machine(name, "resume"), None, key)

    def delete(self, name: str, *, force: bool = False, key: str | None = None) -> Json:
        query = {"force": "true"} if force else None
        return self._begin("DELETE", _machine(name), None, key, query)

    def migrate(
        self, name: str, target: str, *, key: str | None = None, **wish: Unpack[MoveWish]
    ) -> Json:
        """Move a machine; the operation that does it."""
        return self._begin("POST", _machine(name, "migrate"), _move(target, wish), key)

    def plan(self, name: str, target: str, **wish: Unpack[MoveWish]) -> Json:
        """What a move would do, and all that stands in its way: ``blocked`` and ``obstacles``."""
        body = _move(target, wish) | {"dry_run": True}
        plan: Json = self._json("POST", _machine(name, "migrate"), body)
        return plan

    def _begin(
        self,
        method: str,
        path: str,
        body: Any,
        key: str | None,
        query: Mapping[str, str] | None = None,
    ) -> Json:
        operation: Json = self._json(
            method, path, body, key=key or secrets.token_hex(16), query=query
        )
        return operation

    def console_log(self, name: str, *, tail_bytes: int | None = None) -> bytes:
        """The end of what the machine's console has printed on this node."""
        query = {"tail_bytes": str(tail_bytes)} if tail_bytes is not None else None
        return self._request("GET", _machine(name, "console-log"), query=query)

    def console_socket(self) -> socket.socket:
        """A fresh connection to the node, for a websocket to `console_path`."""
        try:
            return connect(self.socket_path, self.timeout_s)
        except OSError as error:
            raise self._unavailable(error) from error

    # Operations.

    def operations(self, *, machine: str | None = None, state: str | None = None) -> list[Json]:
        query = {"machine": machine, "state": state}
        given = {name: value for name, value in query.items() if value is not None}
        operations: list[Json] = self._json("GET", "/v1/operations", query=given)
        return operations

    def begin(
        self,
        kind: str,
        machine: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
    ) -> Json:
        """Begin an operation of any kind; ``machine`` names the node where it concerns one."""
        body = {"kind": kind, "machine": machine, "parameters": dict(parameters or {})}
        return self._begin("POST", "/v1/operations", body, key)

    def operation(self, operation_id: str) -> Json:
        operation: Json = self._json("GET", _operation(operation_id))
        return operation

    def cancel(self, operation_id: str) -> Json:
        operation: Json = self._json("POST", _operation(operation_id, "cancel"))
        return operation

    def adjust(
        self, operation_id: str, *, rate_bytes_per_s: int | None = None, mode: str | None = None
    ) -> Json:
        """Change a migration under way; the operation."""
        given = {"rate_bytes_per_s": rate_bytes_per_s, "mode": mode}
        body = {name: value for name, value in given.items() if value is not None}
        operation: Json = self._json("PATCH", _operation(operation_id), body)
        return operation

    def events(
        self, operation_id: str, *, silence_s: float = 60.0, reconnects: int = 3
    ) -> Iterator[OperationEvent]:
        """The operation's events from the first that is kept, until it has ended.

        A broken stream is taken up again after its last event, ``reconnects`` times without an
        event between; then `NodeUnavailable` is raised.
        """
        last_id, tries = "", reconnects
        while True:
            connection = _Connection(self.socket_path, silence_s)
            headers = {"Accept": "text/event-stream"}
            if last_id:
                headers["Last-Event-ID"] = last_id
            try:
                connection.request("GET", _operation(operation_id, "events"), headers=headers)
                response = connection.getresponse()
                if response.status == 204:
                    return
                if response.status >= 400:
                    raise _refusal(response, response.read(ANSWER_BYTES_MAX))
                for event_id, event in _events(response):
                    last_id, tries = event_id, reconnects
                    yield event
                    if event.kind == "state":
                        return
            except FileNotFoundError as error:
                raise self._unavailable(error) from error
            except (http.client.HTTPException, OSError) as error:
                if tries == 0:
                    raise self._unavailable(error) from error
                tries -= 1
            else:
                # The stream ended without the operation having ended: the node is stopping.
                if tries == 0:
                    raise self._unavailable(ConnectionError("the node ended the stream"))
                tries -= 1
            finally:
                connection.close()

    def wait(self, operation_id: str) -> Json:
        """The operation once it has ended, however it did."""
        with contextlib.closing(self.events(operation_id)) as events:  # type: ignore[type-var]
            for _ in events:
                pass
        return self.operation(operation_id)


def console_path(name: str) -> str:
    """The resource of a machine's console, for a websocket."""
    return _machine(name, "console")


def _machine(name: str, action: str = "") -> str:
    return _resource("/v1/machines/", name, action)


def _operation(operation_id: str, action: str = "") -> str:
    return _resource("/v1/operations/", operation_id, action)


def _resource(base: str, name: str, action: str) -> str:
    # An empty name would name the whole collection, and dots another resource.
    if not name or name in (".", ".."):
        raise NotFound(f"there is nothing named {name!r}", hint="give its whole name")
    return base + quote(name, safe="") + (f"/{action}" if action else "")


def _move(target: str, wish: MoveWish) -> Json:
    return {"target": target} | {name: value for name, value in wish.items() if value is not None}


def _refusal(response: http.client.HTTPResponse, answer: bytes) -> NovacronError:
    if (response.getheader("Content-Type") or "").partition(";")[0] == MEDIA_TYPE:
        with contextlib.suppress(msgspec.MsgspecError):
            return from_problem(msgspec.json.decode(answer, type=dict[str, Any]))
    return PeerProtocolError(
        f"the node answered {response.status} without saying why: {answer[:200]!r}",
        hint="is it a node that listens there?",
    )


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, OperationEvent]]:
    fields: dict[str, str] = {}
    while line := response.readline(EVENT_LINE_BYTES_MAX + 1):
        if len(line) > EVENT_LINE_BYTES_MAX:
            raise PeerProtocolError("an event of the node is too large")
        text = line.decode(errors="replace").rstrip("\r\n")
        if text:
            name, _, value = text.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            try:
                event = msgspec.json.decode(fields["data"], type=OperationEvent)
            except msgspec.MsgspecError as error:
                raise PeerProtocolError(f"an event of the node cannot be read: {error}") from error
            yield fields.get("id", ""), event
        fields = {}
