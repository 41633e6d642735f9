"""A raft cluster of real processes that is killed, stopped, cut apart and starved of disk, while
clients use it; their history must be one that a single machine could show."""

from __future__ import annotations

import itertools
import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import asdict, define, field, frozen
from cattrs import unstructure
from novacron_testkit.linearizability import KeyValueModel, Operation, check

from novacron_bench._consensus import RaftStore, end, raft
from novacron_bench._nemesis_load import NemesisLoad

FAULT_S: Final = (0.5, 4.0)
CALM_S: Final = (0.5, 2.5)
END_S: Final = 300.0


@frozen(kw_only=True)
class Outcome:
    """What a run showed.

    Attributes:
        operations: That had an answer.
        in_doubt: Writes whose clients never learned what became of them.
        unread: Keys that could not be read although every fault was over.
        faults: How many of each kind there were.
        violation: What no single machine could have shown; "" if all of it could.
        longest_s: The longest time in which no operation was answered.
    """

    seed: int
    seconds: float
    operations: int
    in_doubt: int
    unread: tuple[str, ...]
    faults: Mapping[str, int]
    violation: str
    longest_s: float
    check_s: float

    @property
    def held(self) -> bool:
        return not self.violation and not self.unread

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"held": self.held}


@define(eq=False)
class Nemesis:
    """Breaks a cluster and mends it again.

    Args:
        chance: Decides what, whom and for how long; the processes' own timing it cannot decide.
    """

    store: RaftStore
    chance: random.Random
    tell: Callable[[str], None]
    faults: Counter[str] = field(factory=Counter)

    @property
    def everybody(self) -> list[int]:
        return list(range(self.store.size))

    def strike(self) -> None:
        """One fault, for a while, and its end."""
        fault = self.chance.choice(
            (
                self._kill_leader,
                self._kill_some,
                self._stop_leader,
                self._stop_some,
                self._cut_leader_off,
                self._split,
                self._deafen,
                self._fill_disk,
            )
        )
        name = fault.__name__.strip("_").replace("_", " ")
        self.faults[name] += 1
        self.tell(name)
        fault()
        time.sleep(self.chance.uniform(*CALM_S))

    def _wait(self) -> None:
        time.sleep(self.chance.uniform(*FAULT_S))

    def _kill(self, members: list[int]) -> None:
        for member in members:
            self.store.kill(member)
        self._wait()
        for member in members:
            self.store.start(member)

    def _kill_leader(self) -> None:
        self._kill([self.store.leader()])

    def _kill_some(self) -> None:
        """Any number, all of them too: what was acknowledged is on the disks."""
        self._kill(self.chance.sample(self.everybody, self.chance.randint(1, self.store.size)))

    def _stop(self, members: list[int]) -> None:
        for member in members:
            self.store.processes[member].send_signal(signal.SIGSTOP)
        self._wait()
        for member in members:
            self.store.processes[member].send_signal(signal.SIGCONT)

    def _stop_leader(self) -> None:
        self._stop([self.store.leader()])

    def _stop_some(self) -> None:
        self._stop(self.chance.sample(self.everybody, self.chance.randint(1, self.store.size - 1)))

    def _cut(self, side: set[int]) -> None:
        for member in self.everybody:
            here = member in side
            self.store.cut(member, [n for n in self.everybody if (n in side) != here])
        self._wait()
        self._heal()

    def _cut_leader_off(self) -> None:
        """Clients still reach it."""
        self._cut({self.store.leader()})

    def _split(self) -> None:
        self._cut(set(self.chance.sample(self.everybody, self.store.size // 2)))

    def _deafen(self) -> None:
        """One way only: somebody's messages get to nobody, and it hears everybody."""
        mute = self.chance.choice(self.everybody)
        self.store.cut(mute, [n for n in self.everybody if n != mute])
        self._wait()
        self._heal()

    def _heal(self) -> None:
        for member in self.everybody:
            self.store.cut(member, [])

    def _fill_disk(self) -> None:
        """No file of some member grows: its writes fail."""
        pid = self.store.processes[self.chance.choice(self.everybody)].pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
        self._wait()
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


def run(
    folder: Path, *, size: int, seconds: float, seed: int, tell: Callable[[str], None]
) -> Outcome:
    """Break a cluster for a while, mend it, and judge what its clients saw."""
    with raft(folder / "raft", size, election_ms=500) as store:
        store.leader()
        history = folder / "history.jsonl"
        load = NemesisLoad(member=store.setup("client"), history=str(history), seed=seed)
        path = folder / "load.json"
        path.write_text(json.dumps(unstructure(load)))
        process = subprocess.Popen(
            [sys.executable, "-m", "novacron_bench._nemesis_load", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()
            nemesis = Nemesis(store, random.Random(seed), tell)
            ends_s = time.monotonic() + seconds
            while time.monotonic() < ends_s:
                nemesis.strike()
            said = json.loads(process.communicate("end\n", timeout=END_S)[0])
        finally:
            end(process)
        operations = [operation(line) for line in history.read_text().splitlines()]
        return judged(operations, seed, seconds, tuple(said["unread"]), nemesis.faults)


def operation(line: str) -> Operation:
    client, asked, called_ms, returned_ms, answer = json.loads(line)
    if returned_ms is None:
        return Operation(client, tuple(asked), called_ms)
    return Operation(client, tuple(asked), called_ms, returned_ms, answer)


def judged(
    operations: list[Operation],
    seed: int,
    seconds: float,
    unread: tuple[str, ...],
    faults: Mapping[str, int],
) -> Outcome:
    began_s = time.monotonic()
    violation = check(operations, KeyValueModel())
    answered = sorted(one.returned_ms for one in operations if one.returned_ms is not None)
    gaps = [later - sooner for sooner, later in itertools.pairwise(answered)]
    return Outcome(
        seed=seed,
        seconds=seconds,
        operations=len(answered),
        in_doubt=len(operations) - len(answered),
        unread=unread,
        faults=dict(sorted(faults.items())),
        violation="" if violation is None else str(violation),
        longest_s=max(gaps, default=0.0) / 1e3,
        check_s=time.monotonic() - began_s,
    )
