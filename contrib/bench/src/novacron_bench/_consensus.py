"""Raft of our own beside etcd on this host: puts that wait for a majority's disks, and leaders that
are killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, Protocol

from attrs import asdict, define, evolve, field, frozen
from cattrs import unstructure
from novacron import InternalError, NodeUnavailable
from novacron_security_tls import Authority

from novacron_bench._consensus_load import LoadSetup, percentile
from novacron_bench._consensus_worker import READY, MemberSetup

START_S: Final = 30.0
# Between the return of a member and the next kill: it is to have all that the others have, or the
# loss of one member would be measured while two are away.
SETTLE_S: Final = 1.0
NAMES: Final = "abcdefg"


class Store(Protocol):
    """A cluster that can be measured and broken."""

    label: str

    def load(self, **how: Any) -> LoadSetup: ...

    def leader(self) -> int:
        """The number of the member that leads; waits for one."""
        ...

    def kill(self, member: int) -> None: ...

    def start(self, member: int) -> None:
        """Start a member that was killed, and wait until it serves."""
        ...

    def settle(self, member: int) -> None:
        """Wait until a member that was started knows who leads."""
        ...


@frozen(kw_only=True)
class Figures:
    """What was measured of one cluster.

    Attributes:
        one, many: With 1 client and with many: puts, puts_per_s, p50_ms, p99_ms, errors.
        recovery_ms: From the kill of each leader to the first put that was answered, ascending.
    """

    label: str
    one: Mapping[str, Any]
    many: Mapping[str, Any]
    recovery_ms: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        recovery = list(self.recovery_ms)
        return asdict(self) | {
            "recovery_p50_ms": percentile(recovery, 50),
            "recovery_p99_ms": percentile(recovery, 99),
        }


@define(eq=False)
class RaftStore:
    """Processes of `_consensus_worker`.

    Attributes:
        prefix: By member: what its command line begins with (``ip netns exec …``).
    """

    folder: Path
    size: int
    election_ms: int = 1000
    addresses: dict[str, str] = field(factory=dict)
    prefix: Mapping[str, list[str]] = field(factory=dict)
    processes: dict[int, subprocess.Popen[str]] = field(factory=dict, init=False)
    label: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.label = f"raft, {self.size} nodes"
        self.folder.mkdir(parents=True, exist_ok=True)
        authority = Authority.create(self.folder / "authority")
        self.addresses = self.addresses or {
            name: f"127.0.0.1:{free_port()}" for name in NAMES[: self.size]
        }
        for name in [*self.addresses, "client"]:
            authority.issue(name, self.folder / name)

    @property
    def names(self) -> list[str]:
        return list(self.addresses)

    def setup(self, name: str) -> MemberSetup:
        return MemberSetup(
            name=name,
            folder=str(self.folder),
            addresses=self.addresses,
            begins=self.names if name in self.addresses else [],
            heartbeat_ms=self.election_ms // 10,
            election_ms=self.election_ms,
        )

    def load(self, **how: Any) -> LoadSetup:
        return LoadSetup(raft=unstructure(self.setup("client")), **how)

    def log_of(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def start(self, member: int) -> None:
        name = self.names[member]
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(unstructure(self.setup(name))))
        command = [sys.executable, "-m", "novacron_bench._consensus_worker", str(path)]
        with self.log_of(name).open("ab") as log:
            process = subprocess.Popen(
                [*self.prefix.get(name, []), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert process.stdout is not None
        if process.stdout.readline().strip() != READY:
            process.kill()
            process.wait()
            raise InternalError(f"member {name} did not start", hint=f"see {self.log_of(name)}")
        self.processes[member] = process

    def kill(self, member: int) -> None:
        end(self.processes.pop(member))

    def cut(self, member: int, others: Iterable[int]) -> None:
        """Let a member lose what it sends to these others, and to nobody else."""
        process = self.processes.get(member)
        if process is not None and process.stdin is not None:
            process.stdin.write(" ".join(["cut", *(self.names[n] for n in others)]) + "\n")
            process.stdin.flush()

    def settle(self, member: int) -> None:
        log = self.log_of(self.names[member])
        ends_s = time.monotonic() + START_S
        pid = f"process {self.processes[member].pid}"
        while time.monotonic() < ends_s:
            if " leads in term " in log.read_text().rpartition(pid)[2]:
                return
            time.sleep(0.02)
        raise NodeUnavailable(f"{self.names[member]} finds no leader", hint=f"see {log}")

    def leader(self) -> int:
        """As the members' logs say."""
        ends_s = time.monotonic() + START_S
        while time.monotonic() < ends_s:
            newest = (0, "")
            for name in self.names:
                with contextlib.suppress(FileNotFoundError):
                    for line in self.log_of(name).read_text().splitlines():
                        if " leads in term " in line and f": leader {name} leads" in line:
                            newest = max(newest, (int(line.rpartition(" ")[2]), name))
            if newest[1] and (number := self.names.index(newest[1])) in self.processes:
                return number
            time.sleep(0.02)
        raise NodeUnavailable("no member of the raft cluster leads", hint=f"see {self.folder}")

    def stop(self) -> None:
        for member in list(self.processes):
            self.kill(member)


