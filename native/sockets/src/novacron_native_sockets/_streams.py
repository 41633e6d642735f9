"""Connecting, listening, and streams of bytes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from attrs import frozen

from novacron_native_sockets._address import format_address, parse_address
from novacron_native_sockets._errors import Errors

Buffer = bytes | bytearray | memoryview

_log = logging.getLogger(__name__)

# Linux's numbers, for Pythons that do not name them.
_SO_MAX_PACING_RATE: Final = getattr(socket, "SO_MAX_PACING_RATE", 47)
_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)

# sendmsg takes no more buffers than this in one call (Linux's IOV_MAX).
_BUFFERS_PER_CALL: Final = 1024
# After such errors accept works again once somebody has closed something.
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_SHORTAGE_PAUSE_S: Final = 0.1
# A connection that broke before it was accepted; the next one may be good (accept(2) lists them).
_LOST_BEFORE_ACCEPT: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EINTR,
    }
)

_HINTS: Final = {
    errno.ECONNREFUSED: "is the node running there, and does it listen on this address?",
    errno.EHOSTUNREACH: "check the route and the firewalls between the two nodes",
    errno.ENETUNREACH: "check the route and the firewalls between the two nodes",
    errno.ETIMEDOUT: "check the path and the firewalls between the two nodes",
    errno.ECONNRESET: "the peer's node may have stopped; its log says more",
    errno.EPIPE: "the peer's node may have stopped; its log says more",
    errno.EADDRINUSE: "another process listens there; stop it or choose another port",
    errno.EADDRNOTAVAIL: "this host does not have that address; `ip address` lists the ones it has",
    errno.EACCES: "ports below 1024 need privileges; choose another port",
}


@frozen(kw_only=True)
class Options:
    """How streams behave; 0, None and empty leave the system's.

    Attributes:
        congestion_control: The kernel's algorithm; it must be to be had, see `available`.
        max_rate_bytes_s: Pace at most at this rate.
        unsent_bytes: How much the kernel may hold of what was sent into a stream but has not left
            the host.
        send_buffer_bytes, receive_buffer_bytes: Fixed sizes of the kernel's buffers.
        backlog: Connections that may wait to be accepted.
        keepalive_idle_s, keepalive_interval_s, keepalive_probes: When a silent path is probed, how
            often, and after how many probes without an answer it is broken.
        unacknowledged_timeout_s: A stream whose peer acknowledges nothing for so long is broken.
    """

    congestion_control: str = ""
    max_rate_bytes_s: int = 0
    unsent_bytes: int = 0
    send_buffer_bytes: int = 0
    receive_buffer_bytes: int = 0
    backlog: int = 128
    keepalive_idle_s: int = 15
    keepalive_interval_s: int = 5
    keepalive_probes: int = 3
    unacknowledged_timeout_s: float = 30.0


class _Handle:
    """A socket that any thread may close while others are in calls on it.

    The descriptor is given back only when the last call has left: else its number could already
    belong to another file when a call that is about to start uses it.
    """

    def __init__(self, sock: socket.socket, errors: Errors) -> None:
        self.sock = sock
        self.errors = errors
        self._lock = threading.Lock()
        self._calls = 0
        self.closed = False

    @contextlib.contextmanager
    def call(self, what: str) -> Iterator[socket.socket]:
        with self._lock:
            if self.closed:
                raise self.errors.broken(f"{what}: it was closed here")
            self._calls += 1
        try:
            yield self.sock
        except OSError as error:
            if self.closed:
                raise self.errors.broken(f"{what}: it was closed here meanwhile") from error
            raise _broken(self.errors, what, error) from error
        finally:
            with self._lock:
                self._calls -= 1
                last = self.closed and self._calls == 0
            if last:
                self._release()

    def close(self) -> None:
        with self._lock:
            if self.closed:
                return
            self.closed = True
            idle = self._calls == 0
        if idle:
            # Without a shutdown, so that a peer whose bytes nobody read sees a reset, not an end.
            self._release()
        else:
            # Wakes whoever is in a call; the last of them closes.
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()


class TcpStream:
    """One TCP connection. Blocking; any thread may close it."""

    def __init__(self, sock: socket.socket, errors: Errors) -> None:
        """Raises: OSError if the peer is gone already."""
        self._handle = _Handle(sock, errors)
        self._peer_address = format_address(sock.getpeername())
        self._finished = False

    @property
    def peer_address(self) -> str:
        return self._peer_address

    def send(self, buffers: Sequence[Buffer]) -> None:
        views = [view for view in map(_bytes_view, buffers) if view.nbytes]
        with self._handle.call(f"sending to {self._peer_address}") as sock:
            first = 0
            while first < len(views):
                sent = sock.sendmsg(views[first : first + _BUFFERS_PER_CALL])
                while first < len(views) and sent >= views[first].nbytes:
                    sent -= views[first].nbytes
                    first += 1
                if sent:
                    views[first] = views[first][sent:]

    def receive_into(self, buffer: memoryview) -> int:
        if not buffer.nbytes:
            raise ValueError("there is no room to receive into")
        what = f"receiving from {self._peer_address}"
        with self._handle.call(what) as sock:
            count = sock.recv_into(buffer)
            # A shutdown by our own close looks like the peer's end.
            if count == 0 and self._handle.closed:
                raise self._handle.errors.broken(f"{what}: it was closed here meanwhile")
        return count

    def finish(self) -> None:
        if self._handle.closed:
            return
        with self._handle.call(f"ending the stream to {self._peer_address}") as sock:
            if not self._finished:
                sock.shutdown(socket.SHUT_WR)
                self._finished = True

    def close(self) -> None:
        self._handle.close()

    @contextlib.contextmanager
    def socket(self, what: str) -> Iterator[socket.socket]:
        """The socket, for a call that must not meet a descriptor that was given back."""
        with self._handle.call(f"{what} the stream to {self._peer_address}") as sock:
            yield sock


Wrap = Callable[[socket.socket, Errors], TcpStream]


class TcpListener:
    """A listening socket. What it accepts is wrapped by ``wrap``."""

    def __init__(self, sock: socket.socket, options: Options, errors: Errors, wrap: Wrap) -> None:
        self._handle = _Handle(sock, errors)
        self._options = options
        self._wrap = wrap
        self._closing = threading.Event()
        self._address = format_address(sock.getsockname())

    @property
    def address(self) -> str:
        return self._address

    def accept(self) -> TcpStream:
        with self._handle.call(f"listening on {self._address}") as listening:
            while True:
                try:
                    sock, _ = listening.accept()
                except OSError as error:
                    if self._handle.closed:
                        raise
                    if error.errno in _SHORTAGES:
                        _log.warning("accepting on %s: %s; trying again", self._address, error)
                        self._closing.wait(_SHORTAGE_PAUSE_S)
                    elif error.errno not in _LOST_BEFORE_ACCEPT:
                        raise
                    continue
                try:
                    _prepare(sock, self._options)
                    return self._wrap(sock, self._handle.errors)
                except OSError as error:
                    # The peer is gone already; that is no reason to stop listening.
                    _log.info("a connection on %s broke at once: %s", self._address, error)
                    sock.close()

    def close(self) -> None:
        self._closing.set()
        self._handle.close()


def connect(
    address: str,
    timeout_s: float,
    options: Options,
    errors: Errors,
    *,
    wrap: Wrap = TcpStream,
    local_address: str = "",
) -> TcpStream:
    """Reach a listener.

    Args:
        local_address: The IP address of this host to come from; empty leaves it to the routes.

    Raises:
        errors.broken: Within the timeout, naming the address.
        errors.wrong: It is no address.
    """
    host, port = parse_address(address, errors)
    what = f"connecting to {address}" + (f" from {local_address}" if local_address else "")
    deadline = time.monotonic() + timeout_s
    targets = _resolve(host, port, what, errors)
    if local_address:
        family = socket.AF_INET6 if ":" in local_address else socket.AF_INET
        targets = [target for target in targets if target[0] == family]
        if not targets:
            raise errors.broken(
                f"{what}: no address of the same family",
                hint="give a local address of each family that the peers have",
                address=address,
            )
    failure: OSError = TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    for tried, (family, sockaddr) in enumerate(targets):
        # An address that swallows packets must leave time for the ones after it.
        left = (deadline - time.monotonic()) / (len(targets) - tried)
        if left <= 0:
            break
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            _prepare(sock, options)
            if local_address:
                sock.bind((local_address, 0))
            sock.settimeout(left)
            sock.connect(sockaddr)
            sock.settimeout(None)
            return wrap(sock, errors)
        except OSError as error:
            sock.close()
            failure = error
    if isinstance(failure, TimeoutError):
        raise errors.broken(
            f"{what}: no answer within {timeout_s:g} s",
            hint=_HINTS[errno.ETIMEDOUT],
            address=address,
        ) from failure
    raise _broken(errors, what, failure) from failure


def listen(
    address: str, options: Options, errors: Errors, *, wrap: Wrap = TcpStream
) -> TcpListener:
    """Listen.

    Raises:
        errors.broken: The address cannot be had.
        errors.wrong: It is none.
    """
    host, port = parse_address(address, errors, any_port=True)
    what = f"listening on {address}"
    family, sockaddr = _resolve(host, port, what, errors, passive=True)[0]
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise _broken(errors, what, error) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # The window's scale is agreed on with the first packet, so before it.
        _set_buffers(sock, options)
        sock.bind(sockaddr)
        sock.listen(options.backlog)
    except OSError as error:
        sock.close()
        raise _broken(errors, what, error) from error
    return TcpListener(sock, options, errors, wrap)


def _resolve(
    host: str, port: int, what: str, errors: Errors, *, passive: bool = False
) -> list[tuple[socket.AddressFamily, Any]]:
    flags = socket.AI_NUMERICSERV | (socket.AI_PASSIVE if passive else 0)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        raise errors.broken(
            f"{what}: the host name {host!r} has no address: {error}",
            hint="check the spelling and the name service, or write the IP address",
            address=f"{host}:{port}",
        ) from error
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


def _prepare(sock: socket.socket, options: Options) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, options.keepalive_idle_s),
        (socket.TCP_KEEPINTVL, options.keepalive_interval_s),
        (socket.TCP_KEEPCNT, options.keepalive_probes),
        (socket.TCP_USER_TIMEOUT, int(options.unacknowledged_timeout_s * 1000)),
        (_TCP_NOTSENT_LOWAT, options.unsent_bytes),
    ):
        if value:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    _set_buffers(sock, options)
    if options.max_rate_bytes_s:
        pace(sock, options.max_rate_bytes_s)
    if options.congestion_control:
        wanted = options.congestion_control.encode()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, wanted)


def _set_buffers(sock: socket.socket, options: Options) -> None:
    if options.send_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer_bytes)
    if options.receive_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.receive_buffer_bytes)


def pace(sock: socket.socket, bytes_per_s: int | None) -> None:
    """Send at most so fast, evenly; None is no limit. Raises: OSError."""
    rate = 2**64 - 1 if bytes_per_s is None else max(bytes_per_s, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate.to_bytes(8, sys.byteorder))


def hold_unsent(sock: socket.socket, size: int) -> None:
    """Let the kernel hold so much of what has not left the host. Raises: OSError."""
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, size)


def available(wanted: str) -> str:
    """The congestion control to set: ``wanted`` if the kernel lets us have it, else none, which is
    said in the log."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, wanted.encode())
        except OSError as error:
            raw = probe.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            _log.warning(
                "congestion control %r is not to be had (%s), so streams use %s; "
                "load its module (modprobe tcp_%s) and look at %s",
                wanted,
                error.strerror,
                raw.split(b"\0")[0].decode(),
                wanted,
                "net.ipv4.tcp_allowed_congestion_control",
            )
            return ""
    return wanted


def _bytes_view(buffer: Buffer) -> memoryview:
    return memoryview(buffer).cast("B")


def _broken(errors: Errors, what: str, error: OSError) -> Exception:
    number = error.errno or 0
    cause = (error.strerror or str(error)).lower()
    return errors.broken(f"{what}: {cause}", hint=_HINTS.get(number, ""), errno=number)
