"""The durable state of an evacuation: one file per operation, replaced whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from attrs import define
from novacron import ConfigError

BYTES_MAX: Final = 64 << 20


@define
class Journal:
    """The folder with the files of a node's evacuations."""

    folder: Path

    def write(self, operation: str, values: Mapping[str, Any]) -> None:
        """Durable when it returns. Raises OSError; the old file is as it was then."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{operation}.json"
        fresh = path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(values))
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        self._sync()

    def remove(self, operation: str) -> None:
        (self.folder / f"{operation}.json").unlink(missing_ok=True)
        self._sync()

    def _sync(self) -> None:
        if not self.folder.is_dir():
            return
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def __iter__(self) -> Iterator[tuple[str, Path]]:
        """The operations that were not over, each with its file."""
        if self.folder.is_dir():
            for path in sorted(self.folder.glob("op-*.json")):
                yield path.stem, path


def read(path: Path) -> dict[str, Any]:
    """What `Journal.write` wrote. Raises ConfigError if it is damaged."""
    try:
        if path.stat().st_size > BYTES_MAX:
            raise ConfigError(f"{path} is too large to be ours", hint="move it away")
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is damaged: {error}", hint="move it away") from error
