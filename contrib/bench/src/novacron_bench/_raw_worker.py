"""One end of `novacron bench raw`. Its setup comes as JSON on the command line."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import cattrs
from attrs import fields_dict, frozen
from novacron import ConfigError, NodeFacts, NovacronError, PluginManager
from novacron_dwcp.accept import Acceptor
from novacron_dwcp.driver import Link

from novacron_bench._worker import own_cpu_s

PORT: Final = 7300
_FRAME_BYTES: Final = 256 << 10
_LOOK_S: Final = 0.25
_CONNECT_S: Final = 30.0
_DRAIN_S: Final = 30.0


@frozen(kw_only=True)
class Setup:
    """What a process is to do.

    Attributes:
        side: ``a`` sends, ``b`` receives.
        state: The folder with both identities.
        address: Of this side, to listen at; of the other one, to call.
        transport, congestion: The provider, and the congestion control that it must use.
        seconds: For how long to offer bytes.
        kill_every_s: Break one stream as often; 0: none.
        window_bytes: The link's.
    """

    side: str
    state: str
    address: str
    transport: str
    congestion: str
    seconds: float
    kill_every_s: float
    window_bytes: int


class _Side:
    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        manager = PluginManager.load(only={f"transport-{setup.transport}", "security-tls"})
        facts = NodeFacts(name=setup.side, state_dir=Path(setup.state) / setup.side)
        classes = manager.providers("transport")
        if setup.transport not in classes:
            raise ConfigError(f"no installed plugin offers the transport {setup.transport!r}")
        cls: Any = classes[setup.transport]
        known = fields_dict(cls.Settings)
        own = {"congestion_control": setup.congestion} if "congestion_control" in known else {}
        self.transport: Any = cls(cls.Settings(**own), facts)
        security: Any = manager.providers("security")["tls"]
        self.security: Any = security(security.Settings(), facts)
        self.over = threading.Event()
        self.secured: list[Any] = []

    def link(self, session: str, dial: Any = None) -> Link:
        steering = getattr(self.transport, "steering", lambda: None)()
        return Link(
            session,
            self.setup.window_bytes,
            60.0,
            lambda message: self.over.set(),
            lambda: None,
            lambda reason: None,
            dial,
            steering=steering,
        )


def _say(**values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _receive(side: _Side) -> None:
    address = side.setup.address
    host = f"[{address}]" if ":" in address else address
    listener = side.transport.listen(f"{host}:{PORT}")
    links: list[Link] = []

    def drain(link: Link) -> None:
        while (frame := link.receive_data()) is not None:
            link.taken(frame)

    def make(hello: Any, peer: str) -> Link:
        links.append(side.link(hello.session))
        threading.Thread(target=drain, args=(links[-1],), daemon=True).start()
        return links[-1]

    Acceptor(listener.accept, lambda stream: (side.security.server(stream), "a"), make).start()
    _say(listening=listener.address)
    side.over.wait()
    _say(cpu_s=own_cpu_s())
    for link in links:
        link.join()


def _send(side: _Side) -> None:
    setup = side.setup
    raw: list[Any] = []

    def dial() -> Any:
        stream = side.transport.connect(setup.address, 5.0)
        raw.append(stream)
        return side.security.client(stream, "b")

    link = side.link("raw", dial)
    link.start()
    if not link.wait_connected(_CONNECT_S):
        sys.exit("there was no connection")
    payload = secrets.token_bytes(_FRAME_BYTES)
    sent, done = 0, threading.Event()
    began_s = time.monotonic()

    def pour() -> None:
        nonlocal sent
        with contextlib.suppress(NovacronError):
            while not done.is_set():
                link.send_data(payload)
                sent += len(payload)

    threading.Thread(target=pour, daemon=True).start()
    marks, trips, most, killed = [(0.0, 0)], [], 0, 0
    while (now_s := time.monotonic() - began_s) < setup.seconds:
        if setup.kill_every_s and now_s > (killed + 1) * setup.kill_every_s and raw:
            killed += _kill(raw)
        time.sleep(_LOOK_S)
        measure = link.measure()
        marks.append((time.monotonic() - began_s, sent - measure.unacknowledged_bytes))
        most = max(most, measure.streams)
        trips.append(measure.rtt_s)
    done.set()
    measure = link.measure()
    (from_s, first) = next(mark for mark in marks if mark[0] >= setup.seconds / 4)
    end_s, taken = marks[-1]
    # What is on its way still counts as wire bytes; so it is let arrive.
    deadline = time.monotonic() + _DRAIN_S
    while link.measure().unacknowledged_bytes and time.monotonic() < deadline:
        time.sleep(0.02)
    _say(
        seconds=round(end_s, 3),
        payload_bytes=taken,
        all_bytes=sent - link.measure().unacknowledged_bytes,
        steady_bytes=taken - first,
        steady_s=end_s - from_s,
        resent=measure.loss,
        frames_resent_bytes=measure.resent_bytes,
        streams=most,
        killed=killed,
        rtt_ms=round(1e3 * statistics.median(trips), 1),
        floor_ms=round(1e3 * measure.min_rtt_s, 1),
        cpu_s=own_cpu_s(),
    )
    link.send_message(b"over")
    link.close()
    link.join()


def _kill(raw: list[Any]) -> int:
    """Break the oldest stream that is left, as a middlebox would: both sides see a reset."""
    raw.pop(0).close()
    return 1


def main() -> None:
    # A stream that ends is what is measured here, and no news.
    logging.disable(logging.WARNING)
    setup = cattrs.structure(json.loads(sys.argv[1]), Setup)
    side = _Side(setup)
    (_send if setup.side == "a" else _receive)(side)
