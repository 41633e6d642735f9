"""The demo itself: makes the machine, moves it there and back under load, and judges."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from attrs import asdict, define, field, frozen
from novacron import Cancelled, ConfigError, NotFound, NovacronError
from novacron_machine_wasm import service_path

from novacron_demo._load import BLOCK_BYTES, KvLoad, Load, TickLoad
from novacron_demo._proof import check_stretches, longest_gap_outside_s, longest_gap_s
from novacron_demo._show import Progress, Screen, show_size
from novacron_demo._site import MACHINE, DemoNode, Site
from novacron_demo.wan import Wan

MIB: Final = 1 << 20
MEMORY_BYTES: Final = {"wasm": 64 * MIB, "qemu": 128 * MIB}
# From what holds a few writes, or boots a guest, to what two nodes' files may take on one host.
MEMORY_RANGES: Final = {"wasm": (MIB, 2048 * MIB), "qemu": (96 * MIB, 4096 * MIB)}
MEMORY_STEP: Final = 64 << 10
# The load dirties about a page per write; this part of the link is for that.
LOAD_SHARE: Final = 0.3
PAGE_BYTES: Final = 4096
# How long the machine is used where it is before it moves.
STAY_S: Final = 1.5
BOOT_TIMEOUT_S: Final = 180.0
ANSWER_TIMEOUT_S: Final = 30.0


@frozen(kw_only=True)
class Move:
    """What a move took.

    Attributes:
        seconds: From the request to its end.
        rounds: Passes over memory.
        raw_bytes: State that was sent, before compression.
        wire_bytes: The same as frames.
        downtime_ms: The pause, as the node that was left measured it: until it knew that the
            machine ran again, so a way through the link longer than the machine stood still.
        gap_ms: The longest time between two answers that a client felt.
        memory_digest: Of the paused machine's memory, equal on both sides; empty if not asked for.
    """

    source: str
    target: str
    seconds: float
    rounds: int
    raw_bytes: int
    wire_bytes: int
    downtime_ms: float
    gap_ms: float
    memory_digest: str = ""


@define(kw_only=True)
class Report:
    """What was seen, and what follows from it.

    Attributes:
        client: Whose gaps the moves tell.
        remarks: What the figures mean.
        evidence: What was proved, in words.
        faults: What contradicts the proof, in words.
        figures: Counts behind the evidence, for programs.
    """

    machine: str
    memory_bytes: int
    wan: str
    client: str
    moves: list[Move] = field(factory=list)
    remarks: list[str] = field(factory=list)
    evidence: list[str] = field(factory=list)
    faults: list[str] = field(factory=list)
    figures: dict[str, Any] = field(factory=dict)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}

    def judge(self, evidence: str, faults: Sequence[str]) -> None:
        """Take a result: the evidence, or what was found against it."""
        if not faults:
            self.evidence.append(evidence)
        self.faults += faults[:5]
        if len(faults) > 5:
            self.faults.append(f"… and {len(faults) - 5} more of that kind")


@frozen(kw_only=True)
class Options:
    """What the command line says."""

    wan: Wan
    machine: str = "wasm"
    memory_bytes: int = 64 * MIB
    keep: Path | None = None


def run(options: Options, screen: Screen) -> Report:
    """Show it. Raises NovacronError if something prevents it; the report says if it proves it."""
    began = time.monotonic()
    _check(options)
    what = "a WebAssembly machine" if options.machine == "wasm" else "a Debian guest of QEMU"
    screen.title(f"NovaCron: {what} moves to another node and back, while it is in use")
    site = Site(options.wan, options.keep)
    try:
        with contextlib.ExitStack() as stack:
            with screen.step("starting two nodes"):
                stack.enter_context(site)
            screen.done(f"nodes a and b run, with a fresh authority of their own ({_since(began)})")
            screen.done(f"the link between them: {options.wan} round trip, TLS 1.3, shaped here")
            show = _wasm if options.machine == "wasm" else _qemu
            report = show(options, screen, site)
            with screen.step("ending what was started"):
                stack.close()
    except KeyboardInterrupt:
        raise Cancelled("the demo was interrupted", truth=_left(site)) from None
    except NovacronError as error:
        if site.leftovers:
            error.truth = "; ".join(filter(None, [error.truth, _left(site)]))
        raise
    report.remarks += site.leftovers
    report.seconds = round(time.monotonic() - began, 1)
    return report


def _left(site: Site) -> str:
    return "; ".join(site.leftovers) or "everything that it had started was ended"


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def _check(options: Options) -> None:
    least, most = MEMORY_RANGES[options.machine]
    if not least <= options.memory_bytes <= most or options.memory_bytes % MEMORY_STEP:
        raise ConfigError(
            f"--memory: {options.memory_bytes} bytes are not possible in this demo",
            hint=f"from {least // MIB}MiB to {most // MIB}MiB, a multiple of 64KiB",
        )
    if options.machine == "wasm":
        return
    if importlib.util.find_spec("novacron_machine_qemu") is None:
        raise NotFound(
            "the plugin for QEMU machines is not installed",
            hint="pip install novacron-machine-qemu",
        )
    if shutil.which("qemu-system-x86_64") is None:
        raise NotFound(
            "QEMU is not installed (no qemu-system-x86_64)", hint="run scripts/debian-packages"
        )
    from novacron_machine_qemu.guest import find_busybox, find_kernel

    find_kernel()
    find_busybox()


def _wasm(options: Options, screen: Screen, site: Site) -> Report:
    memory = options.memory_bytes
    report = Report(
        machine="wasm", memory_bytes=memory, wan=str(options.wan), client="client that writes"
    )
    # Half of the memory is filled, a quarter is for the load; tables and spare room are the rest.
    settings = {"guest": "kv", "fill_bytes": memory // 2 // PAGE_BYTES * PAGE_BYTES}
    with screen.step("filling a machine"):
        site.a.finish(
            site.a.client.create(
                MACHINE, driver="wasm", memory_bytes=memory, settings=settings, start=True
            )
        )
    pace_s = min(0.1, max(0.002, PAGE_BYTES / (LOAD_SHARE * options.wan.rate_bytes_per_s)))
    load = KvLoad(
        [service_path(node.home(MACHINE)) for node in site.nodes],
        pace_s,
        max(1, memory // 4 // BLOCK_BYTES),
    )
    screen.done(
        f"machine {MACHINE} runs on a: a key-value store, {show_size(memory)}, "
        f"{load.entries_before:,} entries; a client writes"
    )
    load.start()
    try:
        moves = _there_and_back(screen, site, report, load, "writes acknowledged")
    finally:
        load.stop()
    load.check()
    with screen.step("reading back every acknowledged write"):
        read = load.read_back()
    report.judge(
        f"no write lost: {len(load.acks):,} were acknowledged, and all {read.entries:,} entries "
        "that they made hold what was acknowledged last",
        read.faults,
    )
    stretches = check_stretches(site.runs_log.read_text(), MACHINE)
    faults = list(stretches.faults)
    if stretches.count <= len(moves):
        faults.append(f"only {stretches.count} stretches of execution were noted")
    rests = " and ".join(f"{rest * 1000:.0f} ms" for rest in stretches.rests_s)
    report.judge(
        f"never two at once: {stretches.count} stretches of execution, none overlaps another; "
        f"the machine stood still for {rests} in between",
        faults,
    )
    there, back = moves
    if there.wire_bytes and back.wire_bytes < there.wire_bytes:
        less = 100 * (1 - back.wire_bytes / there.wire_bytes)
        report.remarks.append(
            f"The way back took {less:.0f} % less on the wire: a still had what had left it, so b "
            "sent what differs."
        )
    report.figures |= {
        "acknowledged_writes": len(load.acks),
        "entries_read_back": read.entries,
        "stretches": stretches.count,
        "rests_ms": [round(rest * 1000, 1) for rest in stretches.rests_s],
    }
    return report


def _qemu(options: Options, screen: Screen, site: Site) -> Report:
    from novacron_machine_qemu.guest import APPEND, build_guest

    memory = options.memory_bytes
    report = Report(
        machine="qemu", memory_bytes=memory, wan=str(options.wan), client="reader of its console"
    )
    kernel, initrd = build_guest(site.folder / "guest")
    settings = {"kernel": str(kernel), "initrd": str(initrd), "append": APPEND}
    load = TickLoad([node.home(MACHINE) / "console.log" for node in site.nodes])
    try:
        with screen.step("booting a guest"):
            site.a.finish(
                site.a.client.create(
                    MACHINE, driver="qemu", memory_bytes=memory, settings=settings, start=True
                )
            )
            load.start()
            load.wait_for_acks(3, BOOT_TIMEOUT_S)
        screen.done(
            f"machine {MACHINE} runs on a: a Linux guest, {show_size(memory)}, that counts on its "
            "console"
        )
        moves = _there_and_back(screen, site, report, load, "ticks", verify="memory")
        site.a.finish(site.a.client.pause(MACHINE))
    finally:
        load.stop()
        load.close()
    load.check()
    ticks = load.ticks()
    faults = list(ticks.faults)
    if not ticks.count:
        faults.append("the guest did not count")
    report.judge(
        f"the guest counted to {ticks.count:,} over both consoles and never skipped or repeated",
        faults,
    )
    digests = [move.memory_digest for move in moves]
    report.judge(
        "the guest's whole memory, taken while it was paused, was the same on both sides, both "
        f"times ({', '.join(digest[:12] + '…' for digest in digests)})",
        [] if all(digests) else ["the memory's digest was not compared"],
    )
    report.remarks.append(
        "The way back sent everything again: QEMU machines leave no image behind yet."
    )
    report.figures |= {"ticks": ticks.count}
    return report


def _there_and_back(
    screen: Screen, site: Site, report: Report, load: Load, what: str, **wish: Any
) -> list[Move]:
    times: list[tuple[float, float]] = []
    results: list[dict[str, Any]] = []
    ways = ((site.a, site.b), (site.b, site.a))
    for source, target in ways:
        with screen.step(f"the machine is in use on {source.name}"):
            _use(load, STAY_S)
        began = time.monotonic()
        result = _move(
            screen,
            source,
            target,
            Progress(source=source.name, target=target.name, writes=load.count, what=what),
            wish,
        )
        times.append((began, time.monotonic()))
        results.append(result)
        load.wait_for_acks(1, ANSWER_TIMEOUT_S)
        screen.moved(_summary(source, target, times[-1], result, load.acks))
    with screen.step("the machine is in use on a"):
        _use(load, STAY_S)
    load.stop()
    # Only now is it known how long the gap was that the end of a move fell into.
    report.moves = [
        _summary(source, target, time_, result, load.acks)
        for (source, target), time_, result in zip(ways, times, results, strict=True)
    ]
    usual = longest_gap_outside_s(load.acks, times) * 1000
    report.remarks.append(
        f"Pause is what the node measured; longest gap is what the {report.client} felt ("
        f"outside the moves at most {usual:.0f} ms)."
    )
    report.figures["gap_outside_moves_ms"] = round(usual, 1)
    return report.moves


def _use(load: Load, seconds: float) -> None:
    """Let the load work for a while; notices if it cannot."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        load.wait_for_acks(1, ANSWER_TIMEOUT_S)


def _move(
    screen: Screen, source: DemoNode, target: DemoNode, progress: Progress, wish: dict[str, Any]
) -> dict[str, Any]:
    operation = source.client.migrate(MACHINE, target.name, **wish)
    with screen.move(progress) as take, contextlib.closing(source.events(operation)) as events:
        for event in events:
            take(event)
    return source.result(operation)


def _summary(
    source: DemoNode,
    target: DemoNode,
    times: tuple[float, float],
    operation: dict[str, Any],
    acks: Sequence[float],
) -> Move:
    result = operation["result"]
    return Move(
        source=source.name,
        target=target.name,
        seconds=round(times[1] - times[0], 2),
        rounds=int(result["round"]),
        raw_bytes=int(result["raw_bytes"]),
        wire_bytes=int(result["wire_bytes"]),
        downtime_ms=float(result["downtime_ms"]),
        gap_ms=round(longest_gap_s(acks, *times) * 1000, 1),
        memory_digest=str(result.get("memory_digest") or ""),
    )
