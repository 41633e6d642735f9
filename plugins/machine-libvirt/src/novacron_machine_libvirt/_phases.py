"""The phases of libvirt's migration, one call each.

libvirt moves a domain in five steps: begin (at the source), prepare (at the destination), perform
(source), finish (destination), confirm (source). Its public functions take all of them in one go
and need a connection to both daemons in one process. Here each is called by itself, at its own
node, so that no daemon is ever connected to another one and the last word (confirm) can wait for
the hand-over.

The functions stand in libvirt.so for libvirt's own daemons, which call them for every remote
client; `virDomainMigrate…3Params` have had these parameters since libvirt 1.1.0 (2013). They are
found by name, without a version. docs/adr/019 says what was weighed.

Every call blocks until the daemon has answered, without the GIL, and raises LibvirtError.
"""

from __future__ import annotations

import re
from ctypes import byref, c_int, c_void_p
from typing import Final
from xml.sax.saxutils import escape

from attrs import frozen

from novacron_machine_libvirt import _libvirt as libvirt
from novacron_machine_libvirt._libvirt import Connection, Domain, Parameters

# A machine moves live, stands paused at the destination, and is defined where it is and nowhere
# else.
FLAGS: Final = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PAUSED
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
)
# libvirtd refuses a move from its own host; that nobody has this UUID is all that is asked of it.
_OTHER_HOST: Final = "6e6f7661-6372-6f6e-8000-6c6962766972"


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


class _Told:
    """What a phase says for the other side's daemon. It goes no further than this."""

    def __init__(self) -> None:
        self._cookie, self._length = c_void_p(), c_int()

    def here(self) -> tuple[object, object]:
        return byref(self._cookie), byref(self._length)

    def __del__(self) -> None:
        libvirt.discard(self._cookie)


def begin(domain: Domain) -> None:
    """Ask the source's daemon whether the domain may leave. Nothing is changed by it."""
    told = _Told()
    with Parameters({}) as given:
        where = domain.pointer, given.array, given.count, *told.here()
        libvirt.text("virDomainMigrateBegin3Params", *where, FLAGS)


def prepare(connection: Connection, peer: Peer, xml: str, uri: str) -> None:
    """Let the destination's daemon make the domain and listen at ``uri`` for its state.

    The domain is gone again if the connection closes before `finish`.
    """
    told, listens, cookie = _Told(), c_void_p(), peer.cookie()
    values: dict[str, str | int] = {
        libvirt.VIR_MIGRATE_PARAM_URI: uri,
        libvirt.VIR_MIGRATE_PARAM_DEST_NAME: peer.name,
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: xml,
    }
    try:
        with Parameters(values) as given:
            where = connection.pointer, given.array, given.count, cookie, len(cookie)
            more = *told.here(), byref(listens), FLAGS
            libvirt.check("virDomainMigratePrepare3Params", *where, *more)
    finally:
        libvirt.discard(listens)


def perform(
    domain: Domain, peer: Peer, uri: str, *, flags: int = FLAGS, rate_mib_s: int = 0
) -> None:
    """Let the source's daemon send the domain's state to ``uri``; returns when all was sent.

    Afterwards the domain is paused and only `confirm` ends the move. If it fails, the daemon has
    resumed the domain, if it ran before.
    """
    told, cookie = _Told(), peer.cookie()
    values: dict[str, str | int] = {
        libvirt.VIR_MIGRATE_PARAM_URI: uri,
        libvirt.VIR_MIGRATE_PARAM_DEST_NAME: peer.name,
    }
    if rate_mib_s:
        values[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = rate_mib_s
    with Parameters(values) as given:
        where = domain.pointer, None, given.array, given.count, cookie, len(cookie)
        libvirt.check("virDomainMigratePerform3Params", *where, *told.here(), flags)


def finish(connection: Connection, peer: Peer) -> None:
    """Wait until the destination's QEMU has loaded everything. The domain is paused then, and stays
    when the connection closes. If it fails, the daemon has removed the domain."""
    told, cookie = _Told(), peer.cookie()
    with Parameters({libvirt.VIR_MIGRATE_PARAM_DEST_NAME: peer.name}) as given:
        where = connection.pointer, given.array, given.count, cookie, len(cookie)
        domain = libvirt.need("virDomainMigrateFinish3Params", *where, *told.here(), FLAGS, 0)
    Domain(domain, connection)  # which frees it


def confirm(domain: Domain, peer: Peer, *, moved: bool) -> None:
    """Tell the source's daemon how the move went: the domain is ended and undefined there, or it
    goes on there as it was before (running, or paused)."""
    cookie = peer.cookie()
    with Parameters({libvirt.VIR_MIGRATE_PARAM_DEST_NAME: peer.name}) as given:
        where = domain.pointer, given.array, given.count, cookie, len(cookie)
        cancelled = 0 if moved else 1
        libvirt.check("virDomainMigrateConfirm3Params", *where, FLAGS, cancelled)
