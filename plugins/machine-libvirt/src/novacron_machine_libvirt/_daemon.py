"""A node's connection to its libvirtd, and libvirt's errors in the kernel's words."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from novacron import MachineError

from novacron_machine_libvirt import _libvirt as libvirt

T = TypeVar("T")

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
    """

    def __init__(self, uri: str, answer_timeout_s: float) -> None:
        self.uri = uri
        self._timeout_s = answer_timeout_s
        self._lock = threading.Lock()
        self._shared: libvirt.Connection | None = None

    def new(self) -> libvirt.Connection:
        """A connection of the caller's own: libvirtd undoes an arrival whose connection closes.

        Raises: MachineError.
        """
        try:
            return libvirt.Connection(self.uri)
        except libvirt.LibvirtError as error:
            raise MachineError(
                f"libvirtd at {self.uri} is not reached: {words(error)}",
                hint="see that libvirtd runs, that uri in [machine.libvirt] names its socket, and "
                "that the node's user may use it",
            ) from error

    def connection(self) -> libvirt.Connection:
        """The shared one, opened anew if libvirtd was restarted. Raises MachineError."""
        with self._lock:
            if self._shared is not None:
                try:
                    self._shared.libvirt_version()
                    return self._shared
                except libvirt.LibvirtError:
                    self._shared = None
            self._shared = self.new()
            return self._shared

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
