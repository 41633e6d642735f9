"""The connection to a QEMU's monitor.

A monitor serves one client at a time. So the connection is kept only while it is used: a driver
object that nobody uses any more, or a node that was killed, blocks nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

from novacron import MachineError
from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, QMPError

CONNECT_TIMEOUT_S: Final = 5.0
COMMAND_TIMEOUT_S: Final = 30.0

_library = logging.getLogger("qemu.qmp")
if _library.level == logging.NOTSET:
    # It logs as errors what it raises as well; we catch that and say it in our own words.
    _library.setLevel(logging.CRITICAL)


class MonitorGone(MachineError):
    """QEMU does not answer on its monitor: it ended, is ending, or serves somebody else."""


class CommandFailed(MachineError):
    """QEMU refused a command; ``error.facts["error_class"]`` is its word for why."""


class _Client(QMPClient):
    """A client whose questions bear ids that no other client's do.

    QEMU sends the answer to a question that a client left open, as a node does that is killed, to
    the client that comes next. The library drops answers with an id that it does not know, but
    numbers each client's questions alike: the dead one's answer would be taken for ours.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._own = secrets.token_hex(8)

    def _get_exec_id(self) -> str:
        return f"{super()._get_exec_id()} {self._own}"


class Monitor:
    """One QEMU's monitor, for one event loop."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self._name = name
        self._lock = asyncio.Lock()
        self._users = 0
        self._client: QMPClient | None = None
        self._asked: set[asyncio.Task[Any]] = set()

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[QMPClient]:
        """Keep the connection open meanwhile; nested uses share it.

        Raises: MonitorGone if there is none to be had.
        """
        async with self._lock:
            if self._client is None or self._client.runstate.name != "RUNNING":
                await self._drop()
                self._client = await self._connect()
            client = self._client
            self._users += 1
        try:
            yield client
        finally:
            self._users -= 1
            if self._users == 0:
                async with self._lock:
                    if self._users == 0:
                        await self._drop()

    async def _connect(self) -> QMPClient:
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            try:
                return await self._connect_once()
            except MonitorGone as error:
                # A QEMU that is gone refuses, or has no socket. One that hangs up, or answers what
                # we have not asked, is about to part from the client before us: its monitor
                # thread takes us in before its main thread has let go of them (seen once in some
                # hundred connections that follow each other at once).
                if not error.facts.get("parting") or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.005)

    async def _connect_once(self) -> QMPClient:
        client = _Client(self._name)
        try:
            await asyncio.wait_for(client.connect(str(self.path)), CONNECT_TIMEOUT_S)
        except (ConnectError, TimeoutError) as error:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()
            late = isinstance(error, TimeoutError)
            cause = error.exc if isinstance(error, ConnectError) else error
            parting = isinstance(cause, (EOFError, ConnectionResetError, BrokenPipeError, QMPError))
            raise MonitorGone(
                f"machine {self._name}: QEMU does not answer on its monitor"
                + (f" within {CONNECT_TIMEOUT_S:g} s" if late else f" ({cause!r})"),
                hint="another program may hold the monitor" if late else "",
                parting=parting,
            ) from error
        return client

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run one command; to its end, also if the caller is cancelled meanwhile.

        A client that leaves with a question open has its answer sent to the next one.

        Raises: CommandFailed if QEMU refuses it, MonitorGone if there is no answer.
        """
        asked = asyncio.create_task(self._execute(command, arguments))
        self._asked.add(asked)  # the loop itself keeps no task alive that nobody waits for
        asked.add_done_callback(self._answered)
        return await asyncio.shield(asked)

    def _answered(self, asked: asyncio.Task[Any]) -> None:
        self._asked.discard(asked)
        if not asked.cancelled():
            asked.exception()  # whoever asked may have been cancelled: it counts as seen

    async def _execute(self, command: str, arguments: Mapping[str, Any] | None) -> Any:
        async with self.held() as client:
            try:
                return await asyncio.wait_for(
                    client.execute(command, dict(arguments or {})), COMMAND_TIMEOUT_S
                )
            except ExecuteError as error:
                raise CommandFailed(
                    f"machine {self._name}: QEMU refused {command}: {error}",
                    command=command,
                    error_class=error.error_class,
                ) from error
            except (ExecInterruptedError, QMPError, TimeoutError, OSError) as error:
                raise MonitorGone(
                    f"machine {self._name}: QEMU did not answer {command}: "
                    f"{str(error) or type(error).__name__}"
                ) from error
