"""The phases of libvirt's migration, one call each.

libvirt moves a domain in five steps: begin (at the source), prepare (at the destination), perform
(source), finish (destination), confirm (source). Its public functions take all of them in one go
and need a connection to both daemons in one process. Here each is called by itself, at its own
node, so that no daemon is ever connected to another one and the last word (confirm) can wait for
the hand-over.

The functions stand in libvirt.so for libvirt's own daemons, which call them for every remote
client; `virDomainMigrate…3Params` have had these parameters since libvirt 1.1.0 (2013). They are
found by name, without a version. docs/adr/019 says what was weighed.

Every call blocks until the daemon has answered, without the GIL, and raises libvirt.libvirtError.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final
from xml.sax.saxutils import escape

import libvirt  # type: ignore[import-untyped,unused-ignore]
from attrs import frozen
from novacron import NotFound

_NAMES: Final = ("Begin3Params", "Prepare3Params", "Perform3Params", "Finish3Params")
_Pointer = ctypes.c_void_p
# libvirtd refuses a move from its own host; that nobody has this UUID is all that is asked of it.
_OTHER_HOST: Final = "6e6f7661-6372-6f6e-8000-6c6962766972"

# A machine moves live, stands paused at the destination, and is defined where it is and nowhere
# else.
FLAGS: Final = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PAUSED
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
)


@cache
def _library() -> ctypes.CDLL:
    """libvirt.so, the one that libvirt-python has loaded.

    Raises: NotFound if it does not have the phases.
    """
    library = ctypes.CDLL("libvirt.so.0")
    prefix = "virDomainMigrate"
    try:
        for name in (*_NAMES, "Confirm3Params"):
            getattr(library, prefix + name).restype = ctypes.c_int
    except AttributeError as error:
        raise NotFound(
            f"this libvirt.so has no {error}",
            hint="use libvirt 1.1 or newer, as distributions build it",
        ) from error
    library.virDomainMigrateBegin3Params.restype = _Pointer
    library.virDomainMigrateFinish3Params.restype = _Pointer
    library.virTypedParamsFree.restype = None
    return library


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.free.argtypes = (_Pointer,)
    library.free.restype = None
    return library


def _pointer(handle: Any, kind: bytes) -> Any:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = _Pointer, (ctypes.py_object, ctypes.c_char_p)
    return _Pointer(get(handle._o, kind))


class _Parameters:
    """Typed parameters in libvirt's form; texts and 64-bit numbers are all that is needed."""

    def __init__(self, values: Mapping[str, str | int]) -> None:
        self.array, self.count, room = _Pointer(), ctypes.c_int(), ctypes.c_int()
        where = (ctypes.byref(self.array), ctypes.byref(self.count), ctypes.byref(room))
        for name, value in values.items():
            if isinstance(value, str):
                done = _library().virTypedParamsAddString(*where, name.encode(), value.encode())
            else:
                number = ctypes.c_ulonglong(value)
                done = _library().virTypedParamsAddULLong(*where, name.encode(), number)
            if done < 0:
                raise libvirt.libvirtError(f"the parameter {name} is not taken")

    def __enter__(self) -> _Parameters:
        return self

    def __exit__(self, *_: object) -> None:
        _library().virTypedParamsFree(self.array, self.count)


def _discard(text: Any) -> None:
    """Free what libvirt gave: cookies go no further than this."""
    _libc().free(text)


@frozen(kw_only=True)
class Peer:
    """Who stands at the other end of a move, as far as a daemon must know.

    Attributes:
        name: The domain's name; both sides have the same.
        uuid: The domain's.
    """

    name: str
    uuid: str

    def cookie(self) -> bytes:
        """What libvirt's daemons tell each other between the phases, in its smallest form.

        A real one holds facts for what is not done here (disks over NBD, TLS, the other side's
        capabilities) and would be bytes from another host that libvirtd takes on trust: 9.0 ends by
        a null pointer when it finds no ``capabilities`` in one. So each node writes its own.
        """
        if not re.fullmatch(r"[0-9a-f-]{36}", self.uuid):
            raise ValueError(f"{self.uuid!r} is no UUID")
        return (
            f"<qemu-migration><name>{escape(self.name)}</name><uuid>{self.uuid}</uuid>"
            f"<hostname>novacron</hostname><hostuuid>{_OTHER_HOST}</hostuuid>"
            "<capabilities/></qemu-migration>"
        ).encode() + b"\0"


