"""What an operator may set: for all machines of the node, and for each machine.

Everything is checked strictly. A number is no text and a text is no truth value; an unknown key is
refused by name, with the nearest known one.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_origin

import attrs
import cattrs
from attrs import field, frozen
from cattrs.errors import ForbiddenExtraKeysError, IterableValidationError
from novacron import ConfigError, MachineSpec

MIB: Final = 1 << 20
ACCELERATORS: Final = ("auto", "kvm", "tcg")
DISK_FORMATS: Final = ("raw", "qcow2")
DISK_CACHES: Final = ("none", "writeback", "writethrough", "directsync", "unsafe")
CPUS_MAX: Final = 255
# QEMU's own limit for one argument is far higher; what is longer than this is a mistake.
ARGUMENTS_FILE_BYTES_MAX: Final = 64 * 1024

# These belong to the driver: a second one of them would take the machine out of its hands.
_RESERVED: Final = {
    *[
        "M",
        "S",
        "accel",
        "append",
        "cpu",
        "daemonize",
        "enable-kvm",
        "incoming",
        "initrd",
        "kernel",
    ],
    *["loadvm", "m", "machine", "name", "no-shutdown", "pidfile", "preconfig", "smp"],
}

_T = TypeVar("_T")


@frozen(kw_only=True)
class Settings:
    """The section ``[machine.qemu]``.

    Attributes:
        binary: The QEMU to use, a path or a name in PATH.
        accel: For machines that do not say: ``auto`` takes KVM when it really works and emulation
            (``tcg``) when it does not, and says which; ``kvm`` and ``tcg`` insist.
        files: The folder that relative paths in a machine's settings start from; nodes may keep
            the same files in different places. Empty: such paths are refused.
        runtime_dir: Where the sockets go when a machine's home has too long a path for them;
            empty for XDG_RUNTIME_DIR, /run/user/UID or the folder for temporary files.
        start_timeout_s: How long QEMU may take to answer after it was started.
        load_timeout_s: How long an arriving machine may take to load after its last byte.
        max_rounds: Passes over memory after which a copy is said not to converge.
        keep_disks: Whether a disk that went along with its machine stays behind when the machine
            runs elsewhere, so that its way back costs only what has changed; else it is removed.
        keep_partial_disks: Whether a disk that came only in part stays, so that the next attempt
            sends only the rest; else it is removed.
    """

    binary: str = "qemu-system-x86_64"
    accel: str = field(default="auto", validator=attrs.validators.in_(ACCELERATORS))
    files: str = ""
    runtime_dir: str = ""
    start_timeout_s: float = field(default=30.0, validator=attrs.validators.gt(0))
    load_timeout_s: float = field(default=60.0, validator=attrs.validators.gt(0))
    max_rounds: int = field(default=200, validator=attrs.validators.ge(2))
    keep_disks: bool = field(default=True, validator=attrs.validators.instance_of(bool))
    keep_partial_disks: bool = field(default=False, validator=attrs.validators.instance_of(bool))


@frozen(kw_only=True)
class Disk:
    """One disk of a machine; in the settings a table, or its path alone.

    Attributes:
        path: The image or block device.
        format: ``raw`` or ``qcow2``.
        readonly: The guest may not write to it.
        shared: Every node finds the very same disk at this path (a network file system, a storage
            area network), so that it never goes along. If the guest may write to it, each move
            proves that it is the same.
        cache: QEMU's cache mode; ``none`` is the safe one for shared storage.
    """

    path: str
    format: str = field(default="raw", validator=attrs.validators.in_(DISK_FORMATS))
    readonly: bool = False
    shared: bool = False
    cache: str = field(default="none", validator=attrs.validators.in_(DISK_CACHES))


@frozen(kw_only=True)
class MachineSettings:
    """The settings of one machine.

    Attributes:
        kernel: A Linux kernel to start directly.
        initrd: Its initial RAM disk.
        append: Its command line.
        disks: Disk images, the first is started from when there is no kernel.
        arguments: Further arguments for QEMU.
        arguments_file: A file with further arguments, as a shell would split them; ``#`` begins
            a comment.
        cpus: Virtual processors.
        machine_type: ``q35``, or a version of it such as ``pc-q35-7.2`` when some node has an
            older QEMU. An unversioned name is fixed to this QEMU's newest at each start.
        cpu: QEMU's name of a processor model. Empty: ``host`` with KVM, ``qemu64`` with emulation.
        accel: ``auto``, ``kvm`` or ``tcg``; empty for what ``[machine.qemu]`` says.
    """

    kernel: str = ""
    initrd: str = ""
    append: str = ""
    disks: tuple[Disk, ...] = ()
    arguments: tuple[str, ...] = ()
    arguments_file: str = ""
    cpus: int = field(
        default=1,
        validator=[attrs.validators.ge(1), attrs.validators.le(CPUS_MAX)],
    )
    machine_type: str = field(default="q35", validator=attrs.validators.matches_re(r"[\w.-]{1,64}"))
    cpu: str = field(default="", validator=attrs.validators.matches_re(r"[\w.,=+-]{0,1024}"))
    accel: str = field(default="", validator=attrs.validators.in_(("", *ACCELERATORS)))


def _strict(kind: type[_T]) -> Any:
    def structure(value: Any, _: type[_T]) -> _T:
        if type(value) is kind:
            return value
        raise TypeError(f"{value!r} is not {_NAMES[kind]}")

    return structure


def _structure_float(value: Any, _: type[float]) -> float:
    if type(value) in (int, float):
        return float(value)
    raise TypeError(f"{value!r} is not a number")


_NAMES: Final = {str: "text", int: "a whole number", bool: "true or false"}


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (str, int, bool):
        converter.register_structure_hook(kind, _strict(kind))
    converter.register_structure_hook(float, _structure_float)
    table = cattrs.gen.make_dict_structure_fn(Disk, converter, _cattrs_forbid_extra_keys=True)

    def structure_disk(value: Any, _: type[Disk]) -> Disk:
        if isinstance(value, str):
            return Disk(path=value)
        if not isinstance(value, Mapping):
            raise TypeError(f"{value!r} is neither a path nor a table")
        return table(value, Disk)

    def structure_list(inner: type[_T]) -> Any:
        def structure(value: Any, _: Any) -> tuple[_T, ...]:
            # A text is a sequence too, but a list of its letters is not what anybody meant.
            if isinstance(value, str) or not isinstance(value, (list, tuple)):
                raise TypeError(f"{value!r} is not a list")
            return tuple(converter.structure(item, inner) for item in value)

        return structure

    converter.register_structure_hook(Disk, structure_disk)

    def is_list_of(inner: object) -> Callable[[Any], bool]:
        return lambda kind: get_origin(kind) is tuple and get_args(kind) == (inner, ...)

    converter.register_structure_hook_func(is_list_of(Disk), structure_list(Disk))
    converter.register_structure_hook_func(is_list_of(str), structure_list(str))
    return converter


_CONVERTER: Final = _converter()


def _causes(error: BaseException, where: str) -> tuple[str, str]:
    """The first cause in words, and a hint."""
    if isinstance(error, ForbiddenExtraKeysError):
        unknown = sorted(map(str, error.extra_fields))[0]
        known = [a.name for a in attrs.fields(error.cl)]
        near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"{where}{unknown} is no setting of a QEMU machine", hint
    if isinstance(error, (cattrs.ClassValidationError, IterableValidationError)):
        first = error.exceptions[0]
        for note in getattr(first, "__notes__", ()):
            name = getattr(note, "name", None)
            if isinstance(name, str):
                return _causes(first, f"{where}{name}: ")
        return _causes(first, where)
    if isinstance(error, ValueError) and error.args:
        # attrs' validators put the message first and the attribute and its options after it.
        return f"{where}{error.args[0]}", ""
    return f"{where}{error}", ""


def machine_settings(spec: MachineSpec) -> MachineSettings:
    """The spec's settings, typed and checked as far as they can be without this host.

    Raises:
        ConfigError: A setting is unknown or wrong; the message names it.
    """
    where = f"machine {spec.name}: "
    if spec.memory_bytes < 16 * MIB or spec.memory_bytes % MIB:
        raise ConfigError(
            f"{where}memory_bytes is {spec.memory_bytes}",
            hint="give whole MiB, 16 MiB or more",
            setting="memory_bytes",
        )
    try:
        settings = _CONVERTER.structure(dict(spec.settings), MachineSettings)
    except (cattrs.BaseValidationError, ValueError, TypeError) as error:
        message, hint = _causes(error, where)
        raise ConfigError(message, hint=hint) from error
    if not (settings.kernel or settings.disks or settings.arguments or settings.arguments_file):
        raise ConfigError(
            f"{where}nothing to start from",
            hint="set kernel (and initrd), disks, or arguments_file",
        )
    for name in ("initrd", "append"):
        if getattr(settings, name) and not settings.kernel:
            raise ConfigError(f"{where}{name} means nothing without kernel", hint="set kernel too")
    _refuse_reserved(settings.arguments, f"{where}arguments")
    return settings


def _refuse_reserved(arguments: tuple[str, ...], where: str) -> None:
    for argument in arguments:
        if "\0" in argument:
            raise ConfigError(f"{where}: an argument holds a zero byte")
        if re.match(r"--?(.+)", argument) and argument.lstrip("-") in _RESERVED:
            raise ConfigError(
                f"{where}: {argument} is set by the driver",
                hint="use the machine's settings for it, or leave it out",
            )


def resolve(path: str, settings: Settings, where: str) -> Path:
    """A path of a machine's settings on this node; it need not exist.

    Raises:
        ConfigError: It is relative, and the node does not say to what.
    """
    given = Path(path)
    if given.is_absolute():
        return given
    if not settings.files:
        raise ConfigError(
            f"{where}: {path} is a relative path",
            hint="give an absolute one, or set files in [machine.qemu]",
        )
    return Path(settings.files).expanduser().absolute() / given


def read_arguments_file(path: Path, where: str) -> tuple[str, ...]:
    """The arguments in a file.

    Raises:
        ConfigError: It cannot be read or split, or holds what belongs to the driver.
    """
    try:
        with path.open("rb") as file:
            data = file.read(ARGUMENTS_FILE_BYTES_MAX + 1)
        if len(data) > ARGUMENTS_FILE_BYTES_MAX:
            raise ConfigError(f"{where}: {path} has more than {ARGUMENTS_FILE_BYTES_MAX} bytes")
        arguments = tuple(shlex.split(data.decode(), comments=True))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {path} cannot be used: {error}") from error
    _refuse_reserved(arguments, where)
    return arguments
