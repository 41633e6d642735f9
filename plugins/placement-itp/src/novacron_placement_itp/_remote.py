"""Asking another node to evacuate itself, over a channel between the two nodes.

One message each way per line of JSON, with its length before it: first the request, then the
answers; the last one says how it ended. The node that is asked treats it as an operation of its
own: its policies are asked, with ``node:NAME`` as who asks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from novacron import (
    Cancelled,
    MigrationFailed,
    Node,
    NovacronError,
    Operation,
    OperationRequest,
    PeerProtocolError,
    ProtocolError,
    Refused,
    SecureStream,
    TransportError,
)

from novacron_placement_itp._drive import Cancels
from novacron_placement_itp._settings import EVACUATE

log = logging.getLogger("novacron.evacuate")

PROTOCOL: Final = "placement-itp/evacuate/1"
REQUEST_BYTES_MAX: Final = 64 << 10
ANSWER_BYTES_MAX: Final = 16 << 20
ANSWER_EVERY_S: Final = 1.0
_ERRORS: Final = {error.code: error for error in (Refused, Cancelled, MigrationFailed)}


def _send(stream: SecureStream, value: Mapping[str, Any]) -> None:
    content = msgspec.json.encode(value)
    stream.send([len(content).to_bytes(4, "big"), content])


def _receive(stream: SecureStream, most: int) -> dict[str, Any]:
    size = int.from_bytes(_exactly(stream, 4), "big")
    if size > most:
        raise PeerProtocolError(f"a message of {size} bytes; at most {most} are taken")
    try:
        return msgspec.json.decode(_exactly(stream, size), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise PeerProtocolError(f"a message that is no JSON table: {error}") from error


def _exactly(stream: SecureStream, size: int) -> bytes:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        count = stream.receive_into(view)
        if not count:
            raise TransportError("the other node ended the channel")
        view = view[count:]
    return bytes(content)


def serve(node: Node) -> None:
    """Let peers ask this node to evacuate itself."""
    loop = asyncio.get_running_loop()

    def handle(stream: SecureStream) -> None:
        request = _receive(stream, REQUEST_BYTES_MAX)
        parameters = request.get("parameters")
        asked = OperationRequest(
            kind=EVACUATE,
            machine=node.facts.name,
            subject=f"node:{stream.peer.node}",
            parameters=parameters if isinstance(parameters, dict) else {},
        )
        answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        following = asyncio.run_coroutine_threadsafe(_follow(node, asked, answers), loop)
        try:
            while True:
                answer = asyncio.run_coroutine_threadsafe(answers.get(), loop).result()
                _send(stream, answer)
                if "operation" in answer:
                    listening = (node, loop, stream, str(answer["operation"]))
                    threading.Thread(target=_listen, args=listening, daemon=True).start()
                if "state" in answer:
                    return
        finally:
            # The evacuation goes on, though nobody listens any more.
            following.cancel()

    assert node.facts.channels is not None
    node.facts.channels.serve(PROTOCOL, handle)


def _listen(
    node: Node, loop: asyncio.AbstractEventLoop, stream: SecureStream, operation: str
) -> None:
    """Cancel the evacuation whenever the asker says so, until the channel ends."""

    async def cancel() -> None:
        try:
            await node.operations.cancel(operation)
        except NovacronError as error:
            log.info("%s is not cancelled: %s", operation, error)

    try:
        while True:
            if _receive(stream, REQUEST_BYTES_MAX).get("cancel") is True:
                asyncio.run_coroutine_threadsafe(cancel(), loop)
    except (NovacronError, ProtocolError, RuntimeError):
        return  # the channel, or the node, has ended


async def _follow(
    node: Node, asked: OperationRequest, answers: asyncio.Queue[dict[str, Any]]
) -> None:
    """Begin it and report until it has ended."""
    try:
        if asked.parameters.get("place"):
            raise Refused("a node is asked for itself alone", hint="leave the place out")
        operation = await node.submit(asked)
    except NovacronError as error:
        answers.put_nowait({"state": "failed", "error": error.to_json()})
        return
    answers.put_nowait({"operation": operation.id})
    while not operation.finished:
        try:
            async with asyncio.timeout(ANSWER_EVERY_S):
                await operation.wait()
        except TimeoutError:
            answers.put_nowait({"progress": operation.progress})
    answers.put_nowait(
        {"state": operation.state.value, "result": operation.result, "error": operation.error}
    )


async def ask(
    node: Node, peer: str, parameters: Mapping[str, Any], watcher: Operation, cancels: Cancels
) -> dict[str, Any]:
    """Have a peer evacuate itself; its result.

    Args:
        watcher: Shows the peer's progress as its own, by the peer's name.
        cancels: Who wishes to cancel reaches the peer, too.
    Raises: TransportError, Untrusted, PeerProtocolError; Refused, Cancelled or MigrationFailed as
        the peer says.
    """
    channels = node.facts.channels
    assert channels is not None
    stream = await asyncio.to_thread(channels.open, peer, PROTOCOL)
    try:
        await asyncio.to_thread(_send, stream, {"parameters": dict(parameters)})
        while True:
            answer = await asyncio.to_thread(_receive, stream, ANSWER_BYTES_MAX)
            if "operation" in answer:
                cancels.add(lambda: asyncio.to_thread(_send, stream, {"cancel": True}))
            if isinstance(answer.get("progress"), dict):
                nodes = dict(watcher.progress.get("nodes") or {})
                watcher.report(nodes=nodes | {peer: answer["progress"]})
            if "state" in answer:
                return _result(peer, answer)
    finally:
        stream.close()


def _result(peer: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    error = answer.get("error")
    if not isinstance(error, dict) or not error:
        result = answer.get("result")
        return result if isinstance(result, dict) else {}
    facts = error.get("facts")
    cls = _ERRORS.get(str(error.get("code")), NovacronError)
    reserved = ("message", "hint", "truth", "self")
    raise cls(
        f"{peer}: {error.get('message')}",
        hint=str(error.get("hint") or ""),
        truth=str(error.get("truth") or ""),
        **{
            k: v for k, v in (facts if isinstance(facts, dict) else {}).items() if k not in reserved
        },
    )