@define(eq=False)
class EtcdStore:
    """A real etcd cluster."""

    cluster: Any  # novacron_consensus_etcd.local.LocalCluster
    label: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.label = f"etcd, {self.cluster.size} nodes"

    def load(self, **how: Any) -> LoadSetup:
        # Its leader first: our clients ask the leader, too, and not somebody who asks it.
        settings = asdict(self.cluster.settings)
        first = settings["endpoints"].pop(self.leader())
        settings["endpoints"].insert(0, first)
        return LoadSetup(etcd=settings, **how)

    def start(self, member: int) -> None:
        self.cluster.start(member)
        self.cluster.wait_ready()

    def settle(self, member: int) -> None:
        self.cluster.leader(asked=member)

    def kill(self, member: int) -> None:
        self.cluster.kill(member)

    def leader(self) -> int:
        number: int = self.cluster.leader()
        return number


@contextmanager
def raft(folder: Path, size: int, **options: Any) -> Iterator[RaftStore]:
    store = RaftStore(folder, size, **options)
    try:
        for member in range(size):
            store.start(member)
        yield store
    finally:
        store.stop()


def measure(store: Store, *, seconds: float, clients: int, processes: int, kills: int) -> Figures:
    """One cluster: puts of one client, of many, and recoveries."""
    store.leader()
    one = run_load(store.load(clients=1, seconds=seconds))
    many = run_load(store.load(clients=clients, seconds=seconds), processes)
    return Figures(
        label=store.label,
        one=one,
        many=many,
        recovery_ms=tuple(sorted(recoveries(store, kills))) if kills else (),
    )


def recoveries(store: Store, kills: int) -> Iterator[float]:
    """Kill the leader again and again; milliseconds from each kill to the next answered put."""
    with load_process(store.load(until_one=True)) as (ask, say):
        for _ in range(kills):
            leader = store.leader()
            ask.write("\n")  # a put before, so that the client has found the leader
            ask.flush()
            say.readline()
            began_s = time.monotonic()
            store.kill(leader)
            ask.write("\n")
            ask.flush()
            yield (float(say.readline()) - began_s) * 1e3
            store.start(leader)
            store.settle(leader)
            time.sleep(SETTLE_S)


def run_load(setup: LoadSetup, processes: int = 1, prefix: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of a load, spread over processes whose command lines begin with ``prefix``."""
    share = [setup.clients // processes + (n < setup.clients % processes) for n in range(processes)]
    running = [
        subprocess.Popen(
            [*prefix, *command_of(evolve(setup, part=part, clients=clients))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part, clients in enumerate(share)
        if clients
    ]
    try:
        found = [json.loads(one.communicate(timeout=setup.seconds + 120)[0]) for one in running]
    finally:
        for one in running:
            end(one)
    taken_ms = sorted(taken for part in found for taken in part["taken_ms"])
    return {
        "puts": len(taken_ms),
        "puts_per_s": len(taken_ms) / setup.seconds,
        "errors": sum(part["errors"] for part in found),
        "p50_ms": percentile(taken_ms, 50),
        "p99_ms": percentile(taken_ms, 99),
    }


@contextmanager
def load_process(setup: LoadSetup) -> Iterator[tuple[IO[str], IO[str]]]:
    """A load that is told by lines, and answers by lines."""
    process = subprocess.Popen(
        command_of(setup), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield process.stdin, process.stdout
    finally:
        end(process)


def command_of(setup: LoadSetup) -> list[str]:
    """The command line of a load."""
    if setup.raft is not None:
        folder = Path(setup.raft["folder"])
    else:
        assert setup.etcd is not None
        folder = Path(setup.etcd["ca_file"]).parent
    path = folder / f"load-{setup.part}.json"
    path.write_text(json.dumps(unstructure(setup)))
    return [sys.executable, "-m", "novacron_bench._consensus_load", str(path)]


def end(process: subprocess.Popen[str]) -> None:
    """``kill -9``, and nothing of it left."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def free_port() -> int:
    """A port below those that the system gives to outgoing connections."""
    for port in random.sample(range(20_000, 32_000), 1_000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise NodeUnavailable("no port is free", hint="end what listens on ports 20000 to 32000")


def run(
    folder: Path,
    *,
    sizes: list[int],
    seconds: float,
    clients: int,
    processes: int,
    kills: int,
    with_etcd: bool,
    tell: Callable[[str], None],
) -> list[Figures]:
    """Every cluster in turn, each alone on the host, with its data below ``folder``."""
    how: Any = {"seconds": seconds, "clients": clients, "processes": processes, "kills": kills}
    found = []
    for size in sizes:
        tell(f"raft with {size} nodes")
        with raft(folder / f"raft-{size}", size) as store:
            found.append(measure(store, **how))
        shutil.rmtree(folder / f"raft-{size}")
    if with_etcd:
        from novacron_consensus_etcd.local import local_cluster

        tell("etcd with 3 nodes")
        with local_cluster(folder / "etcd-3", 3) as cluster:
            found.append(measure(EtcdStore(cluster), **how))
        shutil.rmtree(folder / "etcd-3")
    return found


def sync_ms(folder: Path, times: int = 100) -> float:
    """What one small write and its fdatasync cost in a folder: the floor of every put."""
    taken = []
    path = folder / "sync"
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(file, 0, 1 << 20)
        for number in range(times):
            began_s = time.monotonic()
            os.pwrite(file, b"x" * 256, number * 256)
            os.fdatasync(file)
            taken.append((time.monotonic() - began_s) * 1e3)
    finally:
        os.close(file)
        path.unlink()
    return percentile(sorted(taken), 50)
