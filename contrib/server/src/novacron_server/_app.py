"""The resources of the API, as a litestar application."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import inspect
import secrets
import socket as sockets
from collections.abc import AsyncIterator, Generator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import msgspec
from litestar import (
    Controller,
    Litestar,
    MediaType,
    Request,
    Response,
    WebSocket,
    delete,
    get,
    patch,
    post,
    websocket,
)
from litestar.datastructures import State
from litestar.dto import AbstractDTO
from litestar.enums import ParamType
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    WebSocketDisconnect,
    WebSocketException,
)
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.params import HeaderParameter, JSONBody, PathParameter, QueryParameter
from litestar.response import Stream
from litestar.status_codes import HTTP_200_OK, HTTP_202_ACCEPTED, HTTP_413_REQUEST_ENTITY_TOO_LARGE
from novacron import (
    ConfigError,
    NotFound,
    NovacronError,
    OperationEvent,
    OperationRequest,
    OperationState,
)
from novacron import Operation as NodeOperation

from novacron_server import _models as models
from novacron_server import _plan as planning
from novacron_server import _problems as problems
from novacron_server._host import Host
from novacron_server._settings import ApiSettings
from novacron_server._sockets import connect

LOG_TAIL_BYTES_MAX: Final = 1 << 20
LOG_TAIL_BYTES: Final = 64 << 10
# What a console may print while its watcher does not read. A guest must never wait for one.
CONSOLE_BACKLOG_BYTES_MAX: Final = 1 << 20
_CHUNK: Final = 64 << 10

AppRequest = Request[Any, Any, State]


class Shared:
    """What the routes of one running API share."""

    def __init__(self, node: Host, settings: ApiSettings) -> None:
        self.node = node
        self.settings = settings
        self.closing = asyncio.Event()
        self.streams = 0
        # Sequence numbers of an operation begin anew when the node does, so an event's id says
        # which run of the node numbered it.
        self.run = secrets.token_hex(4)

    def need_room(self) -> None:
        """Raises Busy if no more long-lived streams may be opened."""
        if self.streams >= self.settings.max_streams:
            raise problems.Busy(
                f"{self.streams} streams are open already",
                hint="close some, or raise [service.api] max_streams",
            )

    @contextlib.contextmanager
    def stream(self) -> Generator[None, None, None]:
        """Count a long-lived stream."""
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1


def _shared(connection: AppRequest | WebSocket[Any, Any, State]) -> Shared:
    shared: Shared = connection.app.state.shared
    return shared


def _subject(request: AppRequest) -> str:
    return request.client.host if request.client else "local"


class _Body(AbstractDTO[Any]):
    """Reads a body strictly: litestar alone would drop unknown keys and take "1" for 1."""

    model: ClassVar[type]

    def decode_bytes(self, value: bytes) -> Any:
        return models.decode(self.model, value)

    @classmethod
    def create_for_field_definition(cls, *arguments: Any, **named: Any) -> None:
        """Nothing to generate: the model is the class itself."""

    @classmethod
    def create_openapi_schema(
        cls, field_definition: Any, handler_id: str, schema_creator: Any
    ) -> Any:
        return schema_creator.for_field_definition(field_definition)

    @classmethod
    def is_supported_model_type_field(cls, field_definition: Any) -> bool:
        return bool(field_definition.annotation is cls.model)

    @classmethod
    def generate_field_definitions(cls, model_type: type) -> Generator[Any, None, None]:
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: Any) -> bool:
        return False


class CreateMachineBody(_Body):
    model = models.CreateMachine


class MigrateBody(_Body):
    model = models.Migrate


class BeginBody(_Body):
    model = models.BeginOperation


class AdjustBody(_Body):
    model = models.Adjust


Name = Annotated[str, PathParameter(description="The machine's name.", max_length=200)]
Id = Annotated[str, PathParameter(description="The operation's id.", max_length=200)]
Key = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        description="The same request with the same key gives the same operation again.",
        max_length=models.KEY_CHARACTERS_MAX,
        min_length=1,
    ),
]
_PROBLEMS: Final = {
    status: ResponseSpec(
        models.Problem,
        generate_examples=False,
        media_type=problems.MEDIA_TYPE,
        description=description,
    )
    for status, description in {
        400: "The request is wrong; nothing was changed.",
        403: "A policy refused; nothing was changed.",
        404: "There is no such thing; nothing was changed.",
        405: "The resource does not know this method.",
        409: "What is true now does not allow this; nothing was changed.",
        413: "The body is too large.",
        415: "The body is no JSON.",
        500: "The node or a machine's process failed.",
        502: "Another node failed or could not be trusted.",
        503: "The node serves as much as it may.",
        507: "The disk is full; nothing was changed.",
    }.items()
}


def _operation(operation: NodeOperation) -> models.Operation:
    return models.answer(models.Operation, operation.to_json())


def _accepted(operation: NodeOperation) -> Response[models.Operation]:
    return Response(
        _operation(operation),
        status_code=HTTP_202_ACCEPTED,
        headers={"Location": f"/v1/operations/{operation.id}"},
    )


async def _submit(
    request: AppRequest, kind: str, machine: str, parameters: dict[str, Any], key: str | None
) -> Response[models.Operation]:
    wanted = OperationRequest(
        kind=kind, machine=machine, subject=_subject(request), parameters=parameters
    )
    return _accepted(await _shared(request).node.submit(wanted, key=key or ""))


class NodeController(Controller):
    """The node itself."""

    tags = ["node"]
    path = "/v1"

    @get("/node", responses=_PROBLEMS, summary="What the node is and does")
    async def node(self, request: AppRequest) -> models.NodeStatus:
        status = {"version": metadata.version("novacron"), **_shared(request).node.status()}
        return models.answer(models.NodeStatus, status)

    @post(
        "/node/stop",
        status_code=HTTP_202_ACCEPTED,
        responses=_PROBLEMS,
        summary="End the node; its machines go on",
    )
    async def stop(self, request: AppRequest) -> models.Stopping:
        _shared(request).node.request_stop()
        return models.Stopping(stopping=True)

    @get("/peers", responses=_PROBLEMS, summary="The other nodes, and whether they answer")
    async def peers(self, request: AppRequest) -> list[models.Peer]:
        return [models.answer(models.Peer, peer) for peer in await _shared(request).node.peers()]

    @get("/plugins", responses=_PROBLEMS, summary="What is loaded, and what could not be")
    async def plugins(self, request: AppRequest) -> models.Plugins:
        manager = _shared(request).node.manager
        return models.Plugins(
            loaded=[
                models.Plugin(
                    name=plugin.name,
                    distribution=plugin.distribution,
                    version=plugin.version,
                    hooks=list(plugin.hooks),
                )
                for plugin in manager.plugins.values()
            ],
            failed=[
                models.PluginFailure(
                    name=failure.name,
                    distribution=failure.distribution,
                    cause=failure.cause,
                    cure=failure.cure,
                )
                for failure in manager.failures
            ],
        )


class MachineController(Controller):
    """Machines; every change of one is an operation."""

    tags = ["machines"]
    path = "/v1/machines"

    @get("/", responses=_PROBLEMS, summary="All machines of this node")
    async def list(self, request: AppRequest) -> Sequence[models.Machine]:
        machines = await _shared(request).node.machines()
        return [models.answer(models.Machine, machine) for machine in machines]

    @post(
        "/",
        dto=CreateMachineBody,
        return_dto=None,
        status_code=202,
        responses=_PROBLEMS,
        summary="Make a machine",
    )
    async def create(
        self, request: AppRequest, data: JSONBody[models.CreateMachine], idempotency_key: Key = None
    ) -> Response[models.Operation]:
        return await _submit(request, "create", data.name, data.parameters(), idempotency_key)

    @get("/{name:str}", responses=_PROBLEMS, summary="One machine")
    async def show(self, request: AppRequest, name: Name) -> models.Machine:
        return models.answer(models.Machine, await _shared(request).node.machine(name))

    @delete(
        "/{name:str}",
        status_code=HTTP_202_ACCEPTED,
        responses=_PROBLEMS,
        summary="Delete a machine",
    )
    async def remove(
        self,
        request: AppRequest,
        name: Name,
        force: Annotated[bool, QueryParameter(description="Stop it first if it runs.")] = False,
        idempotency_key: Key = None,
    ) -> Response[models.Operation]:
        parameters = {"force": True} if force else {}
        return await _submit(request, "delete", name, parameters, idempotency_key)

    @post(
        "/{name:str}/start",
        status_code=HTTP_202_ACCEPTED,
        responses=_PROBLEMS,
        summary="Start a machine",
    )
    async def start(
        self, request: AppRequest, name: Name, idempotency_key: Key = None
    ) -> Response[models.Operation]:
        return await _submit(request, "start", name, {}, idempotency_key)

    @post(
        "/{name:str}/stop",
        status_code=HTTP_202_ACCEPTED,
        responses=_PROBLEMS,
        summary="Stop a machine",
    )
    async def stop(
        self, request: AppRequest, name: Name, idempotency_key: Key = None
    ) -> Response[models.Operation]:
        return await _submit(request, "stop", name, {}, idempotency_key)

    @post(
        "/{name:str}/pause",
        status_code=HTTP_202_ACCEPTED,
        responses=_PROBLEMS,
        summary="Pause a machine",
    )
    async def pause(
        self, request: AppRequest, name: Name, idempotency_key: Key = None
    ) -> Response[models.Operation]:
        return await _submit(request, "pause", name, {}, idempotency_key)

    @post(
        "/{name:str}/resume",
        status_code=HTTP_202_ACCEPTED,
        responses=_PROBLEMS,
        summary="Let it run again",
    )
    async def resume(
        self, request: AppRequest, name: Name, idempotency_key: Key = None
    ) -> Response[models.Operation]:
        return await _submit(request, "resume", name, {}, idempotency_key)

    @post(
        "/{name:str}/migrate",
        dto=MigrateBody,
        return_dto=None,
        status_code=HTTP_202_ACCEPTED,
        summary="Move a machine to another node, or plan to",
        responses=_PROBLEMS
        | {
            HTTP_200_OK: ResponseSpec(
                planning.Plan,
                generate_examples=False,
                description="The plan of a dry run, with all that stands in its way.",
            )
        },
    )
    async def migrate(
        self,
        request: AppRequest,
        name: Name,
        data: JSONBody[models.Migrate],
        idempotency_key: Key = None,
    ) -> Response[models.Operation]:
        parameters = data.parameters()
        if data.dry_run:
            plan: Any = planning.answer(await _shared(request).node.plan(name, parameters))
            return Response(plan, status_code=HTTP_200_OK)
        return await _submit(request, "migrate", name, parameters, idempotency_key)

    @get(
        "/{name:str}/console-log",
        media_type="application/octet-stream",
        responses=_PROBLEMS,
        summary="The end of what the console has printed on this node",
    )
    async def console_log(
        self,
        request: AppRequest,
        name: Name,
        tail_bytes: Annotated[int, QueryParameter(ge=1, le=LOG_TAIL_BYTES_MAX)] = LOG_TAIL_BYTES,
    ) -> bytes:
        node = _shared(request).node
        await node.machine(name)
        return await asyncio.to_thread(_tail, node.console_log(name), tail_bytes)

    @websocket("/{name:str}/console")
    async def console(self, socket: WebSocket[Any, Any, State], name: Name) -> None:
        """The console, raw bytes both ways, one binary message or many."""
        shared = _shared(socket)
        try:
            shared.need_room()
            with shared.stream():
                await shared.node.machine(name)
                try:
                    link = await asyncio.to_thread(connect, shared.node.console(name), 5.0)
                except OSError as error:
                    raise NotFound(
                        f"the console of {name!r} does not answer: {error.strerror or error}",
                        hint="a console answers while the machine has a process",
                    ) from error
                await _serve_console(socket, link, shared)
        except (NovacronError, OSError) as fault:
            await _deny(socket, fault)


async def _deny(socket: WebSocket[Any, Any, State], fault: Exception) -> None:
    """Answer a websocket's opening with a problem document instead."""
    error, status = problems.as_error(fault), problems.status_of_fault(fault)
    document = problems.to_problem(error, socket.url.path, status)
    start: Any = {
        "type": "websocket.http.response.start",
        "status": status,
        "headers": [(b"content-type", problems.MEDIA_TYPE.encode())],
    }
    body: Any = {
        "type": "websocket.http.response.body",
        "body": msgspec.json.encode(document),
        "more_body": False,
    }
    await socket.send(start)
    await socket.send(body)


