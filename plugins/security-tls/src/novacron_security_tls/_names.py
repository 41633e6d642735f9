"""How a certificate names a node: ``spiffe://<trust domain>/node/<name>``."""

from __future__ import annotations

import re
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from novacron import ConfigError

_NODE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DOMAIN: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_URI: Final = re.compile(rf"spiffe://({_DOMAIN.pattern})/node/({_NODE.pattern})")


def check_node_name(name: str) -> str:
    """The name, if a certificate can hold it. Raises ConfigError otherwise."""
    if not _NODE.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a node",
            hint="use 1 to 63 of A-Z a-z 0-9 . _ - and begin with a letter or digit",
        )
    return name


def check_domain(domain: str) -> str:
    """The trust domain, if it is one. Raises ConfigError otherwise."""
    if not _DOMAIN.fullmatch(domain):
        raise ConfigError(
            f"{domain!r} cannot name a trust domain",
            hint="use 1 to 63 of a-z 0-9 . - and begin with a letter or digit",
        )
    return domain


def node_uri(domain: str, node: str) -> str:
    return f"spiffe://{domain}/node/{node}"


def named_request(request: x509.CertificateSigningRequest) -> str:
    """The node that a request is for; empty if it names none."""
    names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def named_node(certificate: x509.Certificate) -> tuple[str, str] | None:
    """The trust domain and the node that a certificate names, or None if it names no node."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return None
    found = _URI.fullmatch(uris[0]) if len(uris) == 1 else None
    return (found[1], found[2]) if found else None
