"""The process that a machine runs in: ``python -m novacron_machine_wasm.runner HOME``.

It outlives the node that started it. It obeys whoever has the token from ``machine.json``, over
the control socket; several connections at a time. It holds a lock on ``runner.lock`` as long as it
lives, so that its death is plain to see, however it died.
"""

from __future__ import annotations

import contextlib
import hmac
import importlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec
from novacron import Conflict, MachineError, NovacronError, PeerProtocolError

from novacron_machine_wasm import _wire as wire
from novacron_machine_wasm._arrival import Arrival
from novacron_machine_wasm._guest import Guest, GuestFailed
from novacron_machine_wasm._guest_settings import runner_settings
from novacron_machine_wasm._module import BadModule
from novacron_machine_wasm._paths import CONSOLE_SOCKET, CONTROL_SOCKET, SERVICE_SOCKET
from novacron_machine_wasm._run_log import RunLog
from novacron_machine_wasm._sockets import Console, Listener, listen_tcp

if TYPE_CHECKING:
    from novacron_machine_wasm._departure import Departure

CONTROL_CLIENTS: Final = 64
SERVICE_CLIENTS: Final = 256
CONSOLE_CLIENTS: Final = 16
EXIT_FAILED: Final = 3
# A machine that has run so long may be moved one day.
WARM_UP_S: Final = 3.0

RUNNING, PAUSED, RECEIVING, ENDING = "running", "paused", "receiving", "ending"


