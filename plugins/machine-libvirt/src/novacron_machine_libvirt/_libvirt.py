"""libvirt.so, as far as the driver uses it.

libvirt-python would need a compiler and libvirt's headers on every host (it is published without
wheels), and does not have the phases of a migration (`_phases`). So the library that libvirtd's own
host has anyway is called through ctypes; it is loaded when it is first needed.

The functions and constants have libvirt's names; https://libvirt.org/html/ describes them.
Every call blocks, without the GIL, and may be made from any thread.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_ulong, c_ulonglong, c_void_p
from functools import cache
from typing import Any, Final

from novacron import NotFound

# libvirt-domain.h
VIR_DOMAIN_RUNNING: Final = 1
VIR_DOMAIN_BLOCKED: Final = 2
VIR_DOMAIN_PAUSED: Final = 3
VIR_DOMAIN_SHUTDOWN: Final = 4
VIR_DOMAIN_SHUTOFF: Final = 5
VIR_DOMAIN_CRASHED: Final = 6
VIR_DOMAIN_PMSUSPENDED: Final = 7
VIR_DOMAIN_SHUTOFF_SHUTDOWN: Final = 1
VIR_DOMAIN_SHUTOFF_DESTROYED: Final = 2
VIR_DOMAIN_SHUTOFF_MIGRATED: Final = 4
VIR_DOMAIN_SHUTOFF_SAVED: Final = 5
VIR_DOMAIN_UNDEFINE_MANAGED_SAVE: Final = 1
VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA: Final = 2
VIR_DOMAIN_UNDEFINE_NVRAM: Final = 4
VIR_DOMAIN_UNDEFINE_KEEP_NVRAM: Final = 8
VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA: Final = 16
VIR_DOMAIN_XML_SECURE: Final = 1
VIR_DOMAIN_XML_INACTIVE: Final = 2
VIR_DOMAIN_XML_MIGRATABLE: Final = 8
VIR_DOMAIN_DEFINE_VALIDATE: Final = 1
VIR_DOMAIN_JOB_NONE: Final = 0
VIR_MEMORY_PHYSICAL: Final = 2
VIR_MIGRATE_LIVE: Final = 1
VIR_MIGRATE_PERSIST_DEST: Final = 1 << 3
VIR_MIGRATE_UNDEFINE_SOURCE: Final = 1 << 4
VIR_MIGRATE_PAUSED: Final = 1 << 5
VIR_MIGRATE_AUTO_CONVERGE: Final = 1 << 13
VIR_MIGRATE_PARAM_URI: Final = "migrate_uri"
VIR_MIGRATE_PARAM_DEST_NAME: Final = "destination_name"
VIR_MIGRATE_PARAM_DEST_XML: Final = "destination_xml"
VIR_MIGRATE_PARAM_BANDWIDTH: Final = "bandwidth"
# libvirt-host.h
VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE: Final = 1
# virterror.h
VIR_ERR_NO_DOMAIN: Final = 42
VIR_ERR_NO_NETWORK: Final = 43
VIR_ERR_MIGRATE_UNSAFE: Final = 81
VIR_ERR_CPU_INCOMPATIBLE: Final = 91
VIR_FROM_RPC: Final = 7
VIR_FROM_REMOTE: Final = 13


class _Error(ctypes.Structure):
    """The beginning of a virError; it has more members."""

    _fields_ = [("code", c_int), ("domain", c_int), ("message", c_char_p)]


class _Value(ctypes.Union):
    _fields_ = [
        ("i", c_int),
        ("ui", c_uint),
        ("l", ctypes.c_longlong),
        ("ul", c_ulonglong),
        ("d", ctypes.c_double),
        ("b", ctypes.c_char),
        ("s", c_char_p),
    ]


class _Parameter(ctypes.Structure):
    """A virTypedParameter."""

    _fields_ = [("field", ctypes.c_char * 80), ("type", c_int), ("value", _Value)]


# By virTypedParameterType; a boolean is left out, and texts.
_MEMBERS: Final = {1: "i", 2: "ui", 3: "l", 4: "ul", 5: "d"}

# Result and arguments. A text that is returned is the caller's to free, so it is a pointer.
_P: Final = c_void_p
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "virInitialize": (c_int, ()),
    "virGetLastError": (POINTER(_Error), ()),
    "virGetVersion": (c_int, (POINTER(c_ulong), c_char_p, POINTER(c_ulong))),
    "virConnectOpen": (_P, (c_char_p,)),
    "virConnectClose": (c_int, (_P,)),
    "virConnectGetLibVersion": (c_int, (_P, POINTER(c_ulong))),
    "virConnectGetVersion": (c_int, (_P, POINTER(c_ulong))),
    "virConnectGetURI": (_P, (_P,)),
    "virConnectGetCapabilities": (_P, (_P,)),
    "virConnectGetDomainCapabilities": (_P, (_P, *(c_char_p,) * 4, c_uint)),
    "virConnectCompareHypervisorCPU": (c_int, (_P, *(c_char_p,) * 5, c_uint)),
    "virConnectBaselineHypervisorCPU": (
        _P,
        (_P, *(c_char_p,) * 4, POINTER(c_char_p), c_uint, c_uint),
    ),
    "virConnectListAllDomains": (c_int, (_P, POINTER(POINTER(_P)), c_uint)),
    "virNodeGetFreeMemory": (c_ulonglong, (_P,)),
    "virNetworkLookupByName": (_P, (_P, c_char_p)),
    "virNetworkIsActive": (c_int, (_P,)),
    "virNetworkFree": (c_int, (_P,)),
    "virDomainLookupByUUIDString": (_P, (_P, c_char_p)),
    "virDomainLookupByName": (_P, (_P, c_char_p)),
    "virDomainDefineXMLFlags": (_P, (_P, c_char_p, c_uint)),
    "virDomainFree": (c_int, (_P,)),
    "virDomainGetName": (c_char_p, (_P,)),
    "virDomainGetUUIDString": (c_int, (_P, c_char_p)),
    "virDomainGetXMLDesc": (_P, (_P, c_uint)),
    "virDomainGetState": (c_int, (_P, POINTER(c_int), POINTER(c_int), c_uint)),
    "virDomainIsActive": (c_int, (_P,)),
    "virDomainIsPersistent": (c_int, (_P,)),
    "virDomainCreate": (c_int, (_P,)),
    "virDomainDestroy": (c_int, (_P,)),
    "virDomainSuspend": (c_int, (_P,)),
    "virDomainResume": (c_int, (_P,)),
    "virDomainUndefineFlags": (c_int, (_P, c_uint)),
    "virDomainMemoryPeek": (c_int, (_P, c_ulonglong, ctypes.c_size_t, c_void_p, c_uint)),
    "virDomainAbortJob": (c_int, (_P,)),
    "virDomainMigrateSetMaxDowntime": (c_int, (_P, c_ulonglong, c_uint)),
    "virDomainGetJobStats": (
        c_int,
        (_P, POINTER(c_int), POINTER(POINTER(_Parameter)), POINTER(c_int), c_uint),
    ),
    "virTypedParamsFree": (None, (POINTER(_Parameter), c_int)),
    "virTypedParamsAddString": (
        c_int,
        (POINTER(POINTER(_Parameter)), POINTER(c_int), POINTER(c_int), c_char_p, c_char_p),
    ),
    "virTypedParamsAddULLong": (
        c_int,
        (POINTER(POINTER(_Parameter)), POINTER(c_int), POINTER(c_int), c_char_p, c_ulonglong),
    ),
    # The phases: libvirt_internal.h.
    "virDomainMigrateBegin3Params": (
        _P,
        (_P, POINTER(_Parameter), c_int, POINTER(_P), POINTER(c_int), c_uint),
    ),
    "virDomainMigratePrepare3Params": (
        c_int,
        (
            *(_P, POINTER(_Parameter), c_int, c_char_p, c_int),
            *(POINTER(_P), POINTER(c_int), POINTER(_P), c_uint),
        ),
    ),
    "virDomainMigratePerform3Params": (
        c_int,
        (
            *(_P, c_char_p, POINTER(_Parameter), c_int, c_char_p, c_int),
            *(POINTER(_P), POINTER(c_int), c_uint),
        ),
    ),
    "virDomainMigrateFinish3Params": (
        _P,
        (
            *(_P, POINTER(_Parameter), c_int, c_char_p, c_int),
            *(POINTER(_P), POINTER(c_int), c_uint, c_int),
        ),
    ),
    "virDomainMigrateConfirm3Params": (
        c_int,
        (_P, POINTER(_Parameter), c_int, c_char_p, c_int, c_uint, c_int),
    ),
}


class LibvirtError(Exception):
    """libvirt said no.

    Attributes:
        message: In libvirt's words.
        code: A virErrorNumber.
        domain: Which part of libvirt, a virErrorDomain.
    """

    def __init__(self, message: str, code: int = 0, domain: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.domain = domain


# Called by libvirt with each error, or it would print them; the exceptions tell them.
_SAY_NOTHING: Final = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)(lambda _context, _error: None)


@cache
def library() -> Any:
    """libvirt.so, its functions declared. Raises NotFound if it is not here, or too old."""
    try:
        found = ctypes.CDLL("libvirt.so.0")
    except OSError as error:
        raise NotFound(
            f"libvirt is not on this host: {error}",
            hint="install libvirtd and its driver for QEMU (Debian: libvirt-daemon, "
            "libvirt-daemon-driver-qemu); they bring libvirt.so along",
        ) from error
    for name, (result, arguments) in _FUNCTIONS.items():
        try:
            function = getattr(found, name)
        except AttributeError as error:
            raise NotFound(
                f"this host's libvirt.so has no {name}",
                hint="use libvirt 4.4 or newer, as distributions build it",
            ) from error
        function.restype, function.argtypes = result, arguments
    found.virSetErrorFunc(None, _SAY_NOTHING)
    if found.virInitialize() < 0:
        raise failed("virInitialize")
    return found


@cache
def _free() -> Any:
    function = ctypes.CDLL(None).free
    function.argtypes, function.restype = (c_void_p,), None
    return function


def discard(pointer: Any) -> None:
    """Free what libvirt gave (None is nothing)."""
    _free()(pointer)


def library_version() -> int:
    """Of libvirt.so: major * 1,000,000 + minor * 1,000 + release. Raises NotFound."""
    number = c_ulong()
    check("virGetVersion", byref(number), None, None)
    return number.value


def failed(function: str) -> LibvirtError:
    """The error of the call that this thread has just made."""
    last = library().virGetLastError()
    if not last:
        return LibvirtError(f"{function}() failed")
    error = last.contents
    message = (error.message or b"").decode(errors="replace")
    return LibvirtError(message or f"{function}() failed", error.code, error.domain)


def check(function: str, *arguments: Any) -> int:
    """Call a function that returns a number. Raises LibvirtError if it is below zero."""
    result = int(getattr(library(), function)(*arguments))
    if result < 0:
        raise failed(function)
    return result


def need(function: str, *arguments: Any) -> Any:
    """Call a function that returns a pointer. Raises LibvirtError if it is null."""
    result = getattr(library(), function)(*arguments)
    if not result:
        raise failed(function)
    return result


def text(function: str, *arguments: Any) -> str:
    """Call a function that returns a text for the caller to free."""
    pointer = need(function, *arguments)
    try:
        return ctypes.string_at(pointer).decode(errors="replace")
    finally:
        discard(pointer)


def _bytes(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


class Parameters:
    """Typed parameters in libvirt's form; texts and 64-bit numbers are all that is needed."""

    def __init__(self, values: dict[str, str | int]) -> None:
        self.array, self.count = POINTER(_Parameter)(), c_int()
        room = c_int()
        where = byref(self.array), byref(self.count), byref(room)
        for name, value in values.items():
            if isinstance(value, str):
                check("virTypedParamsAddString", *where, name.encode(), value.encode())
            else:
                check("virTypedParamsAddULLong", *where, name.encode(), value)

    def __enter__(self) -> Parameters:
        return self

    def __exit__(self, *_: object) -> None:
        library().virTypedParamsFree(self.array, self.count)


