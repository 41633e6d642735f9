"""What is known of a lab that is up, in a folder, so that any process can take it down."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import cattrs
from attrs import frozen
from cattrs.gen import make_dict_unstructure_fn
from novacron import Conflict, NotFound

from novacron_lab._emulator import Process
from novacron_lab._spec import LabPath, LinkSpec, Site

_FOLDER: Final = Path("/run/novacron-lab")
_CONVERTER: Final = cattrs.Converter(forbid_extra_keys=True)
_CONVERTER.register_unstructure_hook(Path, str)
_CONVERTER.register_structure_hook(Path, lambda value, _: Path(value))
# Only what was said: a link in JSON is then as short as in its file.
_CONVERTER.register_unstructure_hook(
    LinkSpec,
    make_dict_unstructure_fn(LinkSpec, _CONVERTER, _cattrs_omit_if_default=True),
)


@frozen(kw_only=True)
class LabState:
    """A lab as its folder has it.

    Attributes:
        name: Of the lab.
        sites: In their order.
        paths: With their present figures.
        mtu: Of all devices.
        process: The emulator, if one was started.
    """

    name: str
    sites: tuple[Site, ...]
    paths: tuple[LabPath, ...]
    mtu: int
    process: Process | None = None

    @property
    def namespaces(self) -> dict[str, str]:
        return {site.name: site.namespace for site in self.sites}

    def to_json(self) -> dict[str, Any]:
        written: dict[str, Any] = _CONVERTER.unstructure(self)
        return written


def root() -> Path:
    """Where the labs' folders are; ``NOVACRON_LAB_STATE`` names another place."""
    return Path(os.environ.get("NOVACRON_LAB_STATE") or _FOLDER)


def folder_of(name: str) -> Path:
    return root() / name


def names() -> list[str]:
    return sorted(path.parent.name for path in root().glob("*/lab.json"))


def write(state: LabState) -> None:
    folder = folder_of(state.name)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = folder / "lab.json.new"
    fresh.write_text(json.dumps(state.to_json(), indent=2))
    fresh.replace(folder / "lab.json")


def read(name: str) -> LabState:
    """Raises NotFound if there is no such lab, Conflict if its folder is broken."""
    path = folder_of(name) / "lab.json"
    try:
        return _CONVERTER.structure(json.loads(path.read_text()), LabState)
    except FileNotFoundError:
        there = ", ".join(names())
        raise NotFound(
            f"there is no lab {name!r:.40}",
            hint=f"there are: {there}" if there else "`novacron lab up` makes one",
        ) from None
    except (ValueError, cattrs.BaseValidationError) as error:
        raise Conflict(
            f"{path} cannot be read: {error}",
            hint=f"remove the folder {path.parent} and the namespaces lab-{name}-* by hand",
        ) from error


def forget(name: str) -> None:
    shutil.rmtree(folder_of(name), ignore_errors=True)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One lab at a time is brought up or taken down."""
    root().mkdir(parents=True, exist_ok=True, mode=0o700)
    with (root() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
