"""Fuzzes both sides of NBD: ``python fuzz_nbd.py --seconds 60``.

Invariant: whatever bytes come, in whatever pieces, a core raises NbdError or goes on; how they were
cut changes neither its requests, nor its events, nor what it sends; memory stays bounded.
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import sys
import time
from typing import Any

from novacron_qemu.nbd import ClientCore, Command, Export, NbdError, Request, ServerCore

MEMORY_MAX = 256 << 20
EXPORT = Export(name="disk0", size_bytes=1 << 30)
_OPTION = 0x49484156454F5054
_REPLY = 0x0003E889045565A9
NOTABLE = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF)


def client_says(rng: random.Random) -> bytes:
    """What a sound client might send."""
    said = [struct.pack(">I", 3)]
    for _ in range(rng.randrange(3)):
        said.append(struct.pack(">QII", _OPTION, rng.choice([3, 8, 10, 5]), 0))
    name = rng.choice([b"disk0", b"", b"other"])
    data = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, 3)
    said.append(struct.pack(">QII", _OPTION, rng.choice([6, 7, 7]), len(data)) + data)
    said.append(struct.pack(">QII", _OPTION, 7, len(data)) + data)
    for cookie in range(rng.randrange(6)):
        kind = rng.choice([0, 1, 1, 3, 4, 6, 6, 7, 99, 2])
        length = rng.choice([0, 1, 512, 4096])
        offset = rng.choice([0, 4096, (1 << 30) - 512, 1 << 62])
        said.append(struct.pack(">IHHQQI", 0x25609513, 0, kind, cookie, offset, length))
        if kind == 1:
            said.append(rng.randbytes(length))
    return b"".join(said)


def server_says(rng: random.Random) -> bytes:
    """What a sound server might send to `ask`."""
    said = [struct.pack(">QQH", 0x4E42444D41474943, _OPTION, 3)]
    structured = rng.random() < 0.7
    said.append(struct.pack(">QIII", _REPLY, 8, 1 if structured else 0x80000001, 0))
    said.append(struct.pack(">QIIIHQH", _REPLY, 7, 3, 12, 0, 1 << 30, 0x4D))
    said.append(struct.pack(">QIII", _REPLY, 7, 1, 0))
    for cookie in range(1, 4):
        if not structured:
            said.append(struct.pack(">IIQ", 0x67446698, rng.choice([0, 0, 5, 28]), cookie))
            said.append(bytes(8192 if cookie == 2 else 0))
        elif cookie == 2:
            said.append(struct.pack(">IHHQI", 0x668E33EF, 0, 2, cookie, 12))
            said.append(struct.pack(">QI", 4096, 4096))
            said.append(struct.pack(">IHHQIQ", 0x668E33EF, 1, 1, cookie, 4104, 8192) + bytes(4096))
        else:
            said.append(struct.pack(">IHHQI", 0x668E33EF, 1, 0, cookie, 0))
    return b"".join(said)


def ask(client: ClientCore) -> None:
    client.ask(Command.WRITE, 0, 4096)
    client.ask(Command.READ, 4096, 8192)
    client.ask(Command.WRITE_ZEROES, 0, 1 << 20)


def serve(data: bytes, cuts: list[int]) -> tuple[Any, ...]:
    core, found, sent = ServerCore(EXPORT), [], b""
    try:
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            for request in core.feed(memoryview(data)[start:end]):
                found.append(request)
                answer(core, request)
    except NbdError as error:  # what came before in the same piece is lost with the connection
        return "refused", str(error)
    sent += core.output()
    return found, sorted(sent), core.ended


def answer(core: ServerCore, request: Request) -> None:
    if request.command is Command.READ:
        core.reply(request, data=bytes(request.length))
    elif request.command is not Command.DISCONNECT:
        core.reply(request)


def hear(data: bytes, cuts: list[int]) -> tuple[Any, ...]:
    core, found, asked = ClientCore("disk0"), [], False
    try:
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            # The client asks as soon as it may, whatever came with that word.
            for at in range(start, end):
                found += core.feed(data[at : at + 1])
                if core.negotiated and not asked:
                    asked = True
                    ask(core)
    except NbdError as error:
        return "refused", str(error)
    return found, core.output(), core.under_way


def mutate(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    match rng.randrange(4):
        case 0:
            data[at] = rng.choice(NOTABLE)
        case 1:
            data[at] ^= 1 << rng.randrange(8)
        case 2:
            del data[at : at + rng.randrange(1, 16)]
        case _:
            data[at:at] = rng.randbytes(rng.randrange(1, 16))


def once(rng: random.Random) -> bool:
    """One input for each side; whether it was refused by one of them."""
    refused = False
    for made, core in ((client_says(rng), serve), (server_says(rng), hear)):
        data = bytearray(made)
        for _ in range(rng.choice([0, 1, 1, 2, 4])):
            mutate(data, rng)
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
        whole, cut = core(bytes(data), []), core(bytes(data), cuts)
        assert whole == cut, f"cut at {cuts}, {core.__name__} differs"
        refused |= len(whole) == 2
    return refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with open("/proc/self/statm", encoding="ascii") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_MAX, resource.RLIM_INFINITY))
    rng, began, runs, refused = random.Random(arguments.seed), time.monotonic(), 0, 0
    while time.monotonic() - began < arguments.seconds:
        refused += once(rng)
        runs += 1
    sys.stdout.write(f"seed {arguments.seed}: {runs} runs, {refused} refused, no violation\n")


if __name__ == "__main__":
    main()
