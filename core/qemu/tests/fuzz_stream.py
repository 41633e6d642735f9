"""Fuzzes the stream splitter and joiner: ``python fuzz_stream.py --seconds 60``.

Invariant: joining what any input was split into, however it was cut and flushed, gives the input
back; joining a hostile batch raises ProtocolError or succeeds; memory stays bounded.

Where atheris is installed (``--engine atheris``) coverage of the Python twin guides the inputs, and
twin and C are compared on each; otherwise sound streams are mutated from a seed.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from novacron_dwcp import BATCH_BYTES_MAX, Batch, ProtocolError
from novacron_native_pages.synthetic import random_stream
from novacron_qemu.stream import StreamJoiner, StreamProgress, StreamSplitter

# What one run may take beyond what the interpreter and its libraries took when it began.
MEMORY_MAX = 256 << 20
INPUT_MAX = 6 << 20
CORPUS_MAX = 300
KEPT_MAX = 100 << 10  # of one input in the corpus
NOTABLE = (0, 1, 2, 3, 4, 7, 8, 0x10, 0x22, 0x28, 0x7E, 0x7F, 0x80, 0xFF)


def check(data: bytes, rng: random.Random) -> StreamProgress:
    """The invariant, for one input and one way of cutting it."""
    splitter, joiner = StreamSplitter(), StreamJoiner()
    batches: list[Batch] = []
    view = memoryview(data)
    at = 0
    longest = rng.choice([1 << 20, 1 << 20, 70_000, 5000, 300])
    while at < len(view):
        size = rng.randrange(1, longest)
        batches += splitter.feed(view[at : at + size])
        at += size
        choice = rng.random()
        if choice < 0.05:
            batches += splitter.end()
        elif choice < 0.15:
            batches += splitter.flush()
    batches += splitter.end()
    done = 0
    for batch in batches:
        assert batch.nbytes <= BATCH_BYTES_MAX, "a batch is too large"
        joined = joiner.join(Batch.unpack(batch.pack()))
        assert joined == view[done : done + len(joined)], "what was joined is not what was split"
        done += len(joined)
    assert done == len(data) == joiner.joined_bytes, "bytes are missing"
    progress = splitter.progress
    assert progress.bytes == len(data)
    assert progress.opaque_bytes <= len(data)
    if batches:
        join_hostile(joiner, rng.choice(batches), rng)
    return progress


def join_hostile(joiner: StreamJoiner, batch: Batch, rng: random.Random) -> None:
    for _ in range(4):
        parts = [bytearray(batch.layout), bytearray(batch.addresses), bytearray(batch.pages)]
        for _ in range(rng.randrange(1, 4)):
            part = parts[rng.choice([0, 0, 0, 1, 2])]
            mutate(part, rng)
        with suppress(ProtocolError):
            joiner.join(Batch(*map(bytes, parts)))
        packed = bytearray(batch.pack())
        mutate(packed, rng)
        with suppress(ProtocolError):
            joiner.join(Batch.unpack(packed))


def mutate(data: bytearray, rng: random.Random) -> None:
    """One change in place; an empty one may stay empty."""
    if not data:
        data += rng.randbytes(rng.randrange(9))
        return
    # Most structure is near the beginning, and near what another mutation hit.
    at = rng.randrange(len(data)) if rng.random() < 0.6 else rng.randrange(min(len(data), 200))
    kind = rng.randrange(8)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.choice(NOTABLE)
    elif kind == 2:
        width = rng.choice([2, 4, 8])
        data[at : at + width] = rng.choice([0, 1, 2**31, 2**48, 2**63 - 1]).to_bytes(8)[-width:]
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        del data[at : at + rng.randrange(1, 50)]
    elif kind == 5:
        data[at:at] = rng.randbytes(rng.randrange(1, 30))
    elif kind == 6:
        source = rng.randrange(len(data))
        data[at:at] = data[source : source + rng.randrange(1, 10_000)]
    else:
        data[at : at + 1] = bytes([rng.choice(NOTABLE)]) * rng.randrange(1, 40)
    del data[INPUT_MAX:]


def features(progress: StreamProgress) -> tuple[object, ...]:
    """What tells one kind of run from another, so that rare ones are built upon."""
    return (
        progress.why[:70],
        progress.resumable,
        progress.page_size,
        min(progress.rounds, 4),
        progress.pages.bit_length(),
        progress.zero_pages.bit_length(),
        progress.opaque_bytes.bit_length() // 4,
    )


def run_mutations(seed: int, more: Callable[[int], bool]) -> int:
    rng = random.Random(seed)
    corpus = [random_stream(rng, rng.choice([2, 5, 20]))[:KEPT_MAX] for _ in range(50)]
    seen: set[tuple[object, ...]] = set()
    runs = 0
    while more(runs):
        data = bytearray(rng.choice(corpus))
        for _ in range(rng.choice([0, 1, 1, 2, 5])):
            mutate(data, rng)
        if rng.random() < 0.02:
            data = bytearray(random_stream(rng, 300)[:INPUT_MAX])
        found = features(check(bytes(data), rng))
        if found not in seen and len(data) <= KEPT_MAX:
            seen.add(found)
            if len(corpus) == CORPUS_MAX:
                del corpus[rng.randrange(CORPUS_MAX)]
            corpus.append(bytes(data))
        runs += 1
    sys.stdout.write(f"kinds of runs seen: {len(seen)}\n")
    return runs


def run_atheris(seed: int, seconds: int) -> None:
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from novacron_native_pages import Splitter

    sys.modules.pop("novacron_native_pages._twin", None)
    with atheris.instrument_imports(include=["novacron_native_pages._twin"]):
        from novacron_native_pages import _twin

    def one(data: bytes) -> None:
        rng = random.Random(data[:4])
        check(data, rng)
        pieces = []
        for splitter in (Splitter(), _twin.Splitter()):
            at, cut, made = 0, rng.randrange(len(data) + 1), []
            made += splitter.feed(data[at:cut])
            made += splitter.feed(data[cut:])
            made += splitter.flush(True)
            pieces.append([tuple(map(bytes, piece)) for piece in made])
        assert pieces[0] == pieces[1], "C and twin differ"

    # libFuzzer prints executions and peak RSS itself, and ends the process.
    rng = random.Random(seed)
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-stream-"))
    for number in range(30):
        (corpus / str(number)).write_bytes(random_stream(rng, 5)[: 64 << 10])
    flags = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=65536"]
    flags += ["-print_final_stats=1", "-rss_limit_mb=1024", str(corpus)]
    atheris.Setup([sys.argv[0], *flags], one)
    atheris.Fuzz()


def peak_rss_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def limit_memory() -> None:
    """From here on the process may take MEMORY_MAX more, or fail with MemoryError."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_MAX, resource.RLIM_INFINITY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, help="so many inputs instead of so many seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=["mutation", "atheris"], default="mutation")
    arguments = parser.parse_args()
    if arguments.engine == "atheris":
        run_atheris(arguments.seed, arguments.seconds)
        return
    limit_memory()
    began = time.monotonic()

    def more(runs: int) -> bool:
        if arguments.runs is not None:
            return runs < int(arguments.runs)
        return time.monotonic() - began < arguments.seconds

    runs = run_mutations(arguments.seed, more)
    sys.stdout.write(
        f"seed {arguments.seed}: {runs} executions, peak RSS {peak_rss_mib()} MiB, no violation\n"
    )


if __name__ == "__main__":
    main()
