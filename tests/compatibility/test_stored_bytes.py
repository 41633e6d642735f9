"""The protocol's bytes are what they were: stored ones decode, and are written again the same.

README.md beside this says what to do when the format is changed on purpose.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from novacron import Batch
from novacron_dwcp import messages as msg
from novacron_dwcp.link import (
    EXAMINES,
    HEADER,
    OLDEST,
    VERSION,
    Ack,
    Frame,
    Greeting,
    Kind,
    LinkCore,
    parse_greeting,
    parse_head,
)
from novacron_dwcp.pump import DIGEST_BYTES, chain

GOLDEN = Path(__file__).parent / "golden" / f"v{VERSION}.json"
LINK = bytes(range(16))
BATCH = Batch(b"layout", bytes(range(16)), b"first page" + b"other page")

FRAMES: dict[str, Frame] = {
    "HELLO": Frame(Kind.HELLO, 0, b"hello"),
    "WELCOME": Frame(Kind.WELCOME, 0, b"welcome"),
    "MESSAGE": Frame(Kind.MESSAGE, 1, b"message"),
    "DATA": Frame(Kind.DATA, 0x0102030405060708, b"data"),
    "ACK": Ack(300, 302, ((304, 304), (306, 310))).frame(),
    "PART": Frame(Kind.PART, 2, b"part"),
    "GOODBYE": Frame(Kind.GOODBYE, 0),
    "CHANNEL": Frame(Kind.CHANNEL, 0, b"raft"),
}
GREETINGS: dict[str, Greeting] = {
    "hello": Greeting(version=VERSION, link=LINK, session="mig-1", expects=1, window=16 << 20),
    "welcome": Greeting(
        version=VERSION, link=LINK, session="mig-1", expects=1 << 40, window=1 << 20, known=True
    ),
    "another stream": Greeting(
        version=VERSION,
        link=LINK,
        session="mig-1",
        expects=3,
        received=((5, 5), (8, 9)),
        window=16 << 20,
        stream=4,
        replaces=2,
    ),
    "probe": Greeting(version=VERSION, link=LINK, session="", expects=1, window=1 << 20),
}
MESSAGES: list[msg.Message] = [
    msg.Offer(
        session="mig-1",
        machine="vm",
        source="alpha",
        target="beta",
        epoch=3,
        runs=True,
        driver="wasm",
        memory_bytes=1 << 30,
        compression="zstd",
        settings={"guest": "kv", "tick_ms": 10, "list": [1, 2.5, None, True]},
        origin={"module": b"\x00asm", "deep": {"a": -1}},
    ),
    msg.Accept(session="mig-1", have=b"\x00\x01\xff"),
    msg.Refuse(session="mig-1", reason="no room", hint="make some"),
    msg.Seal(session="mig-1", digest="d1", batches=300, memory="m1"),
    msg.Verified(session="mig-1", digest="d1"),
    msg.Run(session="mig-1", machine="vm", epoch=4),
    msg.Running(session="mig-1", epoch=4),
    msg.Abandoned(session="mig-1", epoch=5, reason="its process died"),
    msg.Lost(session="mig-1", reason="its process died"),
    msg.Abort(session="mig-1", reason="cancelled"),
    msg.Aborted(session="mig-1"),
    msg.Unknown(session="mig-1"),
    msg.Probe(session=""),
    msg.Report(session="", node="beta", free_memory_bytes=1 << 34, drivers=["qemu", "wasm"]),
    msg.Examine(
        session="", machine="web-1", driver="qemu", memory_bytes=1 << 30, settings={}, origin={}
    ),
    msg.Examined(
        session="", found=[msg.Found(code="cpu.feature-missing", what="no avx", cure="drop it")]
    ),
]


def written() -> dict[str, dict[str, str]]:
    """What this release writes, as hex."""
    link = LinkCore(LINK, "mig-1", 16 << 20)
    first = chain(bytes(DIGEST_BYTES), BATCH)
    return {
        "frames": {
            name: (frame.head() + bytes(frame.payload)).hex() for name, frame in FRAMES.items()
        },
        "greetings": {
            name: bytes(greet(greeting).payload).hex() for name, greeting in GREETINGS.items()
        },
        "messages": {type(each).__name__: msg.encode(each).hex() for each in MESSAGES},
        "batches": {"one": BATCH.pack().hex(), "empty": Batch().pack().hex()},
        "digests": {"first": first.hex(), "second": chain(first, Batch()).hex()},
        "links": {
            "numbered": b"".join(
                link.number(kind, b"x").head() + b"x" for kind in (Kind.MESSAGE, Kind.DATA)
            ).hex()
        },
    }


def greet(greeting: Greeting) -> Frame:
    made = LinkCore(greeting.link, greeting.session, greeting.window, greeting.version)
    made._expects = greeting.expects
    for first, last in greeting.received:
        for sequence in range(first, last + 1):
            made.received(Frame(Kind.MESSAGE, sequence))
    return made.greeting(known=greeting.known, stream=greeting.stream, replaces=greeting.replaces)


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, str]]:
    if os.environ.get("NOVACRON_RENEW_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(written(), indent=2) + "\n", encoding="utf-8")
    stored: dict[str, dict[str, str]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return stored


def each(group: str, decode: Callable[[bytes], Any], golden: dict[str, dict[str, str]]) -> Any:
    return {name: decode(bytes.fromhex(text)) for name, text in golden[group].items()}


@pytest.mark.parametrize("group", sorted(written()))
def test_this_release_writes_the_bytes_that_are_stored(
    group: str, golden: dict[str, dict[str, str]]
) -> None:
    assert written()[group] == golden[group]


def test_stored_frames_are_read(golden: dict[str, dict[str, str]]) -> None:
    def decode(data: bytes) -> Frame:
        kind, sequence, length = parse_head(data[: HEADER.size])
        payload = data[HEADER.size :]
        assert len(payload) == length
        return Frame(kind, sequence, payload)

    assert each("frames", decode, golden) == FRAMES
    assert set(golden["frames"]) == {kind.name for kind in Kind}


def test_stored_greetings_are_read(golden: dict[str, dict[str, str]]) -> None:
    assert each("greetings", parse_greeting, golden) == GREETINGS


def test_stored_messages_are_read(golden: dict[str, dict[str, str]]) -> None:
    found = each("messages", msg.decode, golden)
    assert found == {type(message).__name__: message for message in MESSAGES}


def test_stored_batches_are_read(golden: dict[str, dict[str, str]]) -> None:
    found = each("batches", Batch.unpack, golden)
    assert found == {"one": BATCH, "empty": Batch()}


def test_every_kind_of_message_is_stored(golden: dict[str, dict[str, str]]) -> None:
    assert set(golden["messages"]) == {kind.__name__ for kind in msg.Message.__subclasses__()}


def test_an_older_message_without_the_optional_keys_is_read() -> None:
    assert msg.decode(bytes.fromhex("82a474797065a6416363657074a773657373696f6ea0")) == msg.Accept(
        session=""
    )


def test_what_an_older_version_wrote_is_read_and_written_as_it_was() -> None:
    """Nodes of both versions are in one fleet while it is upgraded."""
    for version in range(OLDEST, VERSION):
        path = GOLDEN.with_name(f"v{version}.json")
        stored = json.loads(path.read_text(encoding="utf-8"))
        greetings = each("greetings", parse_greeting, stored)
        assert {greeting.version for greeting in greetings.values()} == {version}
        for name, greeting in greetings.items():
            assert bytes(greet(greeting).payload).hex() == stored["greetings"][name]
        now = written()
        for group in set(stored) - {"greetings"}:
            assert stored[group].items() <= now[group].items()


def test_messages_that_came_with_a_version_are_not_in_the_older_ones() -> None:
    path = GOLDEN.with_name(f"v{EXAMINES - 1}.json")
    stored = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert set(written()["messages"]) - set(stored) == {"Examine", "Examined"}