class Runner:
    """One machine's process. ``state`` changes only under ``_control``."""

    def __init__(self, home: Path, record: wire.Record) -> None:
        self.home = home
        self.record = record
        self.settings = runner_settings(record.settings)
        self.sockets = Path(record.sockets)
        self.state = RECEIVING if record.receiving else PAUSED
        self.guest: Guest | None = None
        self.module = b""
        self.ticks = 0
        self.console = Console(
            home / wire.CONSOLE_LOG, record.console_log_bytes_max, wire.CONSOLE_INPUT_MAX
        )
        self.runs = RunLog(Path(record.runs_log or home / wire.RUNS_LOG), record.name)
        self.ended = threading.Event()
        self.exit_code = 0
        self._control = threading.RLock()
        # Held while the guest executes; whoever gets it looks at the state again.
        self._guest_lock = threading.Lock()
        self._changed = threading.Condition()
        self._departure: Departure | None = None
        self._arriving = False
        self._keep_base = False

    # Life --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the guest and run it, or wait for one to arrive. Raises NovacronError."""
        if not self.record.receiving:
            self.module = (self.home / wire.MODULE).read_bytes()
            try:
                self.guest = self._make(self.module)
                self.guest.begin(self.settings.fill_bytes, self.record.name.encode())
            except (BadModule, GuestFailed) as error:
                raise MachineError(
                    f"machine {self.record.name!r} does not start: {error}"
                ) from error
            self._serve_guest()
            self._resume()
        Listener.at_path(self.sockets / CONSOLE_SOCKET, self.console.handle, CONSOLE_CLIENTS)
        Listener.at_path(self.sockets / CONTROL_SOCKET, self._control_client, CONTROL_CLIENTS)
        threading.Thread(target=self._tick, name="tick", daemon=True).start()
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def _warm_up(self) -> None:
        """Load what only a move needs: not before anybody can use the machine, and not when the
        move has begun either, because the guest waits meanwhile."""
        if not self.ended.wait(WARM_UP_S):
            importlib.import_module("novacron_machine_wasm._departure")

    def wait(self) -> int:
        """Until the machine has ended; what is left on disk is tidied up."""
        self.ended.wait()
        for name in (CONTROL_SOCKET, SERVICE_SOCKET, CONSOLE_SOCKET, wire.PID):
            with contextlib.suppress(OSError):
                ((self.home if name == wire.PID else self.sockets) / name).unlink()
        with contextlib.suppress(OSError):
            shadow = self.home / wire.SHADOW
            if self._keep_base and self.record.memory_bytes <= self.record.base_bytes_max:
                shadow.replace(self.home / wire.BASE)
            else:
                shadow.unlink()
        return self.exit_code

    def _make(self, module: bytes) -> Guest:
        return Guest(
            module, self.record.memory_bytes, self.settings.step_timeout_ms, self.console.read
        )

    def _serve_guest(self) -> None:
        if self.guest is None or not self.guest.serves:
            return
        Listener.at_path(self.sockets / SERVICE_SOCKET, self._service_client, SERVICE_CLIENTS)
        if self.settings.tcp_port:
            listen_tcp(self.settings.tcp_port, self._service_client, SERVICE_CLIENTS)

    def fail(self, reason: str) -> None:
        """The guest cannot go on: say why, and end."""
        with contextlib.suppress(OSError):
            (self.home / wire.FAILURE).write_text(reason)
        self._set(ENDING)
        self.exit_code = EXIT_FAILED
        self.runs.end()
        self.ended.set()

    def halt(self, *, keep_base: bool = False) -> None:
        """Execute the guest no more, for good; the process ends once `ended` is set."""
        with self._control:
            if self.state == ENDING:
                return
            departure = self._departure
            self._keep_base = keep_base and departure is not None and departure.complete
            if departure is not None and not departure.complete:
                departure.cancel()
            self._set(ENDING)
            with self._guest_lock:
                self.runs.end()

    def end(self) -> None:
        """End the process; the guest is between two calls when it does."""
        self.halt()
        self.ended.set()

    def _set(self, state: str) -> None:
        with self._changed:
            if self.state != ENDING:  # nothing comes after it
                self.state = state
            self._changed.notify_all()

    # The guest ---------------------------------------------------------------------------------

    def _tick(self) -> None:
        pause_s = self.settings.tick_ms / 1000
        due = time.monotonic()
        while True:
            due = max(due + pause_s, time.monotonic())
            self.ended.wait(max(0.0, due - time.monotonic()))
            try:
                self._enter()
            except wire.WireError:
                return
            try:
                assert self.guest is not None
                self.guest.step()
                self.ticks += 1
                self._print()
            except GuestFailed as error:
                self.fail(str(error))
                return
            finally:
                self._guest_lock.release()

    def _enter(self) -> None:
        """Wait until the machine runs and nobody else is in the guest. Raises WireError at the
        end of the machine."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.state in (RUNNING, ENDING))
            self._guest_lock.acquire()
            if self.state == RUNNING:
                return
            self._guest_lock.release()
            if self.state == ENDING:
                # Nobody gets an answer any more.
                raise wire.WireError("the machine has ended")

    def _print(self) -> None:
        assert self.guest is not None
        if data := self.guest.printed():
            self.console.write(data)

    def _service_client(self, sock: socket.socket) -> None:
        guest = self.guest
        assert guest is not None
        while True:
            (length,) = wire.LENGTH.unpack(wire.receive_bytes(sock, wire.LENGTH.size))
            if not 0 < length <= guest.request_bytes_max:
                raise wire.WireError(f"a request claims {length} bytes")
            request = bytes(wire.receive_bytes(sock, length))
            self._enter()
            try:
                answer = guest.handle(request)
                self._print()
            except GuestFailed as error:
                self.fail(str(error))
                return
            finally:
                self._guest_lock.release()
            # The guest's memory holds the change: whatever happens to us now, it is not lost.
            wire.send_all(sock, (wire.LENGTH.pack(len(answer)), answer))

    # Control -----------------------------------------------------------------------------------

    def _control_client(self, sock: socket.socket) -> None:
        while True:
            request = wire.receive_request(sock)
            if not hmac.compare_digest(request.token.encode(), self.record.token.encode()):
                raise wire.WireError("a wrong token")
            if request.op in ("send", "receive"):
                self._data_client(request, sock)
                return
            try:
                reply = self._answer(request, sock)
            except NovacronError as error:
                reply = self._refusal(error)
            reply.token = self.record.token
            try:
                wire.send_all(sock, (wire.pack_control(reply),))
            finally:
                if self.state == ENDING and request.op in ("end", "retire"):
                    self.ended.set()

    def _refusal(self, error: NovacronError) -> wire.Reply:
        return wire.Reply(
            token=self.record.token, error=error.code, message=error.message, hint=error.hint
        )

    def _answer(self, request: wire.Request, sock: socket.socket) -> wire.Reply:
        match request.op:
            case "state":
                return wire.Reply(state=self.state, number=self.ticks)
            case "pause":
                self._pause()
            case "resume":
                self._resume()
            case "digest":
                return wire.Reply(text=self._digest())
            case "converged":
                self._converged(sock)
            case "switch-over":
                self._need_departure().switch_over()
            case "cancel":
                with self._control:
                    # A copy that is complete is kept until the machine is resumed or retired.
                    if self._departure is not None and not self._departure.complete:
                        self._departure.cancel()
                        self._departure = None
            case "retire" | "end":
                if request.op == "retire":
                    self._expect(PAUSED)
                self.halt(keep_base=request.op == "retire")
            case _:
                raise PeerProtocolError(f"the runner knows no {request.op!r}")
        return wire.Reply(state=self.state)

    def _expect(self, *states: str) -> None:
        if self.state not in states:
            raise Conflict(
                f"machine {self.record.name!r} is {self.state}, not {' or '.join(states)}",
                state=self.state,
            )

    def _pause(self) -> None:
        with self._control:
            self._expect(RUNNING)
            self._set(PAUSED)
            with self._guest_lock:
                # The guest is out, and who waits at the lock will see the state.
                if self.state == PAUSED:
                    self.runs.end()
            if self.state != PAUSED:
                raise MachineError(f"machine {self.record.name!r} failed while it was paused")

    def _resume(self) -> None:
        with self._control:
            self._expect(PAUSED)
            departure = self._departure
            # A node that was killed in the middle leaves nobody to cancel its move.
            given_up = departure is not None and departure.peer_is_gone()
            if departure is not None and departure.switching and not given_up:
                raise Conflict(
                    f"machine {self.record.name!r} is leaving", hint="cancel the move first"
                )
            if departure is not None and (given_up or departure.ended.is_set()):
                departure.cancel()  # it stays: what the move has kept is of no more use
                self._departure = None
            self.runs.begin()
            self._set(RUNNING)

    def _digest(self) -> str:
        with self._control:
            self._expect(PAUSED)
            assert self.guest is not None
            return self.guest.digest()

    # Moves -------------------------------------------------------------------------------------

    def _need_departure(self) -> Departure:
        if self._departure is None:
            raise MachineError(f"machine {self.record.name!r} is not leaving")
        return self._departure

    def _converged(self, sock: socket.socket) -> None:
        departure = self._need_departure()
        while not departure.news.wait(0.25):
            with contextlib.suppress(BlockingIOError):
                if not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    raise wire.WireError("nobody waits any more")
        if departure.is_converged or departure.complete:
            return
        raise MachineError(
            f"machine {self.record.name!r} does not come to an end: {departure.stalled}",
            hint="allow a longer pause (--max-downtime) or a faster link",
        )

    def _data_client(self, request: wire.Request, sock: socket.socket) -> None:
        try:
            session = self._depart if request.op == "send" else self._arrive
            run = session(request, sock)
        except NovacronError as error:
            wire.send_all(sock, (wire.pack_control(self._refusal(error)),))
            return
        run()

    def _depart(self, request: wire.Request, sock: socket.socket) -> Any:
        from novacron_machine_wasm._departure import Departure, PageStore

        with self._control:
            self._expect(RUNNING, PAUSED)
            assert self.guest is not None
            old = self._departure
            if old is not None:
                if not old.ended.is_set() and not old.peer_is_gone():
                    raise Conflict(f"machine {self.record.name!r} is leaving already")
                old.cancel()
                self._departure = None
            try:
                store = PageStore(self.home / wire.SHADOW, len(self.guest.memory))
            except OSError as error:
                raise MachineError(
                    f"machine {self.record.name!r} cannot leave: no room for "
                    f"{len(self.guest.memory)} bytes in {self.home}: {error.strerror}",
                    hint="make room on the disk of the node's state directory",
                    truth=f"the machine is {self.state} here",
                ) from error
            departure = Departure(
                guest=self.guest,
                module=self.module,
                store=store,
                sock=sock,
                max_downtime_ms=request.max_downtime_ms,
                rate_bytes_per_s=request.rate_bytes_per_s,
                pause=self._pause_to_leave,
                own_state=self._own_state,
            )
            self._departure = departure
        wire.send_all(sock, (wire.pack_control(wire.Reply(token=self.record.token)),))

        def run() -> None:
            departure.run()
            with contextlib.suppress(OSError):
                # Keep the connection until the node closes it: it may still be reading.
                while sock.recv(4096):
                    pass

        return run

    def _pause_to_leave(self) -> None:
        # Not under _control: whoever holds it may be waiting for this very thread to end.
        while not self._control.acquire(timeout=0.05):
            if self._departure is not None and self._departure.is_cancelled:
                raise wire.WireError("cancelled")
        try:
            if self.state == RUNNING:
                try:
                    self._pause()
                except NovacronError as error:
                    raise wire.WireError(str(error)) from error
            if self.state != PAUSED:
                raise wire.WireError(f"the machine is {self.state}")
        finally:
            self._control.release()

    def _own_state(self) -> dict[str, Any]:
        return {
            "ticks": self.ticks,
            "console_bytes": self.console.printed_bytes,
            "console_input": self.console.pending(),
        }

    def _arrive(self, request: wire.Request, sock: socket.socket) -> Any:
        with self._control:
            self._expect(RECEIVING)
            if self._arriving:
                raise Conflict(f"machine {self.record.name!r} is arriving already")
            self._arriving = True
        arrival = Arrival(
            memory_bytes=self.record.memory_bytes,
            module_digest=self.record.guest,
            module_bytes=self.record.guest_bytes,
            make=self._make,
            base=self.home / wire.BASE,
        )
        have = arrival.have()
        reply = wire.Reply(token=self.record.token, number=len(have))
        wire.send_all(sock, (wire.pack_control(reply), have))

        def run() -> None:
            while self._arrive_one(arrival, sock):
                pass

        return run

    def _arrive_one(self, arrival: Arrival, sock: socket.socket) -> bool:
        header = wire.FRAME.unpack(wire.receive_bytes(sock, wire.FRAME.size))
        layout, addresses, pages = wire.frame_lengths(header)
        body = memoryview(wire.receive_bytes(sock, layout + addresses + pages))
        try:
            if header[0] == wire.END:
                self._take_over(arrival)
            else:
                first = layout + addresses
                arrival.take(body[:layout], body[layout:first], body[first:])
            reply, more = wire.Reply(token=self.record.token), bool(header[0] != wire.END)
        except NovacronError as error:
            reply, more = self._refusal(error), False
        except OSError as error:
            reply, more = self._refusal(MachineError(f"the machine's files: {error}")), False
        wire.send_all(sock, (wire.pack_control(reply),))
        return more

    def _take_over(self, arrival: Arrival) -> None:
        arrived = arrival.finish()
        with self._control:
            self._expect(RECEIVING)
            (self.home / wire.MODULE).write_bytes(arrived.module)
            self.guest = arrived.guest
            self.module = arrived.module
            self.ticks = arrived.ticks
            self.console.restore(arrived.console_bytes, arrived.console_input)
            self._set(PAUSED)
            self._serve_guest()


def _serve(home: Path, ready: int) -> int:
    record = msgspec.json.decode((home / wire.RECORD).read_bytes(), type=wire.Record)
    runner = Runner(home, record)
    for number in (signal.SIGTERM, signal.SIGINT):
        # In a thread: what the main thread holds just now must not be waited for in it.
        signal.signal(number, lambda *_: threading.Thread(target=runner.end).start())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        runner.begin()
    except (NovacronError, OSError) as error:
        message = error.message if isinstance(error, NovacronError) else str(error)
        _tell(ready, wire.Reply(error="machine", message=message[:2000]))
        return EXIT_FAILED
    _tell(ready, wire.Reply(state=runner.state))
    return runner.wait()


def _tell(ready: int, reply: wire.Reply) -> None:
    # The node may have been killed meanwhile; the machine goes on, the next node finds it.
    with contextlib.suppress(OSError):
        os.write(ready, msgspec.json.encode(reply))
    os.close(ready)


def main(arguments: list[str]) -> NoReturn:
    """``HOME`` and, from the node, the lock's and the ready pipe's file numbers."""
    home = Path(arguments[0])
    ready = int(arguments[2])
    # Twice, so that the process is nobody's child and its end leaves nothing behind.
    if os.fork():
        os._exit(0)
    code = 1
    try:
        (home / wire.PID).write_text(str(os.getpid()))
        code = _serve(home, ready)
    except Exception:  # the last place to say it: the log in the machine's home
        traceback.print_exc()
    sys.stderr.flush()
    # Threads may be anywhere, in the guest too: no tidy end of the interpreter.
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
