"""OpenSSL between two byte queues: nothing here blocks or knows of a stream.

pyOpenSSL's own calls copy each received byte once more and allocate for it; the two hot calls go
to the library that it binds instead. This module alone touches what pyOpenSSL keeps private.
"""

from __future__ import annotations

from typing import Any, Final

from cryptography import x509
from novacron import ConfigError
from OpenSSL import SSL

GROUP: Final = "X25519MLKEM768"
_CIPHERS: Final = b"TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"

_lib: Any = SSL._lib  # type: ignore[attr-defined]
_ffi: Any = SSL._ffi  # type: ignore[attr-defined]


def new_context() -> SSL.Context:
    """A context for TLS 1.3 with one key exchange, and nothing that outlives a connection."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(_CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | _lib.SSL_OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    # pyOpenSSL lets a write stop after its first record; we want it whole.
    context.clear_mode(_lib.SSL_MODE_ENABLE_PARTIAL_WRITE)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_verify_depth(1)
    native: Any = context
    if _lib.SSL_CTX_set1_curves_list(native._context, GROUP.encode()) != 1:
        raise ConfigError(
            f"this OpenSSL has no {GROUP}",
            hint="upgrade cryptography: pip install -U cryptography pyopenssl",
        )
    return context


def use_identity(context: SSL.Context, certificate: x509.Certificate, key_file: str) -> None:
    """Prove ourselves with these. Raises: SSL.Error."""
    untyped: Any = context
    untyped.use_certificate(certificate)
    # By its file: pyOpenSSL takes no ML-DSA key in memory.
    context.use_privatekey_file(key_file)
    context.check_privatekey()


class Engine:
    """One connection's cryptography. Not safe for two threads at once."""

    def __init__(self, context: SSL.Context, *, server: bool) -> None:
        self.connection = SSL.Connection(context, None)
        if server:
            self.connection.set_accept_state()
        else:
            self.connection.set_connect_state()
        native: Any = self.connection
        self._native = native
        self._ssl = native._ssl
        self._out = native._from_ssl
        self._in = native._into_ssl

    def handshake(self) -> bool:
        """Go on with the handshake as far as the input goes; whether it is complete.

        Raises: SSL.Error.
        """
        try:
            self.connection.do_handshake()
        except SSL.WantReadError:
            return False
        return True

    # Each buffer below is given back by `with`, whatever happens: CPython crashes when its garbage
    # collector meets a memoryview that somebody still holds, as an error's traceback would do.

    def feed(self, received: memoryview) -> None:
        """Take bytes from the network."""
        with _ffi.from_buffer(received) as start:
            fed = _lib.BIO_write(self._in, start, received.nbytes)
        if fed != received.nbytes:
            raise MemoryError("OpenSSL could not hold what was received")

    def take(self, room: memoryview) -> int:
        """Store bytes for the network; how many."""
        with _ffi.from_buffer(room, require_writable=True) as start:
            taken: int = _lib.BIO_read(self._out, start, room.nbytes)
        return max(taken, 0)

    def waiting(self) -> int:
        """How many bytes for the network there are."""
        return int(_lib.BIO_get_mem_data(self._out, _ffi.new("char **")))

    def write(self, plain: memoryview) -> None:
        """Encrypt all of it. Raises: SSL.Error."""
        size = plain.nbytes
        done = 0
        with _ffi.from_buffer(plain) as start:
            while done < size:
                written = _lib.SSL_write(self._ssl, start + done, size - done)
                if written <= 0:
                    self._native._raise_ssl_error(self._ssl, written)
                    raise MemoryError("OpenSSL took nothing and gave no reason")
                done += written

    def read(self, room: memoryview) -> int:
        """Decrypt what there is, as far as it fits; how many bytes.

        Raises:
            SSL.WantReadError: There is nothing.
            SSL.ZeroReturnError: The peer has said that it sends no more.
            SSL.Error: A record is damaged, or the peer broke the protocol.
        """
        size = room.nbytes
        count = 0
        with _ffi.from_buffer(room, require_writable=True) as start:
            while count < size:
                # A record at most comes at a time.
                got = _lib.SSL_read(self._ssl, start + count, size - count)
                if got > 0:
                    count += got
                    continue
                try:
                    # Empties the thread's queue of errors as well.
                    self._native._raise_ssl_error(self._ssl, got)
                except (SSL.WantReadError, SSL.ZeroReturnError):
                    # An end shows itself again.
                    if count:
                        break
                    raise
                raise MemoryError("OpenSSL gave nothing and no reason")
        return count

    def end(self) -> None:
        """Say that we send no more. Raises: SSL.Error."""
        self.connection.shutdown()

    def group(self) -> str:
        return self.connection.get_group_name() or "none"


def verification_error(number: int) -> str:
    """OpenSSL's words for what is wrong with a certificate."""
    text: bytes = _ffi.string(_lib.X509_verify_cert_error_string(number))
    return text.decode(errors="replace")
