"""A guest with a large sparse disk moves there and back: what that takes, and whether it is whole.

The guest writes to its disk all the time and reads back what it wrote before a move. The way there
is verified by BLAKE3 over memory and disk at both ends, while the guest is paused: that is most of
that pause. The way back is not, so that its pause is a move's own. In the end the guest moves once
more while it is paused, verified again, and QEMU's own ``qemu-img compare`` looks at what the two
nodes have then.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import field, frozen
from novacron import ConfigError, MachineError
from novacron_machine_qemu.guest import APPEND, GuestOptions, build_guest
from novacron_security_tls import Authority

from novacron_bench._beats import Beats
from novacron_bench._competitor import BUFFERS, Contest
from novacron_bench._disk import Disk, disk
from novacron_bench._guest import Guest
from novacron_bench._network import LinkFigures, Network
from novacron_bench._nova import BenchNode, end_by_folder

_MACHINE: Final = "guest"
_IMAGE: Final = "disk.qcow2"
_PIECE: Final = 1 << 20
_TOOL_S: Final = 900.0
_ALIVE_S: Final = 120.0
# More than the sectors that the guest goes round: each is read once after the move.
_WRITES: Final = 9


@frozen(kw_only=True)
class StorageSetup:
    """What moves, and over what.

    Attributes:
        link: In words, see `LinkFigures`.
        size_bytes: Of the disk, as the guest sees it.
        content_bytes: Of it is not zero, in pieces of 1 MiB all over the disk.
        memory_bytes: Of the guest.
        providers: By domain.
        cutoff_s: How long a move may take.
    """

    link: str = "1gbit,10ms"
    size_bytes: int = 20 << 30
    content_bytes: int = 2 << 30
    memory_bytes: int = 256 << 20
    providers: Mapping[str, str] = field(factory=dict)
    cutoff_s: float = 900.0


@frozen(kw_only=True)
class StorageMove:
    """One of the moves. ``wire_bytes`` entered the link in its direction, ``digest`` is over
    memory and disk at both ends; empty if it was not taken."""

    name: str
    seconds: float
    pause_ms: float
    raw_bytes: int
    wire_bytes: int
    digest: str


@frozen(kw_only=True)
class StorageResult:
    """What came of it.

    Attributes:
        moves: There, back, and there again while paused.
        identical: What ``qemu-img compare`` says of the two images in the end.
        guest_whole: Whether the guest found on its disk what it had written, without a gap.
        load: The host's, when it began.
    """

    setup: StorageSetup
    moves: tuple[StorageMove, ...]
    identical: bool
    guest_whole: bool
    load: float

    @property
    def held(self) -> bool:
        return self.identical and self.guest_whole

    def to_json(self) -> dict[str, Any]:
        return attrs.asdict(self)


def run_storage(setup: StorageSetup, step: Callable[[str], None]) -> StorageResult:
    """Raises ConfigError if this host lacks something, MachineError if a move fails."""
    if setup.content_bytes > setup.size_bytes // 2:
        raise ConfigError("the disk holds more than half of its size; make it larger")
    load = os.getloadavg()[0]
    place = Path(tempfile.mkdtemp(prefix="nvb-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    try:
        step("making the disk")
        image = place / "a-files" / _IMAGE
        (place / "b-files").mkdir()
        _make_image(image, setup)
        options = GuestOptions(disk=True, dirty_mib=16)
        kernel, initrd = build_guest(place / "guest", options)
        guest = Guest(
            memory_bytes=setup.memory_bytes,
            kernel=kernel,
            initrd=initrd,
            append=APPEND,
            disk=Disk(path=image, size_bytes=setup.size_bytes, sum=0),
        )
        name = f"nvb{os.getpid() % 1_000_000}"
        figures = LinkFigures.parse(setup.link)
        with (
            Network(figures, name=name) as network,
            Beats(place / "beat") as beats,
            ExitStack() as ending,
        ):
            network.set_tcp("bbr", *BUFFERS["system"])
            contest = Contest(
                folder=place, network=network, guest=guest, beats=beats,
                cutoff_s=setup.cutoff_s, ending=ending,
            )  # fmt: skip
            moves, whole, identical = _moves(contest, setup, step)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return StorageResult(
        setup=setup, moves=moves, identical=identical, guest_whole=whole, load=load
    )


def _make_image(path: Path, setup: StorageSetup) -> None:
    """A sparse qcow2 image that holds pages of this host's files, all over."""
    contents = disk(setup.content_bytes)
    raw = path.with_suffix(".raw")
    path.parent.mkdir()
    count = setup.content_bytes // _PIECE
    # The first 8 MiB are the guest's to write to.
    places = sorted(random.Random(1).sample(range(8, setup.size_bytes // _PIECE), count))
    with raw.open("wb") as out, contents.path.open("rb") as source:
        out.truncate(setup.size_bytes)
        for number in places:
            out.seek(number * _PIECE)
            out.write(source.read(_PIECE))
    _tool("convert", "-f", "raw", "-O", "qcow2", str(raw), str(path))
    raw.unlink()


def _tool(*arguments: str) -> int:
    try:
        done = subprocess.run(
            ["qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TOOL_S,
        )
    except FileNotFoundError as error:
        raise ConfigError("no qemu-img", hint="run scripts/debian-packages") from error
    if done.returncode > 1:
        raise ConfigError(f"qemu-img {arguments[0]} failed: {done.stderr.strip()[-300:]}")
    return done.returncode


def _start(contest: Contest, setup: StorageSetup) -> dict[str, BenchNode]:
    authority = Authority.create(contest.folder / "ca")
    nodes = {name: BenchNode(name, contest) for name in "ab"}
    contest.ending.callback(end_by_folder, contest.folder)
    for name, other in (("a", "b"), ("b", "a")):
        authority.issue(name, nodes[name].state_dir)
        files = f'[machine.qemu]\nfiles = "{contest.folder / f"{name}-files"}"\n'
        nodes[name].write_config(other, setup.providers, files)
        nodes[name].start()
        contest.ending.callback(nodes[name].clear)
    for node in nodes.values():
        node.wait()
    return nodes


def _moves(
    contest: Contest, setup: StorageSetup, step: Callable[[str], None]
) -> tuple[tuple[StorageMove, ...], bool, bool]:
    nodes = _start(contest, setup)
    a, b = nodes["a"], nodes["b"]
    guest = contest.guest
    settings = {
        "kernel": str(guest.kernel),
        "initrd": str(guest.initrd),
        "append": guest.append,
        "accel": "tcg",
        "disks": [{"path": _IMAGE, "format": "qcow2"}],
    }
    step("starting the guest")
    a.do(a.client.create(_MACHINE, driver="qemu", memory_bytes=guest.memory_bytes,
                         settings=settings))  # fmt: skip
    heard = bytearray()
    _listen(a, heard)
    moves = []
    for name, source, target in (("there", a, b), ("back", b, a)):
        step(f"moving {name}")
        moves.append(_move(contest, name, source, target, heard))
        _listen(target, heard)
    heard += _console(a)
    a.do(a.client.pause(_MACHINE))
    step("comparing")
    moves.append(_move(contest, "paused", a, b, bytearray()))
    one, other = (str(contest.folder / f"{side}-files" / _IMAGE) for side in "ab")
    identical = _tool("compare", "-U", "-f", "qcow2", "-F", "qcow2", one, other) == 0
    wrote = [int(number) for number in re.findall(rb"wrote (\d+)", heard)]
    whole = b"disk wrong" not in heard and wrote == list(range(1, len(wrote) + 1))
    return tuple(moves), whole, identical


def _console(node: BenchNode) -> bytes:
    found: bytes = node.client.console_log(_MACHINE)
    return found


def _listen(node: BenchNode, before: bytearray) -> None:
    """Wait until the guest has written to its disk for a while. Raises MachineError."""
    deadline = time.monotonic() + _ALIVE_S
    while _console(node).count(b"wrote ") < _WRITES:
        if time.monotonic() > deadline:
            said = (bytes(before) + _console(node))[-300:].decode(errors="replace")
            raise MachineError(f"the guest does not write to its disk on {node.name}: {said}")
        time.sleep(0.1)


def _move(
    contest: Contest, name: str, source: BenchNode, target: BenchNode, heard: bytearray
) -> StorageMove:
    log = source.state_dir / "machines" / _MACHINE / "home" / "console.log"
    before, began = contest.network.wire(), time.monotonic()
    with log.open("rb") as console:  # it stays readable after the machine has left
        verify = "stream" if name == "back" else "memory"
        operation = source.client.migrate(_MACHINE, target.name, storage="copy", verify=verify)
        result = source.do(operation, contest.cutoff_s)["result"]
        seconds = time.monotonic() - began
        heard += console.read()
    wire = contest.network.wire() - before
    return StorageMove(
        name=name,
        seconds=round(seconds, 2),
        pause_ms=result["downtime_ms"],
        raw_bytes=result["raw_bytes"],
        wire_bytes=wire.there if source.name == "a" else wire.back,
        digest=result["memory_digest"],
    )
