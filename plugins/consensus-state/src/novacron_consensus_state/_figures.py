"""What state costs and how fast it spreads, measured: the figures of ``novacron bench state``."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen

from novacron_consensus_state import _records
from novacron_consensus_state._effects import Answer, Refused
from novacron_consensus_state._journal import Journal
from novacron_consensus_state._member import LogFactory
from novacron_consensus_state._replica import Level, Replica
from novacron_consensus_state._settings import ReplicaSettings
from novacron_consensus_state._wan import Wan

REGIONS = ("ap", "eu", "sa", "us", "za")
PROPAGATION_SPARE_MS = 250
SHARE_GOAL = 0.05
HEAL_GOAL_MS = 5_000


@frozen(kw_only=True)
class Figure:
    """One line of the report.

    Attributes:
        goal: What is promised, as text; empty if nothing is.
        met: Whether it is met; None if nothing is promised.
    """

    what: str
    value: str
    goal: str = ""
    met: bool | None = None


def percentile(values: list[float], share: float) -> float:
    """The value below which so large a share of the values is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _wan(seed: int, delays_ms: tuple[int, int], loss: float, per_region: int, **more: Any) -> Wan:
    regions = {f"{region}{n}": region for region in REGIONS for n in range(per_region)}
    made = Wan(
        regions=regions,
        delays_ms=delays_ms,
        loss=loss,
        seed=seed,
        settings=more.pop("settings", ReplicaSettings()),
        **more,
    )
    made.start()
    made.run(3_000)  # everybody has heard of everybody
    return made


def propagation(
    seed: int, delays_ms: tuple[int, int], loss: float, per_region: int, writes: int
) -> list[Figure]:
    """From the answer to a write until another member shows it."""
    made: dict[str, tuple[str, int]] = {}
    took: list[float] = []
    wan = _wan(seed, delays_ms, loss, per_region)
    rng = random.Random(seed)
    names = list(wan.regions)

    def changed(member: str, name: str, kind: str) -> None:
        maker, at = made.get(name, (member, 0))
        if maker != member:
            took.append(wan.now - at)

    def write(n: int) -> None:
        member, name = rng.choice(names), f"key-{n}"
        made[name] = (member, wan.now)
        wan.write(member, name, "lww", "set", [n])

    wan.changed = changed
    began_bytes, began = wan.sent_bytes, wan.now
    for n in range(writes):
        # Twenty writes a second over all members.
        wan.at(n * 50 + int(rng.random() * 50), lambda n=n: write(n))  # type: ignore[misc]
    wan.run(writes * 50)
    sent, seconds = wan.sent_bytes - began_bytes, (wan.now - began) / 1000
    wan.run(10_000)
    expected = writes * (len(names) - 1)
    bound = delays_ms[1] + PROPAGATION_SPARE_MS
    p99 = percentile(took, 0.99)
    return [
        Figure(
            what=f"propagation p50, {len(names)} members, {loss:.1%} loss",
            value=f"{percentile(took, 0.5):.0f} ms",
        ),
        Figure(
            what="propagation p99",
            value=f"{p99:.0f} ms",
            goal=f"<= {bound} ms",
            met=p99 <= bound and len(took) == expected,
        ),
        Figure(what="propagation, the slowest", value=f"{max(took):.0f} ms"),
        Figure(what="arrivals", value=f"{len(took)} of {expected}", met=len(took) == expected),
        Figure(
            what="traffic at 20 writes/s, probes included",
            value=f"{sent / seconds / len(names) / 1000:.1f} kB/s per member",
        ),
    ]


def partition(
    seed: int, delays_ms: tuple[int, int], loss: float, minutes: int, *, small_history: bool
) -> list[Figure]:
    """One region is cut off while both sides write; then how long until all hold the same."""
    settings = ReplicaSettings(history_bytes=20_000 if small_history else 32 << 20)
    wan = _wan(seed, delays_ms, loss, 1, settings=settings)
    rng = random.Random(seed)
    names = list(wan.regions)
    for n in range(200 * minutes):
        wan.write(rng.choice(names), f"key-{n}", "lww", "set", [n])
        wan.run(1)
    wan.run(60_000, wan.converged)
    wan.isolate(REGIONS[0])
    for n in range(minutes * 60 * 5):
        member = rng.choice(names)
        wan.write(member, f"key-{rng.randrange(3_000)}", "lww", "set", [n])
        wan.run(200)
    wan.isolate(REGIONS[0], heal=True)
    healed = wan.now
    wan.run(120_000, wan.converged)
    took = wan.now - healed
    syncs = sum(replica.member.sync.finished for replica in wan.replicas.values())
    how = f"{syncs} by comparing trees" if syncs else "by recent events"
    return [
        Figure(
            what=f"a {minutes}-minute partition healed, {how}",
            value=f"{took} ms",
            goal=f"< {HEAL_GOAL_MS} ms",
            met=wan.converged() and took < HEAL_GOAL_MS,
        )
    ]


