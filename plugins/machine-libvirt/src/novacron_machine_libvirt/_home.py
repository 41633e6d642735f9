"""What a machine leaves in its home folder, and where its sockets lie."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Final

import attrs
from attrs import frozen
from blake3 import blake3
from novacron import MachineError

# A unix socket's path has 107 bytes at most.
_SOCKET_PATH_MAX: Final = 107
_RECORD_BYTES_MAX: Final = 64 << 10


@frozen(kw_only=True)
class Record:
    """Which domain is the machine's. Without it the machine is stopped, whatever libvirtd has: a
    node touches no domain that it has not taken.

    Attributes:
        uuid: The domain's.
        arriving: Whether its memory is not here yet.
    """

    uuid: str
    arriving: bool = False


class Home:
    """One machine's folder.

    Args:
        folder: The home.
        socket_dir: What the settings say.
    """

    def __init__(self, folder: Path, socket_dir: str) -> None:
        self.folder = folder
        self.console_log = folder / "console.log"
        self._sockets = Path(socket_dir) if socket_dir else _own_socket_dir()
        # Sockets of many machines, and of many nodes in tests, lie in one folder.
        self._prefix = blake3(os.fsencode(folder.absolute())).hexdigest(8)

    # -- the record -------------------------------------------------------------------------------

    def read(self) -> Record | None:
        path = self.folder / "domain.json"
        try:
            with path.open("rb") as file:
                values = json.loads(file.read(_RECORD_BYTES_MAX))
            return Record(uuid=str(values["uuid"]), arriving=bool(values["arriving"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MachineError(
                f"{path} cannot be used: {error}",
                hint="see with `virsh list --all` what runs, then remove the file",
            ) from error

    def write(self, record: Record) -> None:
        self._replace("domain.json", json.dumps(attrs.asdict(record)))

    def forget(self) -> None:
        (self.folder / "domain.json").unlink(missing_ok=True)

    # -- the definition ---------------------------------------------------------------------------

    def definition(self) -> str | None:
        """The domain's XML as it was last; what the machine is started from again."""
        try:
            return (self.folder / "domain.xml").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def keep_definition(self, xml: str) -> None:
        self._replace("domain.xml", xml)

    def _replace(self, name: str, text: str) -> None:
        temporary = self.folder / f"{name}.new"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / name)

    # -- sockets ----------------------------------------------------------------------------------

    def socket(self, name: str) -> Path:
        """The path of a socket of this machine. Raises MachineError if it is too long."""
        path = self._sockets / f"{self._prefix}-{name}"
        if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
            raise MachineError(
                f"{path} is too long for a socket", hint="set socket_dir in [machine.libvirt]"
            )
        return path

    def make_socket_dir(self) -> None:
        try:
            self._sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(
                f"the folder of sockets {self._sockets} cannot be made: {error}",
                hint="set socket_dir in [machine.libvirt]",
            ) from error

    def clear_sockets(self) -> None:
        for path in self._sockets.glob(f"{self._prefix}-*"):
            path.unlink(missing_ok=True)


def _own_socket_dir() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    if not os.path.isdir(base):
        return Path(tempfile.gettempdir(), f"novacron-libvirt-{os.geteuid()}")
    return Path(base, "novacron-libvirt")
