"""Real members on loopback, one process each, to see a failure become known.

`Nursery` starts one process that forks the members, so that fifty of them begin in seconds. Each
tells on a shared pipe what it learns, with the time of the host's monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from attrs import frozen

from novacron_consensus_gossip import _keyring
from novacron_consensus_gossip._driver import GossipMember, MemberSetup
from novacron_consensus_gossip._values import Member, State, Timing

STOP_S: Final = 10.0


@frozen(kw_only=True)
class Known:
    """How long after a kill the others held it dead.

    Attributes:
        members: How many processes there were.
        joined_s: How long all of them took to know all.
        first_s: The first one.
        last_s: The last one.
        wrong: How many others were held dead, by anybody.
    """

    members: int
    period_s: float
    joined_s: float
    first_s: float
    last_s: float
    wrong: int

    @property
    def periods(self) -> float:
        return self.last_s / self.period_s


class Nursery:
    """Members of a cluster of their own. Use it as a context manager.

    Attributes:
        pids: By name.
        held: What each member holds of each: ``held[observer][name]`` is state and time.
    """

    def __init__(self, members: int, *, period_ms: int = 1_000) -> None:
        self.members = members
        self.period_ms = period_ms
        self.pids: dict[str, int] = {}
        self.held: dict[str, dict[str, tuple[str, float]]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="gossip-")
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def __enter__(self) -> Nursery:
        folder = Path(self._folder.name)
        _keyring.write(folder / "keys", (_keyring.new_key(),), fresh=True)
        command = [sys.executable, "-m", "novacron_consensus_gossip._processes", str(folder)]
        command += [str(self.members), str(self.period_ms)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = self._process
        if process is not None and process.stdin is not None and process.stdout is not None:
            process.stdin.close()  # they end by themselves
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            process.stdout.close()
        self._folder.cleanup()

    def wait(self, done: Callable[[], bool], timeout_s: float) -> None:
        """Read what the members tell until it is done. Raises TimeoutError."""
        assert self._process is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        until = time.monotonic() + timeout_s
        while not done():
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not in {timeout_s:.0f} s")
            if select.select([pipe], [], [], left)[0]:
                data = os.read(pipe, 1 << 20)
                if not data:
                    raise TimeoutError("the members have ended")
                self._take(data)

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "pid" in told:
                self.pids[told["who"]] = told["pid"]
                self.held.setdefault(told["who"], {})
            else:
                about = self.held.setdefault(told["who"], {})
                about[told["name"]] = (told["state"], told["at"])

    def holders(self, name: str, state: str) -> list[float]:
        """When each one that lives came to hold that of a member."""
        found = (self.held[who].get(name) for who in self.pids if who != name)
        return [one[1] for one in found if one is not None and one[0] == state]

    def all_joined(self) -> bool:
        """Whether everybody holds everybody alive."""
        names = set(self.pids)
        return len(names) == self.members and all(
            sum(state == "alive" for state, _ in about.values()) == self.members
            for about in self.held.values()
        )

    def send(self, name: str, number: signal.Signals) -> float:
        """Send a signal, to stop one or let it go on. Returns the time."""
        os.kill(self.pids[name], number)
        return time.monotonic()

    def kill(self, name: str) -> float:
        """Kill -9. Returns the time."""
        return self.send(name, signal.SIGKILL)


def measure(members: int, *, period_ms: int = 1_000, timeout_s: float = 60.0) -> Known:
    """Start members, wait until all know all, kill one, and wait until all know that.

    Raises: TimeoutError if that does not happen in time.
    """
    begun = time.monotonic()
    with Nursery(members, period_ms=period_ms) as nursery:
        nursery.wait(nursery.all_joined, timeout_s)
        joined = time.monotonic() - begun
        victim = f"m{members // 2:03}"
        at = nursery.kill(victim)
        others = members - 1
        nursery.wait(lambda: len(nursery.holders(victim, "dead")) == others, timeout_s)
        when = nursery.holders(victim, "dead")
        wrong = {
            name
            for about in nursery.held.values()
            for name, (state, _) in about.items()
            if state == "dead" and name != victim
        }
        return Known(
            members=members,
            period_s=period_ms / 1000,
            joined_s=joined,
            first_s=min(when) - at,
            last_s=max(when) - at,
            wrong=len(wrong),
        )


# In the processes.


def _tell(told: dict[str, Any]) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")  # short enough to be written in one piece


async def _live(setup: MemberSetup, parent: int) -> None:
    def changed(member: Member, state: State | None) -> None:
        name = "forgotten" if state is None else state.name.lower()
        at = time.monotonic()
        _tell({"who": setup.name, "name": member.name, "state": name, "at": at})

    member = GossipMember(setup, changed)
    await member.start()
    _tell({"who": setup.name, "pid": os.getpid()})
    alone = asyncio.Event()  # a pipe that ends when the parent does
    asyncio.get_running_loop().add_reader(parent, alone.set)
    await alone.wait()


def _fork(setup: MemberSetup, pipe: tuple[int, int]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            os.close(pipe[1])
            asyncio.run(_live(setup, pipe[0]))
        finally:
            os._exit(1)
    return pid


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert isinstance(port, int)
        return port


def _main() -> None:
    folder, members, period = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    seed = f"127.0.0.1:{_free_port()}"
    timing = Timing(
        period_ms=period, probe_ms=period * 3 // 10, gossip_ms=period // 5, sync_ms=5 * period
    )
    # On a host with fewer cores than members each of them waits now and then, which is no news.
    logging.basicConfig(level=logging.ERROR)
    pipe = os.pipe()
    pids = []
    for number in range(members):
        name = f"m{number:03}"
        setup = MemberSetup(
            name=name,
            cluster="nursery",
            listen="127.0.0.1:0" if number else seed,
            seeds=(seed,),
            keys=folder / "keys",
            folder=folder / name,
            timing=timing,
        )
        pids.append(_fork(setup, pipe))
    sys.stdin.buffer.read()
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for pid in pids:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _main()
