"""The section ``[consensus.etcd]``."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import Attribute, field, frozen, validators

ENDPOINTS_MAX: Final = 16
PREFIX: Final = re.compile(r"(/[A-Za-z0-9._-]+)+")


def address_of(endpoint: str) -> str:
    """``host:port`` of an endpoint, as gRPC wants it.

    Raises: ValueError if it is no ``https://`` address: what decides who runs a machine must not
    travel in the clear, nor be taken from a stranger.
    """
    parts = urlsplit(endpoint)
    if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError(
            f"endpoint {endpoint!r} is not https://HOST:PORT (etcd's --listen-client-urls with TLS)"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{parts.port or 2379}"


def _check_endpoints(_: Any, __: Attribute[Any], endpoints: list[str]) -> None:
    if not 1 <= len(endpoints) <= ENDPOINTS_MAX:
        raise ValueError(f"endpoints must name 1 to {ENDPOINTS_MAX} members of the etcd cluster")
    for endpoint in endpoints:
        address_of(endpoint)


def _check_prefix(_: Any, __: Attribute[Any], prefix: str) -> None:
    if not PREFIX.fullmatch(prefix):
        raise ValueError(f"prefix {prefix!r} is not like /novacron (use {PREFIX.pattern})")


@frozen(kw_only=True)
class EtcdSettings:
    """The section ``[consensus.etcd]``.

    Attributes:
        endpoints: The members of the etcd cluster, each ``https://HOST:PORT``. One that does not
            answer is passed over for the next.
        ca_file: PEM of the authority that signed etcd's certificates.
        certificate_file: PEM of this node's client certificate (etcd's ``--client-cert-auth``).
        key_file: PEM of its key. All three are read again for each new connection, so that renewed
            ones are found.
        prefix: Where our keys are in etcd. Two fleets on one etcd need two prefixes.
        timeout_s: How long a call may take in all, every endpoint tried.
        lease_s: After how many seconds without a sign of life from this node others may call it
            gone.
    """

    endpoints: list[str] = field(
        factory=lambda: ["https://127.0.0.1:2379"], validator=_check_endpoints
    )
    ca_file: str = field(default="", validator=validators.instance_of(str))
    certificate_file: str = field(default="", validator=validators.instance_of(str))
    key_file: str = field(default="", validator=validators.instance_of(str))
    prefix: str = field(default="/novacron", validator=_check_prefix)
    timeout_s: float = field(
        default=5.0, converter=float, validator=[validators.gt(0), validators.le(60)]
    )
    lease_s: int = field(default=15, validator=[validators.ge(2), validators.le(86_400)])
