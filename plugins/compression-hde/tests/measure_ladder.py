"""Prints what the rungs cost and gain: ``python measure_ladder.py [FOLDER FOR THE STORES] [MIB]``.

Three parts: the rungs alone (GB/s of pages by what they are), the codec on a guest's memory made of
this host's programs (cold, sent again, returned, with a sibling at the destination), and the store.
Speeds are per second of processor time, so that other work on the host changes them little.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from attrs import evolve
from novacron import Batch, CodecSession, NodeFacts
from novacron_compression_hde import HdeCompression, HdeDecoder, HdeEncoder, Settings
from novacron_native_ladder import Parts, Places, Store, hash_pages, implementation

PAGE = 4096
PAGES = 256
PLACES = Places(count_at=0, addresses_at=8, pages_at=1 << 22)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def batches(memory: np.ndarray) -> Iterator[tuple[bytes, memoryview]]:
    for first in range(0, len(memory), PAGES):
        some = memory[first : first + PAGES]
        numbers = np.arange(first, first + len(some), dtype="<u8") * PAGE
        yield numbers.tobytes(), some.reshape(-1).data.cast("B")


def through(source: Store, destination: Store, memory: np.ndarray) -> tuple[float, float]:
    """Seconds of processor time to encode and to decode all of it."""
    encode_s = decode_s = 0.0
    for addresses, pages in batches(memory):
        begun = time.thread_time()
        encoded = source.encode(addresses, pages)
        between = time.thread_time()
        parts = Parts(*(bytes(part) for part in encoded.parts))
        encode_s += between - begun
        begun = time.thread_time()
        destination.decode(parts)
        decode_s += time.thread_time() - begun
    return encode_s, decode_s


def rungs(folder: str, size: int) -> None:
    rng = np.random.default_rng(1)
    count = size // PAGE
    memory = rng.integers(0, 256, (count, PAGE), np.uint8)
    begun = time.thread_time()
    hash_pages(memory.reshape(-1).data, PAGE, 1)
    say(f"hash only: {size / (time.thread_time() - begun) / 1e9:.2f} GB/s")

    def every_second_differs() -> None:
        memory[::2] = rng.integers(0, 256, (count // 2, PAGE), np.uint8)

    def one_word_in_every_second_differs() -> None:
        memory[::2, 8] += 1

    def none_differs() -> None:
        pass

    def all_differ() -> None:
        memory[:] = rng.integers(0, 256, (count, PAGE), np.uint8)

    say("pages                            encode GB/s  decode GB/s")
    # The first pass warms the host's memory: a virtual machine pays for it once.
    for _ in range(2):
        with tempfile.TemporaryFile(dir=folder) as one, tempfile.TemporaryFile(dir=folder) as two:
            for file in (one, two):
                file.truncate(PLACES.pages_at + size)
            options = {"page_size": PAGE, "capacity": count, "seed": 1}
            source = Store(one.fileno(), PLACES, **options, by_content=True)
            destination = Store(two.fileno(), PLACES, **options, by_content=False)
            found: dict[str, tuple[float, float]] = {}
            steps: list[tuple[str, Callable[[], None]]] = [
                ("new", none_differs),
                ("all the same", none_differs),
                ("half the same, half deltas", one_word_in_every_second_differs),
                ("half the same, half new", every_second_differs),
                ("all changed, in runs", all_differ),
            ]
            for name, change in steps:
                change()
                found[name] = through(source, destination, memory)
    for name, (encode_s, decode_s) in found.items():
        say(f"{name:32} {size / encode_s / 1e9:11.2f}  {size / decode_s / 1e9:11.2f}")


def programs(size: int, skip: int = 0) -> np.ndarray:
    """Pages of this host's programs and libraries."""
    data = bytearray()
    for root, folders, names in os.walk("/usr/lib"):
        folders.sort()
        for path in (Path(root, name) for name in sorted(names)):
            if path.is_symlink() or not path.is_file() or len(data) >= skip + size:
                continue
            content = path.read_bytes()
            # As in a page cache: each file begins at a page.
            data += content + bytes(-len(content) % PAGE)
    return np.frombuffer(bytes(data[skip : skip + size]), np.uint8).reshape(-1, PAGE).copy()