def begin(domain: libvirt.virDomain, flags: int = FLAGS) -> None:
    """Ask the source's daemon whether the domain may leave. Nothing is changed by it."""
    text, length = _Pointer(), ctypes.c_int()
    with _Parameters({}) as given:
        xml = _library().virDomainMigrateBegin3Params(
            *(_pointer(domain, b"virDomainPtr"), given.array, given.count),
            *(ctypes.byref(text), ctypes.byref(length), ctypes.c_uint(flags)),
        )
    _discard(text)
    if not xml:
        raise libvirt.libvirtError("virDomainMigrateBegin3Params() failed")
    _discard(_Pointer(xml))


def prepare(connection: libvirt.virConnect, peer: Peer, xml: str, uri: str) -> None:
    """Let the destination's daemon make the domain and listen at ``uri`` for its state.

    The domain is gone again if the connection closes before `finish`.
    """
    values = {
        libvirt.VIR_MIGRATE_PARAM_URI: uri,
        libvirt.VIR_MIGRATE_PARAM_DEST_NAME: peer.name,
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: xml,
    }
    text, length, told = _Pointer(), ctypes.c_int(), _Pointer()
    cookie = peer.cookie()
    with _Parameters(values) as given:
        done = _library().virDomainMigratePrepare3Params(
            *(_pointer(connection, b"virConnectPtr"), given.array, given.count),
            *(cookie, len(cookie), ctypes.byref(text), ctypes.byref(length)),
            *(ctypes.byref(told), ctypes.c_uint(FLAGS)),
        )
    _discard(text)
    _discard(told)
    if done < 0:
        raise libvirt.libvirtError("virDomainMigratePrepare3Params() failed")


def perform(
    domain: libvirt.virDomain, peer: Peer, uri: str, *, flags: int = FLAGS, rate_mib_s: int = 0
) -> None:
    """Let the source's daemon send the domain's state to ``uri``; returns when all was sent.

    Afterwards the domain is paused and only `confirm` ends the move. If it fails, the daemon has
    resumed the domain, if it ran before.
    """
    values: dict[str, str | int] = {
        libvirt.VIR_MIGRATE_PARAM_URI: uri,
        libvirt.VIR_MIGRATE_PARAM_DEST_NAME: peer.name,
    }
    if rate_mib_s:
        values[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = rate_mib_s
    text, length = _Pointer(), ctypes.c_int()
    cookie = peer.cookie()
    with _Parameters(values) as given:
        done = _library().virDomainMigratePerform3Params(
            *(_pointer(domain, b"virDomainPtr"), None, given.array, given.count),
            *(cookie, len(cookie), ctypes.byref(text), ctypes.byref(length)),
            ctypes.c_uint(flags),
        )
    _discard(text)
    if done < 0:
        raise libvirt.libvirtError("virDomainMigratePerform3Params() failed")


def finish(connection: libvirt.virConnect, peer: Peer) -> None:
    """Wait until the destination's QEMU has loaded everything. The domain is paused then, and stays
    when the connection closes. If it fails, the daemon has removed the domain."""
    text, length = _Pointer(), ctypes.c_int()
    cookie = peer.cookie()
    with _Parameters({libvirt.VIR_MIGRATE_PARAM_DEST_NAME: peer.name}) as given:
        domain = _library().virDomainMigrateFinish3Params(
            *(_pointer(connection, b"virConnectPtr"), given.array, given.count),
            *(cookie, len(cookie), ctypes.byref(text), ctypes.byref(length)),
            *(ctypes.c_uint(FLAGS), ctypes.c_int(0)),
        )
    _discard(text)
    if not domain:
        raise libvirt.libvirtError("virDomainMigrateFinish3Params() failed")
    _library().virDomainFree(_Pointer(domain))


def confirm(domain: libvirt.virDomain, peer: Peer, *, moved: bool) -> None:
    """Tell the source's daemon how the move went: the domain is ended and undefined there, or it
    goes on there as it was before (running, or paused)."""
    cookie = peer.cookie()
    with _Parameters({libvirt.VIR_MIGRATE_PARAM_DEST_NAME: peer.name}) as given:
        done = _library().virDomainMigrateConfirm3Params(
            *(_pointer(domain, b"virDomainPtr"), given.array, given.count),
            *(cookie, len(cookie), ctypes.c_uint(FLAGS), ctypes.c_int(0 if moved else 1)),
        )
    if done < 0:
        raise libvirt.libvirtError("virDomainMigrateConfirm3Params() failed")
