"""Records page traces of a live guest: one of a first move, one of a move some time later."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from novacron_bench._beats import Beats
from novacron_bench._competitor import Contest
from novacron_bench._guest import Workload, build_guest
from novacron_bench._network import Network
from novacron_bench._qmp import Qmp
from novacron_bench._stock import start_qemu
from novacron_bench._trace import leave, write_trace

TRACES: Final = ("cold", "warm", "sibling")


class _NoNetwork(Network):
    """Recording needs no link, and so no root."""

    def __init__(self) -> None:
        pass

    def command(self, side: str, argv: Sequence[str]) -> list[str]:
        return list(argv)


def record(
    out: Path,
    workload: Workload,
    workloads: Sequence[Workload],
    *,
    memory_mib: int,
    rate_bytes_per_s: int,
    away_s: float,
    sibling: bool,
) -> list[Path]:
    """Write ``WORKLOAD.cold.trace``, ``.warm.trace`` and ``.sibling.trace`` into a folder.

    Args:
        rate_bytes_per_s: At which the guest leaves, so that it writes meanwhile.
        away_s: Between the cold trace and the warm one, of the same guest.
        sibling: Record another guest of the same image, too.
    Raises: NovacronError if the guest cannot be started or does not leave.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for seed in (1, 2) if sibling else (1,):
        folder = Path(tempfile.mkdtemp(prefix="nvb-", dir="/tmp"))
        try:
            guest = build_guest(
                folder, workload, workloads, memory_bytes=memory_mib << 20, seed=seed
            )
            with Beats(folder / "beat") as beats, ExitStack() as ending:
                contest = Contest(
                    folder=folder, network=_NoNetwork(), guest=guest, beats=beats, ending=ending
                )
                start_qemu(contest, "a", "", ())
                source = Qmp(folder / "a.qmp")
                ending.callback(source.close)
                pulse = beats.pulse(0, 30)
                contest.settle(pulse)
                for name in ("cold", "warm") if seed == 1 else ("sibling",):
                    if name == "warm":
                        until = time.monotonic() + away_s
                        pulse.wait(lambda: pulse.beats[-1].at_s >= until, away_s + 60)  # noqa: B023
                    path = out / f"{workload.name}.{name}.trace"
                    about = {
                        "workload": workload.name,
                        "kind": name,
                        "memory_mib": memory_mib,
                        "rate_bytes_per_s": rate_bytes_per_s,
                        "away_s": away_s,
                    }
                    write_trace(path, about, leave(source, folder / "out", rate_bytes_per_s))
                    written.append(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return written
