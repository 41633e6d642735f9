"""A node's connection to its libvirtd, and libvirt's errors in the kernel's words."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from novacron import MachineError

from novacron_machine_libvirt import _libvirt as libvirt

T = TypeVar("T")

_RETRY_S: Final = 0.1
# The daemon, or the way to it, failed; not what it was asked.
_GONE: Final = (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE)


def is_missing(error: libvirt.LibvirtError) -> bool:
    """Whether a domain (or a network) is not there."""
    return error.code in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_NETWORK)


def words(error: libvirt.LibvirtError) -> str:
    """What libvirt says, in one line."""
    return " ".join(error.message.split())


class Daemon:
    """One libvirtd, as this node reaches it. Calls block, and run in threads.

    Args:
        uri: libvirt's address of it.
        answer_timeout_s: How long one call may take; a move's phases have limits of their own.
        restart_s: How long it may be away, once it was there: it is being restarted.
    """

    def __init__(self, uri: str, answer_timeout_s: float, restart_s: float = 0.0) -> None:
        self.uri = uri
        self._timeout_s = answer_timeout_s
        self._restart_s = restart_s
        self._known = False
        self._lock = threading.Lock()
        self._shared: libvirt.Connection | None = None

    def new(self) -> libvirt.Connection:
        """A connection of the caller's own: libvirtd undoes an arrival whose connection closes.

        Raises: MachineError.
        """
        return self._open(self._restart_s if self._known else 0.0)

    def _open(self, patience_s: float) -> libvirt.Connection:
        give_up_at = time.monotonic() + patience_s
        while True:
            try:
                made = libvirt.Connection(self.uri)
            except libvirt.LibvirtError as error:
                if time.monotonic() >= give_up_at:
                    raise self._away(error) from error
                time.sleep(_RETRY_S)
            else:
                self._known = True
                return made

    def _away(self, error: libvirt.LibvirtError) -> MachineError:
        return MachineError(
            f"libvirtd at {self.uri} is not reached: {words(error)}",
            hint="see that libvirtd runs, that uri in [machine.libvirt] names its socket, and "
            "that the node's user may use it",
        )

    def connection(self, *, wait: bool = True) -> libvirt.Connection:
        """The shared one, opened anew if libvirtd was restarted.

        Args:
            wait: Whether to wait for one that is being restarted.

        Raises: MachineError.
        """
        if not self._lock.acquire(blocking=wait):
            raise MachineError(f"libvirtd at {self.uri} is being waited for")
        try:
            if self._shared is not None:
                try:
                    self._shared.libvirt_version()
                    return self._shared
                except libvirt.LibvirtError:
                    self._shared = None
            self._shared = self.new() if wait else self._open(0.0)
            return self._shared
        finally:
            self._lock.release()

    async def call(self, what: str, function: Callable[[libvirt.Connection], T]) -> T:
        """Run a function with the connection in a thread.

        Args:
            what: For the error: ``machine web1 cannot be paused``.

        Raises: MachineError; after a timeout, libvirtd may still do what it was asked.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.to_thread(lambda: function(self.connection()))
        except libvirt.LibvirtError as error:
            raise refused(what, error) from error
        except TimeoutError:
            raise MachineError(
                f"{what}: libvirtd at {self.uri} did not answer within {self._timeout_s:g} s",
                hint="see its log; answer_timeout_s in [machine.libvirt] allows it more",
            ) from None


def refused(what: str, error: libvirt.LibvirtError) -> MachineError:
    """libvirt's error, for an operator."""
    hint = "see libvirtd's log and /var/log/libvirt/qemu (in a session: ~/.cache/libvirt/qemu/log)"
    if error.domain in _GONE:
        hint = "libvirtd has ended or was restarted: try again"
    return MachineError(f"{what}: {words(error)}", hint=hint, libvirt=error.code)
