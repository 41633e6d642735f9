"""One end of `novacron bench switch`. Its setup comes as JSON on the command line."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import cattrs
from attrs import frozen
from novacron import Batch, CodecSession, ConfigError, NodeFacts, PluginManager
from novacron_dwcp.accept import Acceptor
from novacron_dwcp.driver import Link
from novacron_dwcp.pump import InwardPump, OutwardPump

PORT: Final = 7301
PAGE: Final = 4096
# Small, so that the time between two of them is well below what is to be measured.
BATCH_PAGES: Final = 16
_CONNECT_S: Final = 30.0
_ENOUGH_S: Final = 600.0


@frozen(kw_only=True)
class Setup:
    """What a process is to do.

    Attributes:
        side: ``a`` sends, ``b`` receives.
        state: The folder with both identities.
        address: Of this side, to listen at; of the other one, to call.
        content: A file of pages to send, again and again.
        modes: What is taken in turn: pairs of a transport and a compression.
        switches: How often.
        every_s: The time between two switches.
        window_bytes: The link's.
    """

    side: str
    state: str
    address: str
    content: str
    modes: tuple[tuple[str, str], ...]
    switches: int
    every_s: float
    window_bytes: int


class _Side:
    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        transports = {transport for transport, _ in setup.modes}
        codecs = {codec for _, codec in setup.modes}
        wanted = {"security-tls"}
        wanted |= {f"transport-{name}" for name in transports}
        wanted |= {f"compression-{name}" for name in codecs}
        manager = PluginManager.load(only=wanted)
        facts = NodeFacts(name=setup.side, state_dir=Path(setup.state) / setup.side)

        def make(domain: str, name: str) -> Any:
            cls: Any = manager.providers(domain).get(name)
            if cls is None:
                raise ConfigError(f"no installed plugin offers the {domain} {name!r}")
            return cls(cls.Settings(), facts)

        self.transports = {name: make("transport", name) for name in sorted(transports)}
        self.codecs = {name: make("compression", name) for name in sorted(codecs)}
        self.security = make("security", "tls")
        self.said: list[bytes] = []
        self.told = threading.Event()

    def session(self) -> CodecSession:
        here = self.setup.side
        return CodecSession(
            session="switch",
            machine="switch",
            driver="bench",
            peer="b" if here == "a" else "a",
            tenant="",
            memory_bytes=1 << 30,
            role="source" if here == "a" else "destination",
        )

    def hear(self, message: bytes) -> None:
        self.said.append(message)
        self.told.set()

    def link(self, session: str, dial: Any = None, steering: Any = None) -> Link:
        return Link(
            session, self.setup.window_bytes, 60.0, self.hear, lambda: None,
            lambda reason: None, dial, steering=steering,
        )  # fmt: skip

    def steering(self, transport: str) -> Any:
        return getattr(self.transports[transport], "steering", lambda: None)()

    def dial(self, transport: str) -> Any:
        def call() -> Any:
            stream = self.transports[transport].connect(self.setup.address, 5.0)
            return self.security.client(stream, "b")

        return call


def _say(**values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


class _Noted:
    """Stands for the machine that arrives: notes when each batch was there."""

    def __init__(self) -> None:
        self.at_s: list[float] = []

    def write(self, batch: Batch) -> None:
        self.at_s.append(time.monotonic())


def _receive(side: _Side) -> None:
    address = side.setup.address
    host = f"[{address}]" if ":" in address else address
    listener = side.transports[side.setup.modes[0][0]].listen(f"{host}:{PORT}")
    noted = _Noted()
    session = side.session()
    decoders = {name: made.decoder(session) for name, made in side.codecs.items()}
    for decoder in decoders.values():
        # As a node does; a fresh one holds nothing.
        getattr(decoder, "have", bytes)()
    pumps: list[InwardPump] = []
    links: list[Link] = []

    def make(hello: Any, peer: str) -> Link:
        link = side.link(hello.session)
        links.append(link)
        pump = InwardPump(link, decoders.__getitem__, noted)
        pumps.append(pump)
        threading.Thread(target=pump.run, daemon=True).start()
        return link

    Acceptor(listener.accept, lambda stream: (side.security.server(stream), "a"), make).start()
    _say(listening=listener.address)
    if not side.told.wait(_ENOUGH_S):
        sys.exit("the other side says nothing")
    batches, digest = side.said[-1].decode().split()
    whole = pumps[0].wait_for(int(batches)) and pumps[0].digest.hex() == digest
    links[0].send_message(b"whole" if whole else b"torn")
    _say(whole=whole, at_s=noted.at_s)
    links[0].join()


class _Pages:
    """Stands for the machine that leaves: pages without an end, until it is told."""

    def __init__(self, content: Path) -> None:
        self._content = content.read_bytes()
        self._next = 0
        self.over = False

    def read(self) -> Batch | None:
        if self.over:
            return None
        size = BATCH_PAGES * PAGE
        count = len(self._content) // size
        start = self._next % count * size
        # Other addresses each time round, or a codec would find them sent already.
        first = self._next * BATCH_PAGES
        self._next += 1
        addresses = b"".join(
            ((first + page) * PAGE).to_bytes(8, "little") for page in range(BATCH_PAGES)
        )
        return Batch(addresses=addresses, pages=self._content[start : start + size])


def _send(side: _Side) -> None:
    setup = side.setup
    transport, codec = setup.modes[0]
    link = side.link("switch", side.dial(transport), side.steering(transport))
    link.start()
    if not link.wait_connected(_CONNECT_S):
        sys.exit("there was no connection")
    pages = _Pages(Path(setup.content))
    session = side.session()
    encoders = {name: made.encoder(session) for name, made in side.codecs.items()}
    pump = OutwardPump(pages, codec, encoders[codec], link)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            pump.run()
        except Exception as error:
            failed.append(error)

    pumping = threading.Thread(target=run, daemon=True)
    pumping.start()
    began: list[float] = []
    asked: list[float] = []
    time.sleep(4 * setup.every_s)
    for number in range(1, setup.switches + 1):
        transport, codec = setup.modes[number % len(setup.modes)]
        start_s = time.monotonic()
        done = threading.Event()
        pump.switch(codec, encoders[codec], done.set)
        link.steering = side.steering(transport)
        link.redial(side.dial(transport))
        began.append(start_s)
        asked.append(time.monotonic() - start_s)
        if not done.wait(30) or failed:
            sys.exit(f"the copy does not go on after switch {number}: {failed}")
        time.sleep(setup.every_s)
    pages.over = True
    pumping.join(30)
    side.told.clear()
    link.send_message(f"{pump.batches} {pump.digest.hex()}".encode())
    if not side.told.wait(60):
        sys.exit("the other side does not answer")
    measure = link.measure()
    _say(
        began_s=began,
        asked_s=asked,
        batches=pump.batches,
        raw_bytes=pump.raw_bytes,
        resent_bytes=measure.resent_bytes,
        whole=side.said[-1] == b"whole",
    )
    link.close()
    link.join()


def main() -> None:
    # A stream that ends is what is measured here, and no news.
    logging.disable(logging.WARNING)
    setup = cattrs.structure(json.loads(sys.argv[1]), Setup)
    side = _Side(setup)
    (_send if setup.side == "a" else _receive)(side)