def levels(
    seed: int,
    delays_ms: tuple[int, int],
    rounds: int,
    log: Callable[[str], LogFactory] | None,
) -> list[Figure]:
    """What each level waits for, in simulated time: the disk costs nothing here."""
    wan = _wan(seed, delays_ms, 0.0, 1, **({"log": log} if log else {}))
    wan.run(20_000)  # a leader is elected
    found: list[Figure] = []
    names = list(wan.regions)
    chosen = [level for level in Level if log is not None or level is not Level.STRONG]
    for level in chosen:
        for what in ("write", "read"):
            took: list[float] = []
            token = b""
            for n in range(rounds):
                member, began = names[n % len(names)], wan.now
                answers: list[Answer | Refused] = []
                more: dict[str, Any] = {"level": level}
                if level is Level.LOCAL:
                    more["token"] = token
                if what == "write":
                    wan.write(member, "x", "lww", "set", [n], answers.append, **more)
                else:
                    wan.read(member, "x", "lww", answers.append, **more)
                wan.run(10_000, lambda answers=answers: bool(answers))  # type: ignore[misc]
                if answers and isinstance(answers[0], Answer):
                    took.append(wan.now - began)
                    token = answers[0].token
                wan.run(50)
            missed = rounds - len(took)
            value = f"p50 {percentile(took, 0.5):.0f} ms, p99 {percentile(took, 0.99):.0f} ms"
            value += f", {missed} refused" if missed else ""
            found.append(Figure(what=f"{what} at {level}, over the wide area", value=value))
    return found


def delta_share(keys: int) -> list[Figure]:
    """Bytes of one update as a share of the whole state."""
    replica = _alone(keys)
    full = sum(map(len, _records.snapshot(replica.store)))
    effects = replica.write(
        10**6, 10**6, "key-7", "or-map", "set", ["name", "lww", "set", "x" * 20]
    )
    event = next(len(r) for e in effects for r in getattr(e, "records", ()) if r[:1] == b"E")
    share = event / full
    return [
        Figure(
            what=f"an update at {keys} keys",
            value=f"{event} bytes of {full} ({share:.4%})",
            goal=f"<= {SHARE_GOAL:.0%}",
            met=share <= SHARE_GOAL,
        )
    ]


def _alone(keys: int) -> Replica:
    replica = Replica("a", {"a": "x"}, [], ReplicaSettings(history_bytes=0), random.Random(1))
    replica.start(0)
    for n in range(keys):
        values = ["name", "lww", "set", f"machine {n}"]
        replica.write(n, n, f"key-{n}", "or-map", "set", values)
    return replica


def memory(keys: int) -> list[Figure]:
    """What a key takes in memory, with the tree and without history."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    replica = _alone(keys)
    replica.store.tree.root()
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return [Figure(what=f"memory per key, {keys} maps of one field", value=f"{taken / keys:.0f} B")]


def costs(folder: Path, operations: int) -> list[Figure]:
    """The time that one processor needs for a read and a write, without waiting for others."""
    found = []
    replica = _alone(1_000)
    for what in ("write", "read"):
        began = time.perf_counter()
        for n in range(operations):
            if what == "write":
                replica.write(10**7 + n, n, f"reg-{n % 1000}", "lww", "set", [n])
            else:
                replica.read(10**7, n, f"reg-{n % 1000}", "lww")
        took = (time.perf_counter() - began) / operations
        found.append(
            Figure(what=f"{what} at eventual, processor time", value=f"{took * 1e6:.0f} µs")
        )
    journal = Journal(folder / "journal")
    times = []
    for _ in range(100):
        began = time.perf_counter()
        journal.append([bytes(120)])
        journal.sync()
        times.append((time.perf_counter() - began) * 1000)
    journal.close()
    value = f"p50 {percentile(times, 0.5):.2f} ms, p99 {percentile(times, 0.99):.2f} ms"
    found.append(Figure(what="a write made durable, this disk", value=value))
    return found
