"""What a verifier needs beside the evidence: certificates, revocation lists and Intel's statements.

Files are told apart by what is in them, so that an operator names a folder and no kinds.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from attrs import field, frozen
from cryptography import x509
from novacron import ConfigError, NotFound

from novacron_security_attestation._certificates import (
    CRL_BYTES_MAX,
    common_name,
    read_certificate,
    read_crl,
    read_pem,
)

FILES_MAX: Final = 64
STATEMENT_BYTES_MAX: Final = 1 << 20

# SHA-256 of the makers' root certificates (DER). AMD: the ARK of each family, as
# https://kdsintf.amd.com/vcek/v1/<family>/cert_chain serves them; Intel: the SGX Root CA, as
# https://certificates.trustedservices.intel.com has it. Compared with the copies in
# google/go-sev-guest (af1c107a) and google/go-tdx-guest (91f9a52f).
AMD_ROOTS: Final = {
    "Milan": "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
    "Genoa": "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
    "Turin": "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
}
INTEL_ROOTS: Final = {
    "Intel SGX Root CA": "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3",
}


@frozen(kw_only=True)
class Collateral:
    """What was found, not yet believed.

    Attributes:
        certificates: In the order in which they were found.
        crls: Revocation lists.
        statements: Intel's signed JSON (TCB information, identities of enclaves), as it came.
    """

    certificates: tuple[x509.Certificate, ...] = ()
    crls: tuple[x509.CertificateRevocationList, ...] = field(default=(), repr=False)
    statements: tuple[bytes, ...] = ()

    def with_own(self) -> Collateral:
        """This, and the chains of AMD that come with the package unless one was given."""
        if any(common_name(one.subject).startswith("ARK-") for one in self.certificates):
            return self
        return Collateral(
            certificates=(*self.certificates, *own_certificates()),
            crls=self.crls,
            statements=self.statements,
        )


@cache
def own_certificates() -> tuple[x509.Certificate, ...]:
    """AMD's signing and root keys (ASK and ARK), which reports do not carry."""
    folder = resources.files("novacron_security_attestation") / "roots"
    files = sorted((one for one in folder.iterdir() if one.name.endswith(".pem")), key=str)
    return tuple(one for file in files for one in read_pem(file.read_bytes()))


def read_collateral(paths: Iterable[Path]) -> Collateral:
    """What lies in files, and in the files of folders.

    Raises: NotFound; ConfigError that names the file that is none of the known kinds.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise NotFound(f"there is no {path}", hint="name a file or a folder of collateral")
        files += sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    if len(files) > FILES_MAX:
        raise ConfigError(f"{len(files)} files of collateral", hint=f"give {FILES_MAX} at most")
    found = [gather(_bounded(path), str(path)) for path in files]
    return join(found)


def join(parts: Iterable[Collateral]) -> Collateral:
    """All parts as one."""
    listed = list(parts)
    return Collateral(
        certificates=tuple(one for part in listed for one in part.certificates),
        crls=tuple(one for part in listed for one in part.crls),
        statements=tuple(one for part in listed for one in part.statements),
    )


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(CRL_BYTES_MAX + 1)
    if len(data) > CRL_BYTES_MAX:
        raise ConfigError(f"{path} is longer than {CRL_BYTES_MAX} bytes", hint="is it collateral?")
    return data


def gather(data: bytes, where: str) -> Collateral:
    """What the bytes of one file are. Raises ConfigError."""
    start = data.lstrip()[:64]
    try:
        if start.startswith(b"{"):
            if len(data) > STATEMENT_BYTES_MAX:
                raise ValueError(f"it has more than {STATEMENT_BYTES_MAX} bytes")
            return Collateral(statements=(data.strip(),))
        if start.startswith(b"-----BEGIN X509 CRL"):
            return Collateral(crls=(read_crl(data.lstrip()),))
        if start.startswith(b"-----BEGIN"):
            return Collateral(certificates=tuple(read_pem(data)))
        if data[:1] == b"\x30":
            try:
                return Collateral(certificates=(read_certificate(data),))
            except ValueError:
                return Collateral(crls=(read_crl(data),))
        raise ValueError("its beginning is none of JSON, PEM and DER")
    except ValueError as error:
        raise ConfigError(
            f"{where} is no collateral: {error}",
            hint="give certificates, revocation lists (PEM or DER) or Intel's signed JSON",
        ) from error
