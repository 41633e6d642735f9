"""The kinds of keys, by the names that commands take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from novacron_security_tls._pem import PrivateKey


def _ecdsa_p256() -> PrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _ml_dsa_65() -> PrivateKey:
    from cryptography.hazmat.primitives.asymmetric import mldsa

    return mldsa.MLDSA65PrivateKey.generate()


ALGORITHMS: Final[Mapping[str, Callable[[], PrivateKey]]] = MappingProxyType(
    {"ecdsa-p256": _ecdsa_p256, "ml-dsa-65": _ml_dsa_65}
)
