"""A node's side of trust: asking for a certificate, installing it, and reading it again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from attrs import frozen
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from novacron import ConfigError, Identity, NotFound, NovacronError, Untrusted

from novacron_security_tls import _files, _pem
from novacron_security_tls._files import FOLDER
from novacron_security_tls._names import check_node_name, named_node
from novacron_security_tls._pem import Bundle, PrivateKey

_log = logging.getLogger(__name__)

_FILES: Final = ("ca.pem", "cert.pem", "key.pem", "revoked.pem")
# A certificate is renewed when a third of its life is left, or so much if that is less.
_RENEW_BEFORE_MAX: Final = timedelta(days=14)


def renew_before(certificate: x509.Certificate) -> timedelta:
    """How long before its end a certificate should be renewed."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return min(life / 3, _RENEW_BEFORE_MAX)


@frozen(kw_only=True, eq=False)
class Trust:
    """What a node proves itself with, and what it believes others by.

    Attributes:
        identity: Who this node is.
        ca: The authority's certificate.
        certificate: This node's.
        key_file: Where its key is.
        revoked: Serial numbers that hold no longer.
        list_number: The number of the authority's list that says so.
        list_der: That list.
    """

    identity: Identity
    ca: x509.Certificate
    certificate: x509.Certificate
    key_file: Path
    revoked: frozenset[int]
    list_number: int
    list_der: bytes


def enrol_hint(node: str) -> str:
    return (
        f"on the authority's host: novacron trust issue {node} --out {node}.pem; "
        f"here: novacron trust join {node}.pem --state DIR"
    )


def request(
    node: str,
    state_dir: Path,
    key: PrivateKey,
) -> bytes:
    """Keep a new key in a node's state folder and ask for a certificate for it (PEM)."""
    check_node_name(node)
    folder = state_dir / FOLDER
    _files.make_private_folder(folder)
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    )
    # Beside the one in use, which must go on working until the answer comes.
    _files.write(folder / "key.new.pem", _pem.dump_key(key), mode=0o600)
    hashed = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
    return Bundle(request=builder.sign(key, hashed)).dump()


def join(source: Path, state_dir: Path) -> Bundle:
    """Install a bundle (a file, or a folder with the files of one) in a node's state folder.

    A bundle without a node's certificate renews the revocation list alone.

    Raises:
        NotFound, ConfigError: The bundle is not there or is none.
        Untrusted: Its parts do not belong together, or to the trust that the node has.
    """
    if source.is_dir():
        parts = [source / name for name in _FILES if (source / name).exists()]
        if not parts:
            raise NotFound(f"the folder {source} holds no bundle")
        data = b"".join(map(_files.read, parts))
    else:
        data = _files.read(source)
    bundle = _pem.parse(data, str(source))
    install(bundle, state_dir)
    return bundle


def install(bundle: Bundle, state_dir: Path) -> None:
    """What `join` does with a bundle that is in memory."""
    if bundle.ca is None or bundle.revoked is None:
        raise ConfigError(
            "the bundle lacks the authority's certificate or its revocation list",
            hint="give a file that `novacron trust issue --out` or `revoke --out` wrote",
        )
    folder = state_dir / FOLDER
    _files.make_private_folder(folder)
    with _files.locked(folder):
        _install(bundle, bundle.ca, bundle.revoked, folder)


def _install(
    bundle: Bundle, ca: x509.Certificate, revoked: x509.CertificateRevocationList, folder: Path
) -> None:
    number = _check_revocations(revoked, ca)
    if bundle.certificate is None:
        if (
            not (folder / "ca.pem").exists()
            or _pem.parse(_files.read(folder / "ca.pem"), str(folder)).ca != ca
        ):
            raise Untrusted("the revocation list is from an authority that this node does not know")
    else:
        if named_node(bundle.certificate) is None:
            raise Untrusted("the bundle's certificate names no node")
        if not is_signed_by(bundle.certificate, ca):
            raise Untrusted("the bundle's certificate is not from the bundle's authority")
        key = bundle.key or _kept_key(folder, bundle.certificate)
        if not _pem.same_key(key, bundle.certificate.public_key()):
            raise Untrusted("the bundle's key and certificate do not belong together")
        _files.write(folder / "key.pem", _pem.dump_key(key), mode=0o600)
        _files.write(folder / "cert.pem", Bundle(certificate=bundle.certificate).dump())
        _files.write(folder / "ca.pem", Bundle(ca=ca).dump())
        (folder / "key.new.pem").unlink(missing_ok=True)
    kept = folder / "revoked.pem"
    if kept.exists():
        old = _pem.parse(_files.read(kept), str(kept)).revoked
        # A bundle that lay about for a while must not bring back what was revoked since.
        if old is not None and _is_list_of(old, ca) and _number(old) > number:
            return
    _files.write(kept, Bundle(revoked=revoked).dump())


def _kept_key(folder: Path, certificate: x509.Certificate) -> PrivateKey:
    for name in ("key.new.pem", "key.pem"):
        if (folder / name).exists():
            key = _pem.parse(_files.read(folder / name), str(folder / name)).key
            if key is not None and _pem.same_key(key, certificate.public_key()):
                return key
    raise Untrusted(
        "the bundle holds no key, and the one that it was made for is not here",
        hint="join on the node where `novacron trust request` was run, with the same --state",
    )


