"""The authority: makes the certificates of one trust domain and says which hold no longer."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from novacron import ConfigError, Conflict, NotFound, Untrusted

from novacron_security_tls import _files, _pem
from novacron_security_tls._algorithms import ALGORITHMS
from novacron_security_tls._enrolment import install
from novacron_security_tls._names import check_domain, check_node_name, node_uri
from novacron_security_tls._pem import Bundle, PrivateKey, PublicKey

Clock = Callable[[], datetime]

LIFE_DEFAULT: Final = timedelta(days=90)
LIFE_MIN: Final = timedelta(hours=24)
LIFE_MAX: Final = timedelta(days=366)
_AUTHORITY_LIFE: Final = timedelta(days=3653)
# Nodes whose clocks are a little behind ours must take a fresh certificate.
_BACKDATED: Final = timedelta(minutes=5)
_RECORD_VERSION: Final = 1


def _now() -> datetime:
    return datetime.now(UTC)


@frozen(kw_only=True)
class Issued:
    """A certificate that the authority has made.

    Attributes:
        node: Whom it names.
        serial: Its number, hex.
        algorithm: Of the node's key.
        not_after: When it ends.
        revoked_at: Since when it holds no longer, or None.
    """

    node: str
    serial: str
    algorithm: str
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None = None

    def state(self, now: datetime) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "valid" if now <= self.not_after else "expired"

    def to_json(self) -> dict[str, Any]:
        data = attrs.asdict(self)
        return {
            key: value.isoformat() if isinstance(value, datetime) else value
            for key, value in data.items()
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Issued:
        return cls(
            node=data["node"],
            serial=data["serial"],
            algorithm=data["algorithm"],
            not_before=datetime.fromisoformat(data["not_before"]),
            not_after=datetime.fromisoformat(data["not_after"]),
            revoked_at=datetime.fromisoformat(data["revoked_at"]) if data["revoked_at"] else None,
        )


class Authority:
    """A trust domain's authority, kept in a folder: key, certificate, record, revocation list.

    Whoever can read the folder can make any node; keep it off the nodes.
    """

    def __init__(self, folder: Path, bundle: Bundle, *, clock: Clock = _now) -> None:
        assert bundle.ca is not None
        assert bundle.key is not None
        self.folder = folder
        self.certificate = bundle.ca
        self._key = bundle.key
        self._clock = clock

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        domain: str = "novacron",
        algorithm: str = "ecdsa-p256",
        clock: Clock = _now,
    ) -> Authority:
        """Make a new authority in a folder.

        Raises:
            Conflict: There is one already; it was left as it is.
            ConfigError: The folder cannot be written, or the domain or algorithm is none.
        """
        check_domain(domain)
        key = _generate(algorithm)
        _files.make_private_folder(folder)
        with _files.locked(folder):
            if (folder / "ca.pem").exists() or (folder / "ca-key.pem").exists():
                raise Conflict(
                    f"there is an authority in {folder} already",
                    hint="use it, or choose another folder with --dir",
                )
            authority = cls(folder, Bundle(ca=_make_ca(key, domain, clock()), key=key), clock=clock)
            _files.write(folder / "ca-key.pem", _pem.dump_key(key), mode=0o600)
            authority._save(1, ())
            # Last: a folder with it is complete.
            _files.write(folder / "ca.pem", Bundle(ca=authority.certificate).dump())
        return authority

    @classmethod
    def open(cls, folder: Path, *, clock: Clock = _now) -> Authority:
        """The authority in a folder. Raises NotFound or ConfigError."""
        if not _files.is_there(folder / "ca.pem"):
            raise NotFound(
                f"there is no authority in {folder}",
                hint="make one: novacron trust init, or say where it is with --dir",
            )
        bundle = _pem.parse(
            _files.read(folder / "ca.pem") + _files.read(folder / "ca-key.pem"), str(folder)
        )
        if bundle.ca is None or bundle.key is None:
            raise ConfigError(f"{folder} holds no authority's key and certificate")
        if not _pem.same_key(bundle.key, bundle.ca.public_key()):
            raise ConfigError(f"the key and the certificate in {folder} do not belong together")
        return cls(folder, bundle, clock=clock)

    @property
    def domain(self) -> str:
        """The trust domain."""
        names = self.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        return check_domain(str(names[0].value)) if names else ""

    def issue(
        self,
        node: str,
        state_dir: Path,
        *,
        life: timedelta = LIFE_DEFAULT,
        algorithm: str = "ecdsa-p256",
    ) -> Issued:
        """Make a key and a certificate for a node and install them in its state folder."""
        bundle, issued = self.issue_bundle(node, life=life, algorithm=algorithm)
        install(bundle, state_dir)
        return issued

    def issue_bundle(
        self,
        node: str,
        *,
        life: timedelta = LIFE_DEFAULT,
        algorithm: str = "ecdsa-p256",
        request: x509.CertificateSigningRequest | None = None,
    ) -> tuple[Bundle, Issued]:
        """Make a certificate for a node, as a bundle that `join` installs.

        With a request the key stays where it was made; else the bundle holds a new one.

        Raises:
            ConfigError: The name, the life or the algorithm is none.
            Untrusted: The request is not signed by its own key, or for a key of another kind.
        """
        check_node_name(node)
        if not LIFE_MIN <= life <= LIFE_MAX:
            raise ConfigError(
                f"a certificate cannot live for {life}",
                hint=f"choose between {LIFE_MIN} and {LIFE_MAX.days} days",
            )
        key = None
        if request is None:
            key = _generate(algorithm)
            public_key: object = key.public_key()
        else:
            public_key = request.public_key()
            if not request.is_signature_valid or not isinstance(public_key, PublicKey):
                raise Untrusted(
                    f"the request for {node} is not signed by a key of a kind that is used here",
                    hint="make a new one on the node: novacron trust request",
                )
        assert isinstance(public_key, PublicKey)
        with _files.locked(self.folder):
            number, issued = self._load()
            certificate = self._sign(node, public_key, life)
            entry = Issued(
                node=node,
                serial=f"{certificate.serial_number:x}",
                algorithm=_algorithm(public_key),
                not_before=certificate.not_valid_before_utc,
                not_after=certificate.not_valid_after_utc,
            )
            # Recorded before it is handed out: what nobody knows of cannot be revoked.
            self._save(number, (*issued, entry))
        return (
            Bundle(
                ca=self.certificate, certificate=certificate, key=key, revoked=self.revocations()
            ),
            entry,
        )

    def issued(self) -> tuple[Issued, ...]:
        """All certificates made so far, oldest first."""
        return self._load()[1]

    def revoke(self, node: str) -> tuple[Issued, ...]:
        """Revoke all of a node's certificates that hold still; returns them.

        Nodes learn of it when they get the new list (`publish`, or ``novacron trust join``).

        Raises:
            NotFound: The node has no certificate that holds.
        """
        with _files.locked(self.folder):
            number, issued = self._load()
            now = self._clock().replace(microsecond=0)
            revoked = {
                entry.serial: attrs.evolve(entry, revoked_at=now)
                for entry in issued
                if entry.node == node and entry.revoked_at is None
            }
            if not revoked:
                raise NotFound(
                    f"no certificate of node {node!r} is in force",
                    hint="novacron trust list shows all",
                )
            self._save(number + 1, tuple(revoked.get(entry.serial, entry) for entry in issued))
        return tuple(revoked.values())

    def revocations(self) -> x509.CertificateRevocationList:
        """The signed list of what was revoked."""
        bundle = _pem.parse(_files.read(self.folder / "revoked.pem"), str(self.folder))
        if bundle.revoked is None:
            raise ConfigError(f"{self.folder / 'revoked.pem'} holds no revocation list")
        return bundle.revoked

    def publish(self, *state_dirs: Path) -> None:
        """Give nodes on this host the present revocation list."""
        bundle = self.trust_bundle()
        for state_dir in state_dirs:
            install(bundle, state_dir)

    def trust_bundle(self) -> Bundle:
        """What every node may know: the authority's certificate and the revocation list."""
        return Bundle(ca=self.certificate, revoked=self.revocations())

    def _sign(self, node: str, public_key: PublicKey, life: timedelta) -> x509.Certificate:
        now = self._clock().replace(microsecond=0)
        not_after = min(now + life, self.certificate.not_valid_after_utc)
        if not_after <= now:
            raise ConfigError(
                f"the authority in {self.folder} has expired",
                hint="make a new one in another folder and enrol the nodes anew",
            )
        usage = x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        )
        uri = x509.UniformResourceIdentifier(node_uri(self.domain, node))
        return (
            x509.CertificateBuilder()
            .subject_name(_name(self.domain, node))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, _hash_for(self._key))
        )

    def _load(self) -> tuple[int, tuple[Issued, ...]]:
        path = self.folder / "issued.json"
        try:
            data = json.loads(_files.read(path))
            if data["version"] != _RECORD_VERSION:
                raise ConfigError(f"{path} was written by another version of NovaCron")
            return int(data["number"]), tuple(map(Issued.from_json, data["issued"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged", hint="restore it from a backup") from error

    def _save(self, number: int, issued: tuple[Issued, ...]) -> None:
        now = self._clock().replace(microsecond=0)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _BACKDATED)
            .next_update(now + _AUTHORITY_LIFE)
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        for entry in issued:
            if entry.revoked_at is not None:
                builder = builder.add_revoked_certificate(
                    x509.RevokedCertificateBuilder()
                    .serial_number(int(entry.serial, 16))
                    .revocation_date(entry.revoked_at)
                    .build()
                )
        record = {
            "version": _RECORD_VERSION,
            "number": number,
            "issued": [entry.to_json() for entry in issued],
        }
        # The record first: from it the list can be made again, not the other way round.
        _files.write(self.folder / "issued.json", json.dumps(record, indent=1).encode(), mode=0o600)
        revoked = Bundle(revoked=builder.sign(self._key, _hash_for(self._key)))
        _files.write(self.folder / "revoked.pem", revoked.dump())


def _generate(algorithm: str) -> PrivateKey:
    make = ALGORITHMS.get(algorithm)
    if make is None:
        raise ConfigError(
            f"there is no algorithm {algorithm!r}", hint=f"choose one of {', '.join(ALGORITHMS)}"
        )
    return make()


def _algorithm(key: PublicKey) -> str:
    return (
        "ml-dsa-65" if isinstance(key, mldsa.MLDSA65PublicKey) else f"ecdsa-p{key.curve.key_size}"
    )


def algorithm_of(certificate: x509.Certificate) -> str:
    """The kind of a certificate's key, by the name that commands take."""
    key = certificate.public_key()
    assert isinstance(key, PublicKey)
    return _algorithm(key)


def _hash_for(key: PrivateKey) -> hashes.SHA256 | None:
    return hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _name(domain: str, common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, domain),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _make_ca(key: PrivateKey, domain: str, now: datetime) -> x509.Certificate:
    name = _name(domain, "NovaCron authority")
    now = now.replace(microsecond=0)
    uri = x509.UniformResourceIdentifier(f"spiffe://{domain}")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _hash_for(key))
    )