class Domain:
    """A virDomainPtr, and a reference to its connection."""

    def __init__(self, pointer: Any, connection: Connection) -> None:
        self.pointer = pointer
        self._connection = connection  # closed only after its domains were freed

    def __del__(self) -> None:
        library().virDomainFree(self.pointer)

    def name(self) -> str:
        return bytes(need("virDomainGetName", self.pointer)).decode(errors="replace")

    def uuid(self) -> str:
        room = ctypes.create_string_buffer(37)
        check("virDomainGetUUIDString", self.pointer, room)
        return room.value.decode()

    def xml(self, flags: int = 0) -> str:
        return text("virDomainGetXMLDesc", self.pointer, flags)

    def state(self) -> tuple[int, int]:
        """State and reason."""
        state, reason = c_int(), c_int()
        check("virDomainGetState", self.pointer, byref(state), byref(reason), 0)
        return state.value, reason.value

    def is_active(self) -> bool:
        return check("virDomainIsActive", self.pointer) == 1

    def is_persistent(self) -> bool:
        return check("virDomainIsPersistent", self.pointer) == 1

    def create(self) -> None:
        check("virDomainCreate", self.pointer)

    def destroy(self) -> None:
        check("virDomainDestroy", self.pointer)

    def suspend(self) -> None:
        check("virDomainSuspend", self.pointer)

    def resume(self) -> None:
        check("virDomainResume", self.pointer)

    def undefine(self, flags: int) -> None:
        check("virDomainUndefineFlags", self.pointer, flags)

    def memory(self, at: int, length: int) -> bytes:
        """Of the guest's physical memory; libvirt allows 4 MiB at a time."""
        room = ctypes.create_string_buffer(length)
        check("virDomainMemoryPeek", self.pointer, at, length, room, VIR_MEMORY_PHYSICAL)
        return room.raw

    def abort_job(self) -> None:
        check("virDomainAbortJob", self.pointer)

    def set_max_downtime(self, downtime_ms: int) -> None:
        check("virDomainMigrateSetMaxDowntime", self.pointer, downtime_ms, 0)

    def job(self) -> tuple[int, dict[str, int | float]]:
        """The type of the job under way, and its numbers by libvirt's names for them."""
        kind, count, array = c_int(), c_int(), POINTER(_Parameter)()
        where = byref(kind), byref(array), byref(count)
        check("virDomainGetJobStats", self.pointer, *where, 0)
        try:
            found = [array[index] for index in range(count.value)]
            numbers = {
                one.field.decode(): getattr(one.value, _MEMBERS[one.type])
                for one in found
                if one.type in _MEMBERS
            }
        finally:
            library().virTypedParamsFree(array, count)
        return kind.value, numbers


