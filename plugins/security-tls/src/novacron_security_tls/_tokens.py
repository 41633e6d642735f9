"""One-time tokens: by one of them a host that has nothing yet becomes a node.

A token says where the authority's office listens, by which certificate it is known, and a secret
that proves the right to one node's name. The proof is bound to the TLS connection that it is shown
on (RFC 8446, 7.5) and to the request, so that nobody in between can use it for a key of his own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from attrs import asdict, evolve, frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from novacron import ConfigError, Untrusted

from novacron_security_tls import _files
from novacron_security_tls._names import check_domain, check_node_name

PREFIX: Final = "novacron-token-1."
TEXT_CHARACTERS_MAX: Final = 2048
SECRET_BYTES: Final = 16
_NUMBER: Final = re.compile(r"[0-9a-f]{16}")
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
# Used and expired ones are kept for so long, to say what became of them.
_KEPT: Final = timedelta(days=7)
_TOKENS_MAX: Final = 10_000


@frozen(kw_only=True)
class Token:
    """What an operator carries to a new host.

    Attributes:
        node: The name that it gives a right to.
        address: Where the office listens.
        domain: The trust domain.
        authority: SHA-256 of the authority's certificate, hex.
        number: By which the office knows it.
        secret: What proves that one has it, hex.
    """

    node: str
    address: str
    domain: str
    authority: str
    number: str
    secret: str

    def text(self) -> str:
        packed = json.dumps(asdict(self), separators=(",", ":")).encode()
        return PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")

    def __repr__(self) -> str:
        return f"Token({self.number} for {self.node})"


def is_token(text: bytes) -> bool:
    return text.lstrip().startswith(PREFIX.encode())


def parse(text: str) -> Token:
    """Raises: ConfigError, without a word of what the token holds."""
    text = text.strip()
    if len(text) > TEXT_CHARACTERS_MAX or not text.startswith(PREFIX):
        raise ConfigError("this is no token", hint="give what `novacron trust token` printed")
    try:
        packed = text[len(PREFIX) :]
        values = json.loads(
            base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
        )
        if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
            raise ValueError
        token = Token(**values)
        sound = (
            _NUMBER.fullmatch(token.number)
            and _FINGERPRINT.fullmatch(token.authority)
            and len(bytes.fromhex(token.secret)) == SECRET_BYTES
            and check_node_name(token.node)
            and check_domain(token.domain)
        )
        if not sound:
            raise ValueError
    except (ValueError, TypeError, binascii.Error, ConfigError, RecursionError):
        raise ConfigError(
            "the token is damaged", hint="copy it whole, from `novacron trust token`"
        ) from None
    return token


def prove(secret: bytes, exported: bytes, request: bytes) -> bytes:
    """The proof that one has the secret, on this connection, for this request."""
    return hmac.digest(secret, exported + hashlib.sha256(request).digest(), "sha256")


def fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


@frozen(kw_only=True)
class Kept:
    """A token as the authority keeps it."""

    number: str
    node: str
    secret: str
    until: datetime
    used_at: datetime | None = None

    def state(self, now: datetime) -> str:
        """``open``, ``used`` or ``expired``."""
        if self.used_at is not None:
            return "used"
        return "open" if now <= self.until else "expired"


class Tokens:
    """The tokens of an authority, in a file of its folder that only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "tokens.json"

    def make(self, node: str, now: datetime, valid: timedelta) -> tuple[str, str]:
        """A new token's number and secret, hex."""
        check_node_name(node)
        number, secret = secrets.token_hex(8), secrets.token_hex(SECRET_BYTES)
        with self._changed(now) as kept:
            if len(kept) >= _TOKENS_MAX:
                raise ConfigError(f"{len(kept)} tokens are open", hint="let some of them expire")
            kept[number] = Kept(number=number, node=node, secret=secret, until=now + valid)
        return number, secret

    def use(self, number: str, proof: bytes, exported: bytes, request: bytes, now: datetime) -> str:
        """Use a token up; the node that it names. It is used up before anything is made by it.

        Raises: Untrusted, with the fact ``reason``: ``unknown-token``, ``used-token``,
            ``expired-token`` or ``wrong-proof``.
        """
        with self._changed(now) as kept:
            token = kept.get(number)
            if token is None:
                raise _refused("no such token was made here, or long ago", "unknown-token")
            if not hmac.compare_digest(
                prove(bytes.fromhex(token.secret), exported, request), proof
            ):
                raise _refused("the token's secret was not proved", "wrong-proof")
            if token.used_at is not None:
                raise _refused(
                    f"the token for {token.node} was used {token.used_at:%F %R} UTC; if that was "
                    f"somebody else, revoke {token.node}",
                    "used-token",
                )
            if now > token.until:
                raise _refused(f"the token expired {token.until:%F %R} UTC", "expired-token")
            kept[number] = evolve(token, used_at=now)
        return token.node

    def all(self) -> list[Kept]:
        """Oldest first."""
        return sorted(self._load().values(), key=lambda token: token.until)

    @contextmanager
    def _changed(self, now: datetime) -> Iterator[dict[str, Kept]]:
        with _files.locked(self._folder):
            kept = self._load()
            before = dict(kept)
            yield kept
            kept = {number: token for number, token in kept.items() if now - token.until < _KEPT}
            if kept != before:
                data = json.dumps([_plain(token) for token in kept.values()], indent=1)
                _files.write(self._path, data.encode(), mode=0o600)

    def _load(self) -> dict[str, Kept]:
        if not _files.is_there(self._path):
            return {}
        try:
            entries = json.loads(_files.read(self._path))
            tokens = [_kept(entry) for entry in entries]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{self._path} is damaged", hint="remove it; tokens that are open are void then"
            ) from error
        return {token.number: token for token in tokens}


def _plain(token: Kept) -> dict[str, Any]:
    used = token.used_at.isoformat() if token.used_at else None
    return {**asdict(token), "until": token.until.isoformat(), "used_at": used}


def _kept(entry: dict[str, Any]) -> Kept:
    used = entry["used_at"]
    return Kept(
        number=entry["number"],
        node=entry["node"],
        secret=entry["secret"],
        until=datetime.fromisoformat(entry["until"]),
        used_at=datetime.fromisoformat(used) if used else None,
    )


def _refused(why: str, reason: str) -> Untrusted:
    return Untrusted(
        f"it may not enrol: {why}", hint="make a new one: novacron trust token", reason=reason
    )
