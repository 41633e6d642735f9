"""The splitter on the streams of the QEMU that is installed, with a guest that keeps writing."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from novacron_qemu.stream import StreamJoiner, StreamSplitter

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.slow,
    pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed"),
]

# A boot sector: for ever, fill the 64 KiB at 0x20000 with a number that grows by one each time.
BOOT_SECTOR = (
    bytes.fromhex(
        "b80020"  # mov ax, 0x2000
        "8ec0"  # mov es, ax
        "31ff"  # again: xor di, di
        "b90080"  # mov cx, 0x8000
        "43"  # inc bx
        "89d8"  # mov ax, bx
        "f3ab"  # rep stosw
        "ebf4"  # jmp again
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)
DEADLINE_S = 60.0


class Qmp:
    """Just enough of QMP for this test."""

    def __init__(self, path: Path) -> None:
        end = time.monotonic() + DEADLINE_S
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(DEADLINE_S)
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                self._socket.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
        self._file = self._socket.makefile("rw", encoding="utf-8")
        self._file.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "return" in answer or "error" in answer:
                assert "return" in answer, answer
                return answer["return"]

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@contextmanager
def qemu(folder: Path, name: str, *more: str) -> Iterator[Qmp]:
    disk = folder / f"{name}.img"
    disk.write_bytes(BOOT_SECTOR.ljust(1474560, b"\0"))
    assert QEMU is not None
    process = subprocess.Popen(
        [
            *(QEMU, "-accel", "tcg", "-machine", "q35", "-m", "32", "-display", "none"),
            *("-nodefaults", "-drive", f"file={disk},format=raw,if=ide,snapshot=on"),
            *("-qmp", f"unix:{folder / name}.qmp,server=on,wait=off", *more),
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        qmp = Qmp(folder / f"{name}.qmp")
        try:
            yield qmp
        finally:
            qmp.close()
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def counter(qmp: Qmp, folder: Path, name: str) -> int:
    """The number that the guest writes, read from its memory."""
    path = folder / f"{name}.memory"
    qmp("pmemsave", val=0x20000, size=2, filename=str(path))
    return int.from_bytes(path.read_bytes(), "little")


def wait_until(what: str, done: Any) -> Any:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if value := done():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {DEADLINE_S} s: {what}")


def test_a_real_guest_moves_through_splitter_and_joiner(tmp_path):
    arriving = tmp_path / "arriving"
    leaving = tmp_path / "leaving"
    with (
        qemu(tmp_path, "source") as source,
        qemu(tmp_path, "target", "-S", "-incoming", f"unix:{arriving}") as target,
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as destination,
    ):
        wait_until("the guest counts", lambda: counter(source, tmp_path, "source") > 10)
        listener.bind(str(leaving))
        listener.listen(1)
        listener.settimeout(DEADLINE_S)
        destination.settimeout(DEADLINE_S)
        destination.connect(str(arriving))
        source("migrate-set-parameters", **{"max-bandwidth": 1 << 30, "downtime-limit": 1})
        source("migrate", uri=f"unix:{leaving}")
        splitter, joiner = StreamSplitter(), StreamJoiner()
        stream, given = bytearray(), bytearray()

        def write(batches: Any) -> None:
            for batch in batches:
                piece = joiner.join(batch)
                given.extend(piece)
                destination.sendall(piece)

        stream_socket, _ = listener.accept()
        with stream_socket:
            stream_socket.settimeout(DEADLINE_S)
            relaxed = False
            while data := stream_socket.recv(256 << 10):
                stream += data
                write(splitter.feed(data))
                if not relaxed and splitter.progress.rounds >= 4:
                    # It writes faster than 1 ms allows; now that there were some rounds, let go.
                    source("migrate-set-parameters", **{"downtime-limit": 5000})
                    relaxed = True
        write(splitter.end())
        destination.shutdown(socket.SHUT_WR)

        status = wait_until(
            "the source is done",
            lambda: (info := source("query-migrate"))["status"] in ("completed", "failed") and info,
        )
        assert status["status"] == "completed", status
        assert given == stream
        seen = splitter.progress
        assert seen.pages == status["ram"]["normal"]
        assert seen.zero_pages == status["ram"]["duplicate"]
        assert seen.ram_bytes == status["ram"]["total"]
        assert seen.rounds >= 2
        assert seen.opaque_bytes < 1 << 20
        assert seen.why.startswith("inside a section that has no length: ")

        wait_until("the target has loaded", lambda: target("query-status")["status"] == "paused")
        arrived = counter(target, tmp_path, "target")
        assert arrived == counter(source, tmp_path, "source")
        target("cont")
        wait_until(
            "the guest counts on", lambda: counter(target, tmp_path, "target") not in (arrived, 0)
        )