def guest(folder: str, size: int, level: int) -> None:
    here, there = (
        HdeCompression(Settings(level=level), NodeFacts(name=name, state_dir=Path(folder, name)))
        for name in ("here", "there")
    )
    memory = programs(size)
    rng = np.random.default_rng(2)
    # A fifth is empty, and there is something of its own in a tenth.
    memory[rng.random(len(memory)) < 0.2] = 0
    own = rng.random(len(memory)) < 0.1
    memory[own] = rng.integers(0, 64, (int(own.sum()), PAGE), np.uint8)
    number = 0

    def move(name: str, source: HdeCompression, destination: HdeCompression, machine: str) -> None:
        nonlocal number
        number += 1
        session = CodecSession(
            session=f"s-{number}", machine=machine, driver="d", peer="p", tenant="t",
            memory_bytes=size, role="source",
        )  # fmt: skip
        settings = Settings(level=level)
        encoder = HdeEncoder(settings, source.kept, session)
        decoder = HdeDecoder(settings, destination.kept, evolve(session, role="destination"))
        begun = time.process_time()
        offer = decoder.have()
        offer_s = time.process_time() - begun
        encoder.peer_has(offer)
        for label, again in ((name, False), ("  again, a hundredth written", True)):
            if again:
                if name != "cold":
                    break
                written = rng.random(len(memory)) < 0.01
                memory[written, :64] = rng.integers(0, 256, (int(written.sum()), 64), np.uint8)
            encode_s = decode_s = 0.0
            wire = 0
            for addresses, pages in batches(memory):
                begun = time.process_time()
                payload = encoder.encode(Batch(b"", addresses, pages))
                between = time.process_time()
                got = decoder.decode(payload)
                decode_s += time.process_time() - between
                encode_s += between - begun
                wire += len(payload)
                if got.pages != pages:
                    raise SystemExit("a page came out wrong")
            say(
                f"{label:32} {wire / 1e6:9.2f} {memory.nbytes / wire:8.1f} "
                f"{memory.nbytes / encode_s / 1e9:11.2f} {memory.nbytes / decode_s / 1e9:11.2f} "
                f"{len(offer) / 1e6:8.2f} {offer_s:7.2f} "
                f"{encoder.memory_bytes / 2**20:6.0f} {decoder.memory_bytes / 2**20:6.0f}"
            )
        if name == "cold":
            say(
                "  rungs: "
                + ", ".join(
                    f"{rung} {row['pages']:.0f} pages {row['raw_bytes'] / 1e6:.0f}>"
                    f"{row['wire_bytes'] / 1e6:.1f} MB {row['seconds']:.2f} s"
                    for rung, row in encoder.figures().items()
                )
            )
        begun = time.process_time()
        encoder.ended(True)
        decoder.ended(True)
        say(f"  kept by both in {time.process_time() - begun:.2f} s")

    say(
        f"{'level ' + str(level):32} {'wire MB':>9} {'ratio':>8} {'encode GB/s':>11} "
        f"{'decode GB/s':>11} {'offer MB':>8} {'s':>7} {'MiB':>6} {'MiB':>6}"
    )
    move("cold", here, there, "m")
    memory[rng.random(len(memory)) < 0.05, 100:200] ^= 0x55
    move("returned, a twentieth written", there, here, "m")
    order = rng.permutation(len(memory))
    memory[:] = memory[order]
    move("a sibling is there", here, there, "n")


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir()
    size = int(sys.argv[2]) << 20 if len(sys.argv) > 2 else 256 << 20
    say(f"{implementation()}, {size >> 20} MiB, stores in {folder}")
    rungs(folder, size)
    for level in (1, 3):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            for name in ("here", "there"):
                Path(place, name).mkdir()
            guest(place, size, level)


if __name__ == "__main__":
    main()
