"""Agreement among members that may lie, in real processes: what one record of ownership takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import define, field
from cattrs import unstructure
from novacron import InternalError
from novacron_consensus_bft import as_text, make_key
from novacron_security_tls import Authority

from novacron_bench._bft_worker import BftSetup
from novacron_bench._consensus import end, free_port
from novacron_bench._consensus_load import percentile
from novacron_bench._consensus_worker import READY

NAMES: Final = "abcd"


@define(eq=False)
class BftProcesses:
    """Four members, one process each.

    Args:
        addresses: Where they listen, by name; free ports of this host if empty.
        prefix: By member: what its command line begins with (``ip netns exec …``).
    """

    folder: Path
    round_trip_ms: int = 50
    addresses: dict[str, str] = field(factory=dict)
    prefix: Mapping[str, list[str]] = field(factory=dict)
    processes: dict[str, subprocess.Popen[str]] = field(factory=dict, init=False)

    def start(self) -> None:
        self.folder.mkdir(parents=True)
        self.addresses = self.addresses or {n: f"127.0.0.1:{free_port()}" for n in NAMES}
        authority = Authority.create(self.folder / "authority")
        keys = {}
        for name in self.addresses:
            authority.issue(name, self.folder / name)
            key = make_key(self.folder / name / "consensus-bft" / "key", "ed25519")
            keys[name] = as_text(key.public_key)
        for name in self.addresses:
            self._start(name, keys)
        for name in self.addresses:
            if self._line(name) != READY:
                raise InternalError(f"member {name} did not start", hint=f"see {self._log(name)}")

    def _start(self, name: str, keys: dict[str, str]) -> None:
        setup = BftSetup(
            name=name,
            folder=str(self.folder),
            addresses=self.addresses,
            keys=keys,
            round_trip_ms=self.round_trip_ms,
        )
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(unstructure(setup)))
        command = [sys.executable, "-m", "novacron_bench._bft_worker", str(path)]
        with self._log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*self.prefix.get(name, []), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _line(self, name: str) -> str:
        stream = self.processes[name].stdout
        assert stream is not None
        return stream.readline().strip()

    def _ask(self, name: str, line: str) -> Any:
        stream = self.processes[name].stdin
        assert stream is not None
        stream.write(line + "\n")
        stream.flush()
        answer = self._line(name)
        if not answer:
            raise InternalError(f"member {name} ended", hint=f"see {self._log(name)}")
        return json.loads(answer)

    def leader(self) -> str:
        """Who leads, once something was agreed on."""
        return str(self._ask(next(iter(self.processes)), "leader"))

    def put(self, name: str, seconds: float) -> dict[str, Any]:
        """The figures of a member that writes one record after the other."""
        said = self._ask(name, f"put {seconds}")
        taken_ms = sorted(said["taken_ms"])
        return {
            "puts": len(taken_ms),
            "puts_per_s": len(taken_ms) / seconds,
            "errors": said["errors"],
            "p50_ms": percentile(taken_ms, 50),
            "p99_ms": percentile(taken_ms, 99),
        }

    def stop(self) -> None:
        for process in self.processes.values():
            end(process)


@contextmanager
def bft(folder: Path, **options: Any) -> Iterator[BftProcesses]:
    made = BftProcesses(folder, **options)
    try:
        made.start()
        yield made
    finally:
        made.stop()
