"""What a source tells of its machine when a move is examined, beside what it always tells.

It travels as the item ``examined`` of the origin, and is a stranger's word when it arrives: bounded
and checked before anybody looks at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import cattrs
from attrs import field, frozen

KEY: Final = "examined"
ITEMS_MAX: Final = 4096
CHARACTERS_MAX: Final = 4096


@frozen(kw_only=True)
class ToldDisk:
    """One disk as the source's QEMU has it open, beside what `OriginDisk` says of it.

    Attributes:
        number: Which of the machine's disks.
        inode: The file's number, the same wherever the same file system is mounted; 0 for none.
        length: Of the file, in bytes.
        backing: The images below it, as they are named in each other, the nearest first.
    """

    number: int
    inode: int = 0
    length: int = 0
    backing: tuple[str, ...] = ()


@frozen(kw_only=True)
class Told:
    """Everything that it takes to judge at the target and that only the source knows.

    Attributes:
        guest_flags: What the guest's processor can do.
        host_flags: What the source could give a guest.
        machine_types: The versions of this machine's type that the source's QEMU has.
        disks: The machine's disks.
        files: Sizes of the files that the arguments name, by path; -1 where they are not there.
        networks: The networks (``10.0.0.0/24``) of each bridge that the machine is joined to.
        arguments: BLAKE3 of all arguments, those of ``arguments_file`` too.
        clock_s: The source's clock when it was asked, seconds since 1970.
    """

    guest_flags: tuple[str, ...] = ()
    host_flags: tuple[str, ...] = ()
    machine_types: tuple[str, ...] = ()
    disks: tuple[ToldDisk, ...] = ()
    files: Mapping[str, int] = field(factory=dict)
    networks: Mapping[str, tuple[str, ...]] = field(factory=dict)
    arguments: str = ""
    clock_s: float = 0.0

    def as_item(self) -> dict[str, Any]:
        """The origin's item for it, JSON-like; `read_told` gives back an equal one."""
        return {KEY: _plain(cattrs.unstructure(self))}


def read_told(origin: Mapping[str, Any]) -> Told:
    """What a source has told.

    Returns: An empty one if it told nothing (it was not asked, or is an older one).
    Raises: ValueError if what it told is unsound.
    """
    told = origin.get(KEY)
    if told is None:
        return Told()
    if not isinstance(told, Mapping):
        raise ValueError("it is no table")
    _bound(told)
    try:
        return cattrs.structure(dict(told), Told)
    except (TypeError, KeyError, AttributeError, cattrs.BaseValidationError) as error:
        raise ValueError(f"it has another form ({type(error).__name__})") from error


def _bound(value: Any, depth: int = 0) -> int:
    """The number of items in it. Raises ValueError if there are too many, or one is too long."""
    if depth > 4:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str):
        if len(value) > CHARACTERS_MAX:
            raise ValueError(f"a text of {len(value)} characters")
        return 1
    if isinstance(value, Mapping):
        count = sum(_bound(key, depth + 1) + _bound(item, depth + 1) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        count = 1 + sum(_bound(item, depth + 1) for item in value)
    else:
        return 1
    if count > ITEMS_MAX:
        raise ValueError(f"{count} items (at most {ITEMS_MAX})")
    return count


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