def _tail(path: Path, tail_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - tail_bytes))
            return file.read(tail_bytes)
    except FileNotFoundError:
        return b""


async def _serve_console(
    socket: WebSocket[Any, Any, State], link: sockets.socket, shared: Shared
) -> None:
    link.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=link)
    waiting: asyncio.Queue[bytes] = asyncio.Queue()
    backlog = 0

    async def drain() -> None:
        """Read what the guest prints, whether or not the watcher keeps up."""
        nonlocal backlog
        while chunk := await reader.read(_CHUNK):
            backlog += len(chunk)
            if backlog > CONSOLE_BACKLOG_BYTES_MAX:
                raise WebSocketException(
                    detail="the console printed faster than you read", code=4408
                )
            waiting.put_nowait(chunk)
        waiting.put_nowait(b"")

    async def show() -> None:
        nonlocal backlog
        while chunk := await waiting.get():
            await socket.send_bytes(chunk)
            backlog -= len(chunk)

    async def type_in() -> None:
        async for data in socket.iter_data("binary"):
            writer.write(data)
            await writer.drain()

    async def until_closing() -> None:
        await shared.closing.wait()

    await socket.accept()
    draining = asyncio.create_task(drain())
    tasks = [asyncio.create_task(work()) for work in (show, type_in, until_closing)]
    try:
        await asyncio.wait([draining, *tasks[1:]], return_when=asyncio.FIRST_COMPLETED)
        if draining.done() and draining.exception() is None:
            # The machine's process has ended; its last words are still to be shown.
            await tasks[0]
        for task in (draining, tasks[1]):
            if task.done() and not isinstance(task.exception(), WebSocketDisconnect | OSError):
                task.result()
        if not tasks[1].done():
            await socket.close(code=1001 if shared.closing.is_set() else 1000)
    except WebSocketDisconnect:
        pass
    finally:
        for task in (draining, *tasks):
            task.cancel()
        await asyncio.gather(draining, *tasks, return_exceptions=True)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class OperationController(Controller):
    """Operations: what was asked, how far it is, and how it ended."""

    tags = ["operations"]
    path = "/v1/operations"

    @get("/", responses=_PROBLEMS, summary="The operations that are kept, the oldest first")
    async def list(
        self,
        request: AppRequest,
        machine: Annotated[
            str | None, QueryParameter(description="Only those of a machine.")
        ] = None,
        in_state: Annotated[
            OperationState | None,
            QueryParameter(name="state", description="Only those in a state."),
        ] = None,
    ) -> Sequence[models.Operation]:
        return [
            _operation(operation)
            for operation in _shared(request).node.operations.list()
            if (machine is None or operation.request.machine == machine)
            and (in_state is None or operation.state is in_state)
        ]

    @post(
        "/",
        dto=BeginBody,
        return_dto=None,
        status_code=HTTP_202_ACCEPTED,
        responses=_PROBLEMS,
        summary="Begin an operation of any kind",
    )
    async def begin(
        self,
        request: AppRequest,
        data: JSONBody[models.BeginOperation],
        idempotency_key: Key = None,
    ) -> Response[models.Operation]:
        return await _submit(request, data.kind, data.machine, data.parameters, idempotency_key)

    @get("/{operation_id:str}", responses=_PROBLEMS, summary="One operation")
    async def show(self, request: AppRequest, operation_id: Id) -> models.Operation:
        return _operation(_shared(request).node.operations.get(operation_id))

    @post(
        "/{operation_id:str}/cancel",
        status_code=HTTP_202_ACCEPTED,
        responses=_PROBLEMS,
        summary="Ask an operation to stop",
    )
    async def cancel(self, request: AppRequest, operation_id: Id) -> Response[models.Operation]:
        return _accepted(await _shared(request).node.operations.cancel(operation_id))

    @patch(
        "/{operation_id:str}",
        dto=AdjustBody,
        return_dto=None,
        responses=_PROBLEMS,
        summary="Change the rate limit or the mode of a migration under way",
    )
    async def adjust(
        self, request: AppRequest, operation_id: Id, data: JSONBody[models.Adjust]
    ) -> models.Operation:
        return _operation(await _shared(request).node.adjust(operation_id, data.parameters()))

    @get(
        "/{operation_id:str}/events",
        media_type="text/event-stream",
        summary="What the operation does, as server-sent events",
        description=(
            "Each event's `data` is JSON with `sequence`, `operation`, `kind` (phase, progress, "
            "message, state) and `data`. `Last-Event-ID` goes on after that event. 204: the "
            "operation has ended and there is nothing more to tell."
        ),
        responses=_PROBLEMS
        | {204: ResponseSpec(None, description="It has ended and all was told.")},
    )
    async def events(
        self,
        request: AppRequest,
        operation_id: Id,
        last_event_id: Annotated[str | None, HeaderParameter(name="Last-Event-ID")] = None,
    ) -> Response[Any]:
        shared = _shared(request)
        operation = shared.node.operations.get(operation_id)
        after = _after(last_event_id, shared.run)
        if operation.finished and await _nothing_after(operation, after):
            return Response(None, status_code=204)
        shared.need_room()
        return Stream(
            _event_stream(operation, after, shared),
            status_code=HTTP_200_OK,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )


