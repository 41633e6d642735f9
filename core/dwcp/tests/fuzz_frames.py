"""Fuzzes all that a peer can say on a link: ``python fuzz_frames.py --seconds 60 [--seed 1]``.

Invariant: anything is either accepted within its bounds or refused with ProtocolError or
LinkBroken, and memory stays bounded.

Frame heads, greetings, messages, packed batches, and whole streams of them through the frame reader
and the link's core. Where atheris is installed (``--engine atheris``) coverage guides the inputs;
otherwise sound ones are mutated from a seed, which replays any failure.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec
from novacron import BATCH_BYTES_MAX, Batch, Buffer, Channel, Identity, TransportError
from novacron_dwcp import LinkBroken, ProtocolError
from novacron_dwcp import messages as msg
from novacron_dwcp.driver import read_frame
from novacron_dwcp.link import (
    BULK,
    FRAME_BYTES_MAX,
    GREETING_BYTES_MAX,
    HEADER,
    MESSAGE_FRAME_BYTES_MAX,
    PARTS_MAX,
    RANGES_MAX,
    VERSION,
    WINDOW_BYTES_MAX,
    Ack,
    Assembly,
    Frame,
    Greeting,
    Kind,
    LinkCore,
    parse_ack,
    parse_greeting,
    parse_head,
)
from novacron_dwcp.pump import DIGEST_BYTES

# What one run may take beyond what the interpreter and its libraries took when it began.
MEMORY_MAX: Final = 256 << 20
INPUT_MAX: Final = 1 << 16
CORPUS_MAX: Final = 400
WINDOW: Final = 1 << 16
LINK: Final = bytes(range(16))
NOTABLE: Final = (0, 1, 2, 7, 16, 0x7F, 0x80, 0x90, 0xA0, 0xC1, 0xC6, 0xD7, 0xDB, 0xDD, 0xDF, 0xFF)
WIDE: Final = (0, 1, 1 << 20, (1 << 20) + 1, FRAME_BYTES_MAX, FRAME_BYTES_MAX + 1, (1 << 32) - 1)
SEEN: Counter[str] = Counter()


class Bytes:
    """A stream that brings what was made up, in pieces of any size, and then ends."""

    peer = Identity(node="peer", trust_domain="fuzz", fingerprint="00")
    channel = Channel(protocol="none", cipher="none", key_exchange="none")
    peer_address = "memory"

    def __init__(self, data: bytes, rng: random.Random) -> None:
        self.data = memoryview(data)
        self.longest = rng.choice((1, 3, 17, 4096))
        self.rng = rng

    def receive_into(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self.data), self.rng.randint(1, self.longest))
        buffer[:count] = self.data[:count]
        self.data = self.data[count:]
        return count

    def send(self, buffers: object) -> None:
        raise TransportError("nobody listens")

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


# What is checked of each kind of input.


def check_head(data: bytes, rng: random.Random) -> None:
    kind, sequence, length = parse_head(data[: HEADER.size].ljust(HEADER.size, b"\x00"))
    assert 0 <= length <= max(FRAME_BYTES_MAX, MESSAGE_FRAME_BYTES_MAX)
    assert 0 <= sequence < 1 << 64
    SEEN[f"head {kind.name}"] += 1


def check_greeting(data: bytes, rng: random.Random) -> None:
    greeting = parse_greeting(data[:GREETING_BYTES_MAX])
    assert len(greeting.link) == 16
    assert len(greeting.session) <= 128
    core = sender(3)
    core.lost(1, 0.0)
    core.opened(2, greeting)
    again = [frame.sequence for frame in core.take_out(2, 1 << 20)]
    arrived = {n for first, last in greeting.received for n in range(first, last + 1)}
    assert again == [n for n in range(greeting.expects, 4) if n not in arrived]
    assert core.peer_window <= WINDOW_BYTES_MAX
    SEEN["greeting"] += 1


def sender(frames: int) -> LinkCore:
    """A core with so many frames out on stream 1."""
    core = LinkCore(LINK, "s1", WINDOW)
    core.opened(1, Greeting(version=VERSION, link=LINK, session="s1", expects=1, window=WINDOW))
    for _ in range(frames):
        core.number(Kind.DATA, b"x")
    core.take_out(1, 1 << 20)
    return core


def check_ack(data: bytes, rng: random.Random) -> None:
    number = int.from_bytes(data[:8].ljust(8, b"\x00"), "big")
    ack = parse_ack(Frame(Kind.ACK, number, data[8:]))
    assert len(ack.received) <= RANGES_MAX
    core = sender(40)
    core.acknowledged(ack)
    assert ack.taken <= ack.arrived <= 40
    assert core.outstanding == 40 - ack.taken
    assert len(core._confirmed) <= 40
    core.lost(1, 0.0)
    core.opened(2, Greeting(version=VERSION, link=LINK, session="s1", expects=1, window=WINDOW))
    assert all(1 <= frame.sequence <= 40 for frame in core.take_out(2, 1 << 20))
    SEEN["ack"] += 1


def check_message(data: bytes, rng: random.Random) -> None:
    message = msg.decode(data)
    assert len(message.session) <= len(data)
    SEEN[type(message).__name__] += 1


def check_batch(data: bytes, rng: random.Random) -> None:
    batch = Batch.unpack(data)
    assert batch.nbytes <= BATCH_BYTES_MAX
    assert batch.pack() == data
    assert not batch.page_count or len(batch.pages) % batch.page_count == 0
    SEEN["batch"] += 1


def check_stream(data: bytes, rng: random.Random) -> None:
    """As a link reads it, and a machine that takes batches now and then."""
    stream = Bytes(data, rng)
    core, assembly = sender(3), Assembly()
    waiting: list[Frame] = []
    arrived = 0
    while (frame := read_frame(stream)) is not None:
        SEEN[f"frame {frame.kind.name}"] += 1
        if frame.kind in (Kind.HELLO, Kind.WELCOME):
            parse_greeting(frame.payload)
        elif frame.kind is Kind.ACK:
            core.acknowledged(parse_ack(frame))
        elif frame.kind is Kind.GOODBYE:
            return
        else:
            for ready in core.received(frame):
                assert ready.sequence == arrived + 1
                arrived = ready.sequence
                waiting.append(ready)
                if ready.kind in BULK and (batch := assembly.add(ready)) is not None:
                    assert len(batch.payload) <= FRAME_BYTES_MAX
                    assert assembly.parts_of(batch)[-1] == ready.sequence
                assert len(assembly._parts) <= PARTS_MAX
                assert not assembly._made_of
            held = sum(f.size for f in (*waiting, *core._early.values()) if f.kind in BULK)
            assert held == core._held <= WINDOW + FRAME_BYTES_MAX
        while waiting and rng.random() < 0.7:
            taken = waiting.pop(0)
            assert core.taken(taken.sequence)
            assert core.ack().taken == taken.sequence
            take(taken)
        assert parse_ack(core.ack().frame()) == core.ack()


def take(frame: Frame) -> None:
    if frame.kind is Kind.MESSAGE:
        msg.decode(frame.payload)
    elif len(frame.payload) >= DIGEST_BYTES:
        assert Batch.unpack(memoryview(frame.payload)[DIGEST_BYTES:]).nbytes <= BATCH_BYTES_MAX


Check = Callable[[bytes, random.Random], None]
CHECKS: Final[tuple[Check, ...]] = (
    check_head,
    check_greeting,
    check_ack,
    check_message,
    check_batch,
    check_stream,
    check_stream,
)


def execute(check: Check, data: bytes, rng: random.Random) -> bool:
    """Whether it was accepted. Raises AssertionError if the invariant does not hold."""
    try:
        check(data, rng)
    except (ProtocolError, LinkBroken):
        return False
    return True


# Sound inputs.


def sound_messages() -> list[bytes]:
    offer = msg.Offer(
        session="s1", machine="vm", source="a", target="b", epoch=3, runs=True, driver="wasm",
        memory_bytes=1 << 30, compression="zstd", settings={"guest": "kv", "list": [1, None, 2.5]},
        origin={"module": b"\x00asm", "deep": {"a": {"b": [[], {}]}}},
    )  # fmt: skip
    others: list[msg.Message] = [
        msg.Accept(session="s1", have=bytes(40)),
        msg.Refuse(session="s1", reason="no room", hint="make some"),
        msg.Seal(session="s1", digest="d" * 64, batches=7, memory="m"),
        msg.Verified(session="s1", digest="d" * 64),
        msg.Run(session="s1", machine="vm", epoch=4),
        msg.Running(session="s1", epoch=4),
        msg.Abandoned(session="s1", epoch=5, reason="died"),
        msg.Lost(session="s1", reason="died"),
        msg.Abort(session="s1", reason="cancelled"),
        msg.Aborted(session="s1"),
        msg.Unknown(session="s1"),
        msg.Probe(session=""),
        msg.Report(session="", node="b", free_memory_bytes=1 << 34, drivers=["qemu", "wasm"]),
        msg.Examine(
            session="", machine="vm", driver="wasm", memory_bytes=1, settings={}, origin={}
        ),
        msg.Examined(session="", found=[msg.Found(code="a.b", what="w", cure="c")]),
    ]
    # Kinds of MessagePack that no message of ours has, where a message may have anything.
    strange = [b"\xd4\x05\x00", b"\xd6\xff" + bytes(4), b"\xd7\xff" + bytes(8), b"\xca" + bytes(4)]
    settings = [msgspec.structs.replace(offer, settings={"x": msgspec.Raw(s)}) for s in strange]
    return [msg.encode(message) for message in (offer, *settings, *others)]


def sound_batches(rng: random.Random) -> list[bytes]:
    made = []
    for layout, count, size in ((0, 0, 0), (10, 0, 0), (3, 1, 64), (0, 4, 128), (100, 9, 7)):
        parts = (rng.randbytes(layout), rng.randbytes(8 * count), rng.randbytes(count * size))
        made.append(Batch(*parts).pack())
    return made


def sound_greetings() -> list[bytes]:
    made: list[bytes] = []
    for session, window, known in (("", 1, False), ("s1", WINDOW, True), ("s" * 128, 0, False)):
        core = LinkCore(LINK, session, window)
        for sequence in (1, 3) if known else ():
            core.received(Frame(Kind.MESSAGE, sequence, b"x"))
        made.append(bytes(core.greeting(known=known, stream=len(made)).payload))
    return made


def sound_acks() -> list[bytes]:
    acks = [Ack(0, 0), Ack(3, 7), Ack(0, 2, ((4, 4), (6, 9))), Ack(40, 40), Ack(1, 1, ((3, 40),))]
    return [ack.taken.to_bytes(8, "big") + bytes(ack.frame().payload) for ack in acks]


def sound_stream(rng: random.Random) -> bytes:
    messages, batches = sound_messages(), sound_batches(rng)
    frames: list[Frame] = []
    if rng.random() < 0.2:
        frames.append(Frame(Kind.HELLO, 0, rng.choice(sound_greetings())))
    for sequence in range(1, rng.randint(1, 12)):
        if rng.random() < 0.5:
            frames.append(Frame(Kind.MESSAGE, sequence, rng.choice(messages)))
        else:
            payload = rng.randbytes(DIGEST_BYTES) + rng.choice(batches)
            kind = Kind.PART if rng.random() < 0.3 else Kind.DATA
            frames.append(Frame(kind, sequence, payload))
        if rng.random() < 0.3:
            frames.append(Ack(0, rng.randint(0, 3)).frame())
        if rng.random() < 0.3 and len(frames) > 1:
            frames[-2:] = reversed(frames[-2:])  # they came over two streams
        if rng.random() < 0.1:
            frames.append(rng.choice(frames))
    if rng.random() < 0.5:
        frames.append(Frame(Kind.GOODBYE, 0))
    return b"".join(frame.head() + bytes(whole(frame.payload)) for frame in frames)


def whole(payload: Buffer | tuple[Buffer, ...] | list[Buffer]) -> bytes:
    return payload if isinstance(payload, bytes) else b"".join(map(bytes, payload))  # type: ignore[arg-type]


def seeds(rng: random.Random) -> list[tuple[Check, bytes]]:
    found: list[tuple[Check, bytes]] = []
    for kind in Kind:
        found += [(check_head, HEADER.pack(length, kind, 1)) for length in WIDE]
    found += [(check_greeting, data) for data in sound_greetings()]
    found += [(check_ack, data) for data in sound_acks()]
    found += [(check_message, data) for data in sound_messages()]
    found += [(check_batch, data) for data in sound_batches(rng)]
    found += [(check_stream, sound_stream(rng)) for _ in range(60)]
    return found


def mutate(data: bytearray, rng: random.Random) -> None:
    """One change in place."""
    if not data:
        data += rng.randbytes(rng.randrange(20))
        return
    at = rng.randrange(len(data)) if rng.random() < 0.6 else rng.randrange(min(len(data), 64))
    kind = rng.randrange(8)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.choice(NOTABLE)
    elif kind == 2:
        data[at : at + 4] = rng.choice(WIDE).to_bytes(4, rng.choice(("big", "little")))
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        del data[at : at + rng.randrange(1, 40)]
    elif kind == 5:
        data[at:at] = rng.randbytes(rng.randrange(1, 30))
    elif kind == 6:
        source = rng.randrange(len(data))
        data[at:at] = data[source : source + rng.randrange(1, 300)]
    else:
        data[at : at + 1] = bytes([rng.choice(NOTABLE)]) * rng.randrange(1, 2000)
    del data[INPUT_MAX:]


def run_mutations(seed: int, more: Callable[[int], bool]) -> tuple[int, int]:
    rng = random.Random(seed)
    corpus = seeds(rng)
    first = len(corpus)
    accepted = runs = 0
    for check, data in corpus:
        execute(check, data, rng)
    while more(runs):
        check, base = rng.choice(corpus)
        if rng.random() < 0.02:
            check = rng.choice(CHECKS)
        data = bytearray(base)
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            mutate(data, rng)
        one = bytes(data)
        try:
            good = execute(check, one, rng)
        except BaseException as error:
            sys.stderr.write(f"seed={seed} {check.__name__} {one.hex()}: {error!r}\n")
            raise
        runs += 1
        accepted += good
        # What was accepted leads deeper.
        if good and rng.random() < 0.05:
            if len(corpus) < CORPUS_MAX:
                corpus.append((check, one))
            else:
                corpus[rng.randrange(first, CORPUS_MAX)] = (check, one)
    return runs, accepted


def run_atheris(seed: int, seconds: int) -> None:
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    atheris.instrument_all()

    def one(data: bytes) -> None:
        if data:
            execute(CHECKS[data[0] % len(CHECKS)], data[1:], random.Random(data[:4]))

    flags = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={INPUT_MAX}"]
    flags += ["-print_final_stats=1", "-rss_limit_mb=1024"]
    atheris.Setup([sys.argv[0], *flags], one)
    atheris.Fuzz()


def limit_memory() -> None:
    """From here on the process may take MEMORY_MAX more, or fail with MemoryError."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_MAX, resource.RLIM_INFINITY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--runs", type=int, help="so many inputs instead of so many seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=["mutation", "atheris"], default="mutation")
    arguments = parser.parse_args()
    if arguments.engine == "atheris":
        run_atheris(arguments.seed, int(arguments.seconds))
        return
    limit_memory()
    began = time.monotonic()

    def more(runs: int) -> bool:
        if arguments.runs is not None:
            return runs < int(arguments.runs)
        return time.monotonic() - began < arguments.seconds

    runs, accepted = run_mutations(arguments.seed, more)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    sys.stdout.write(f"seen: {', '.join(f'{name} {n}' for name, n in SEEN.most_common())}\n")
    sys.stdout.write(
        f"seed {arguments.seed}: {runs} executions, {accepted} accepted, peak RSS {peak} MiB, "
        f"no violation\n"
    )


if __name__ == "__main__":
    main()
