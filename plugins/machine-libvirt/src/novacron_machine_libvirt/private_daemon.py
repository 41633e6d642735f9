"""A libvirtd of one's own, beside the host's: for tests, and to try moves on one host.

It runs in the foreground as a session's daemon with folders of its own and a ``host_uuid`` of its
own, so that libvirt takes two of them for two hosts. As root it runs in a user namespace, because
libvirtd takes root for the system's instance, whose folders are fixed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket as sockets
import subprocess
import time
import uuid
from pathlib import Path
from typing import Final

from novacron import NotFound

_START_TIMEOUT_S: Final = 30.0
# Not any user: in a namespace this one stands for root.
_INNER_ID: Final = 1000


class PrivateLibvirtd:
    """One such daemon.

    Args:
        folder: Its own; short, because its sockets lie there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "libvirt" / "libvirt-sock"

    @property
    def uri(self) -> str:
        """What ``uri`` in ``[machine.libvirt]`` says."""
        return f"qemu+unix:///session?socket={self.socket}"

    def start(self) -> None:
        """Start it and return when it can be asked. Raises NotFound if libvirtd is not here."""
        binary = shutil.which("libvirtd") or shutil.which("libvirtd", path="/usr/sbin:/sbin")
        if binary is None:
            raise NotFound("no libvirtd here", hint="run scripts/debian-packages")
        self._write_settings()
        folders = {
            name: str(self.folder / folder)
            for name, folder in {
                "HOME": "home",
                "XDG_RUNTIME_DIR": "run",
                "XDG_CONFIG_HOME": "config",
                "XDG_CACHE_HOME": "cache",
                "XDG_DATA_HOME": "data",
            }.items()
        }
        for folder in folders.values():
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        command = [binary]
        if os.geteuid() == 0:
            inner = f"--map-user={_INNER_ID}", f"--map-group={_INNER_ID}"
            command = ["unshare", "--user", *inner, *command]
        self.socket.unlink(missing_ok=True)
        with (self.folder / "libvirtd.out").open("ab") as out:
            self._process = subprocess.Popen(
                command,
                env={"PATH": os.environ.get("PATH", os.defpath), **folders},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self._wait_until_it_listens(self._process)

    def _write_settings(self) -> None:
        folder = self.folder / "config" / "libvirt"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        daemon = folder / "libvirtd.conf"
        if not daemon.exists():
            log = self.folder / "libvirtd.log"
            daemon.write_text(
                f'host_uuid = "{uuid.uuid4()}"\nlog_outputs = "3:file:{log}"\n'
                'auth_unix_rw = "none"\n'
            )
        # Without virtlogd, and without the security labels of a system's instance.
        (folder / "qemu.conf").write_text('stdio_handler = "file"\nsecurity_driver = "none"\n')

    def _wait_until_it_listens(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._listens():
            if process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "libvirtd.out").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"libvirtd did not start: {said}")
            time.sleep(0.02)

    def _listens(self) -> bool:
        # Its file is there a moment before it listens.
        with sockets.socket(sockets.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def kill(self) -> None:
        """As ``kill -9``; its domains go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(_START_TIMEOUT_S)
            self._process = None

    def stop(self) -> None:
        """End it; its domains go on."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