def is_signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_list_of(revoked: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    public_key = ca.public_key()
    return isinstance(
        public_key, ec.EllipticCurvePublicKey | mldsa.MLDSA65PublicKey
    ) and revoked.is_signature_valid(public_key)


def _check_revocations(revoked: x509.CertificateRevocationList, ca: x509.Certificate) -> int:
    if not _is_list_of(revoked, ca):
        raise Untrusted("the revocation list is not signed by the authority")
    return _number(revoked)


def _number(revoked: x509.CertificateRevocationList) -> int:
    try:
        return revoked.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (ValueError, x509.ExtensionNotFound):
        return 0


class TrustFolder:
    """A node's trust, read again whenever one of its files changes."""

    def __init__(self, state_dir: Path, node: str, *, clock: Callable[[], datetime]) -> None:
        self._folder = state_dir / FOLDER
        self._node = node
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] = ()
        self._trust: Trust | None = None
        self._number = 0

    def current(self) -> Trust:
        """The trust to use now. Raises Untrusted, saying what to do."""
        with self._lock:
            seen = tuple(self._stamp(name) for name in _FILES)
            if self._trust is None or seen != self._seen:
                self._trust = None
                try:
                    with self._installed():
                        seen = tuple(self._stamp(name) for name in _FILES)
                        self._trust = self._read()
                except Untrusted:
                    raise
                except (NovacronError, OSError) as error:
                    raise self._unusable(str(error)) from error
                self._seen = seen
            trust = self._trust
        now = self._clock()
        if now > trust.certificate.not_valid_after_utc:
            raise self._unusable(
                f"expired at {trust.certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC", ended=True
            )
        return trust

    def take_list(self, data: bytes) -> None:
        """Install a revocation list (DER) of this node's authority, if it is newer.

        Raises: ConfigError, Untrusted; nothing has changed then.
        """
        try:
            revoked = x509.load_der_x509_crl(data)
        except ValueError as error:
            raise ConfigError("a revocation list that cannot be read") from error
        with self._lock:
            ca = _pem.parse(_files.read(self._folder / "ca.pem"), str(self._folder)).ca
        install(Bundle(ca=ca, revoked=revoked), self._folder.parent)

    def _installed(self) -> AbstractContextManager[None]:
        """Not in the middle of an installation, whose files do not belong together."""
        if not self._folder.is_dir():
            return nullcontext()
        return _files.locked(self._folder, shared=True)

    def _stamp(self, name: str) -> object:
        try:
            status = (self._folder / name).stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _unusable(self, why: str, *, ended: bool = False) -> Untrusted:
        return Untrusted(
            f"the certificate of this node, {self._node}, is not usable: {why}",
            hint=enrol_hint(self._node),
            reason="own-certificate",
            ended=ended,
        )

    def _read(self) -> Trust:
        missing = [name for name in _FILES if not (self._folder / name).exists()]
        if len(missing) == len(_FILES):
            raise Untrusted(
                f"this node, {self._node}, has no certificate yet",
                hint=enrol_hint(self._node),
                reason="not-enrolled",
            )
        if missing:
            raise self._unusable(f"{self._folder} lacks {', '.join(missing)}")
        key_file = self._folder / "key.pem"
        bundle = _pem.parse(b"".join(_files.read(self._folder / name) for name in _FILES), FOLDER)
        ca, certificate, key, revoked = bundle.ca, bundle.certificate, bundle.key, bundle.revoked
        if ca is None or certificate is None or key is None or revoked is None:
            raise self._unusable(f"the files in {self._folder} are not what their names say")
        if key_file.stat().st_mode & 0o077:
            raise Untrusted(
                f"others can read this node's key: {key_file}",
                hint=f"chmod 600 {key_file}; if others were on this host, revoke and issue anew",
                reason="own-certificate",
            )
        if not _pem.same_key(key, certificate.public_key()):
            raise self._unusable("the key is not the certificate's")
        if not is_signed_by(certificate, ca):
            raise self._unusable("it is not from the authority that this node trusts")
        named = named_node(certificate)
        if named is None or named[1] != self._node:
            who = named[1] if named else "no node"
            raise self._unusable(f"it names {who}")
        number = _check_revocations(revoked, ca)
        if number < self._number:
            raise self._unusable("the revocation list was replaced by an older one")
        serials = frozenset(entry.serial_number for entry in revoked)
        if certificate.serial_number in serials:
            raise self._unusable("it was revoked", ended=True)
        self._number = number
        left = certificate.not_valid_after_utc - self._clock()
        if timedelta(0) < left < renew_before(certificate):
            _log.warning(
                "the certificate of %s ends in %d hours; %s",
                self._node,
                left // timedelta(hours=1),
                enrol_hint(self._node),
            )
        return Trust(
            identity=Identity(
                node=self._node,
                trust_domain=named[0],
                fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
            ),
            ca=ca,
            certificate=certificate,
            key_file=key_file,
            revoked=serials,
            list_number=number,
            list_der=revoked.public_bytes(Encoding.DER),
        )