def _after(last_event_id: str | None, run: str) -> int:
    """The sequence to go on after; 0 where the id is from another run of the node."""
    if not last_event_id:
        return 0
    told_by, _, sequence = last_event_id.partition("-")
    if not (sequence.isascii() and sequence.isdecimal() and len(sequence) <= 12):
        raise ConfigError(
            f"Last-Event-ID {last_event_id!r:.80} is none of ours",
            hint="send the id of the last event that was received, or none",
        )
    return int(sequence) if told_by == run else 0


async def _nothing_after(operation: NodeOperation, after: int) -> bool:
    async for _ in operation.events(after=after):
        return False
    return True


async def _next(events: AsyncIterator[OperationEvent]) -> OperationEvent | None:
    return await anext(events, None)


async def _event_stream(
    operation: NodeOperation, after: int, shared: Shared
) -> AsyncIterator[bytes]:
    """The events as text, with a comment now and then, so that a dead link is noticed."""
    with shared.stream():
        yield b"retry: 1000\n\n"
        events = operation.events(after=after)
        closing = asyncio.create_task(shared.closing.wait())
        fresh: asyncio.Task[Any] | None = None
        try:
            while not closing.done():
                fresh = fresh or asyncio.create_task(_next(events))
                await asyncio.wait(
                    [fresh, closing],
                    timeout=shared.settings.heartbeat_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not fresh.done():
                    yield b": alive\n\n"
                    continue
                event, fresh = fresh.result(), None
                if event is None:
                    return
                data = msgspec.json.encode(event, enc_hook=str)
                yield (
                    f"id: {shared.run}-{event.sequence}\nevent: {event.kind}\ndata: ".encode()
                    + data
                    + b"\n\n"
                )
        finally:
            waiting = [task for task in (closing, fresh) if task is not None]
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            if inspect.isasyncgen(events):
                await events.aclose()


# What holds for all requests.


async def _check_request(request: AppRequest) -> None:
    """Refuse query parameters that no handler reads, and bodies that are no JSON."""
    handler = request.route_handler
    parameters = handler.parsed_fn_signature.parameters
    known = [
        getattr(field.kwarg_definition, "name", None) or name
        for name, field in parameters.items()
        if getattr(field.kwarg_definition, "param_type", None) is ParamType.QUERY
    ]
    for name in request.query_params:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ConfigError(
                f"{request.url.path} has no query parameter {name!r:.80}",
                hint=f"did you mean {near[0]!r}?"
                if near
                else f"known: {', '.join(known) or 'none'}",
            )
    if "data" in parameters:
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
        if kind.lower() != "application/json":
            raise problems.UnsupportedMediaType(
                f"the body is {kind!r:.80}, not application/json",
                hint="send JSON with Content-Type: application/json",
            )
        if not await request.body():
            raise ConfigError("there is no body", hint="send a JSON object")


def _problem_response(request: AppRequest, error: NovacronError, status: int) -> Response[bytes]:
    document = problems.to_problem(error, request.url.path, status)
    headers = {"Retry-After": "1"} if status == 503 else {}
    return Response(
        msgspec.json.encode(document),
        status_code=status,
        media_type=problems.MEDIA_TYPE,
        headers=headers,
    )


def _on_fault(request: AppRequest, fault: Exception) -> Response[bytes]:
    error = problems.as_error(fault)
    return _problem_response(request, error, problems.status_of_fault(fault))


def _on_http_fault(request: AppRequest, fault: HTTPException) -> Response[bytes]:
    path = request.url.path
    if isinstance(fault, NotFoundException):
        error: NovacronError = NotFound(
            f"there is no resource {path!r:.200}", hint="see /schema/openapi.json"
        )
    elif isinstance(fault, MethodNotAllowedException):
        error = problems.MethodNotAllowed(
            f"{path} does not know {request.method}", hint="see /schema/openapi.json"
        )
    elif fault.status_code == HTTP_413_REQUEST_ENTITY_TOO_LARGE:
        error = problems.TooLarge("the body is too large", hint="send at most 1 MiB")
    elif fault.status_code < 500:
        error = ConfigError(_reasons(fault), hint="see /schema/openapi.json")
    else:
        return _on_fault(request, fault)
    response = _problem_response(request, error, problems.status_of(error))
    for name, value in (fault.headers or {}).items():
        response.set_header(name, value)
    return response


def _reasons(fault: HTTPException) -> str:
    extra = fault.extra if isinstance(fault.extra, list) else []
    reasons = [f"{item.get('key', 'a value')}: {item['message']}" for item in extra]
    return "; ".join(reasons) or fault.detail


def make_app(shared: Shared) -> Litestar:
    """The application; `shared` is the node that it serves and how."""
    return Litestar(
        route_handlers=[NodeController, MachineController, OperationController],
        state=State({"shared": shared}),
        before_request=_check_request,
        exception_handlers={
            NovacronError: _on_fault,
            HTTPException: _on_http_fault,
            Exception: _on_fault,
        },
        request_max_body_size=shared.settings.max_body_bytes,
        openapi_config=OpenAPIConfig(
            title="NovaCron node",
            version="1",
            description="A node of NovaCron: its machines, and the operations that change them.",
            path="/schema",
            use_handler_docstrings=False,
            render_plugins=[JsonRenderPlugin(media_type=MediaType.JSON)],
        ),
        logging_config=None,
    )