class Connection:
    """A virConnectPtr; closed when nobody refers to it any more."""

    def __init__(self, uri: str) -> None:
        self.pointer: Any = None
        self.pointer = need("virConnectOpen", uri.encode())

    def __del__(self) -> None:
        if self.pointer:
            library().virConnectClose(self.pointer)

    def _version(self, function: str) -> int:
        number = c_ulong()
        check(function, self.pointer, byref(number))
        return number.value

    def libvirt_version(self) -> int:
        """The daemon's: major * 1,000,000 + minor * 1,000 + release."""
        return self._version("virConnectGetLibVersion")

    def qemu_version(self) -> int:
        return self._version("virConnectGetVersion")

    def uri(self) -> str:
        return text("virConnectGetURI", self.pointer)

    def capabilities(self) -> str:
        return text("virConnectGetCapabilities", self.pointer)

    def domain_capabilities(
        self, architecture: str, machine_type: str | None, virt_type: str
    ) -> str:
        where = None, architecture.encode(), _bytes(machine_type), virt_type.encode()
        return text("virConnectGetDomainCapabilities", self.pointer, *where, 0)

    def compare_cpu(
        self, architecture: str, machine_type: str | None, virt_type: str, cpu: str
    ) -> None:
        """Raises LibvirtError with VIR_ERR_CPU_INCOMPATIBLE if a guest cannot have it here."""
        where = None, architecture.encode(), _bytes(machine_type), virt_type.encode()
        flags = VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
        check("virConnectCompareHypervisorCPU", self.pointer, *where, cpu.encode(), flags)

    def baseline_cpu(
        self, architecture: str, machine_type: str | None, virt_type: str, cpus: list[str]
    ) -> str:
        """The XML of the largest processor that all of them include."""
        where = None, architecture.encode(), _bytes(machine_type), virt_type.encode()
        array = (c_char_p * len(cpus))(*(cpu.encode() for cpu in cpus))
        return text("virConnectBaselineHypervisorCPU", self.pointer, *where, array, len(cpus), 0)

    def free_memory(self) -> int:
        """Bytes of the host; 0 if it is not known."""
        return int(library().virNodeGetFreeMemory(self.pointer))

    def network_is_active(self, name: str) -> bool:
        """Raises LibvirtError with VIR_ERR_NO_NETWORK if there is none of that name."""
        network = need("virNetworkLookupByName", self.pointer, name.encode())
        try:
            return check("virNetworkIsActive", network) == 1
        finally:
            library().virNetworkFree(network)

    def find_uuid(self, uuid: str) -> Domain:
        """Raises LibvirtError with VIR_ERR_NO_DOMAIN if there is none."""
        return Domain(need("virDomainLookupByUUIDString", self.pointer, uuid.encode()), self)

    def find_name(self, name: str) -> Domain:
        """Raises LibvirtError with VIR_ERR_NO_DOMAIN if there is none."""
        return Domain(need("virDomainLookupByName", self.pointer, name.encode()), self)

    def define(self, xml: str) -> Domain:
        """A domain that is not running yet; its XML is held to libvirt's schema."""
        flags = VIR_DOMAIN_DEFINE_VALIDATE
        return Domain(need("virDomainDefineXMLFlags", self.pointer, xml.encode(), flags), self)

    def domains(self) -> list[Domain]:
        """All of them, running or not."""
        array = POINTER(_P)()
        count = check("virConnectListAllDomains", self.pointer, byref(array), 0)
        try:
            return [Domain(array[index], self) for index in range(count)]
        finally:
            discard(ctypes.cast(array, c_void_p))
