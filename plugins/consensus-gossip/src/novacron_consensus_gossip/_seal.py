"""Sealing: what leaves a node can be read and made only by those who hold a key of the cluster.

A sealed message is::

    version (1)  key id (4)  session (16)  counter (8)  ciphertext and tag

Thousands of members share one key, so it is never used itself. Each process draws a session number
when it begins, and seals with a key derived from the cluster's key, the cluster's name, the purpose
and that number (HKDF, RFC 5869); its nonce is the counter, so none is used twice. Inside, before
the message, stands the time of sealing in milliseconds since 1970 (6 bytes).

A message that was recorded and is sent again is refused: by the counter, within the last 1,024 of a
session; by its time when it is older than the tolerance, so that sessions which are long forgotten
cannot come back. Clocks that differ by more than the tolerance cannot talk to each other; what is
refused for that is counted as ``stale``.

Nothing here authenticates single members: whoever holds the key is a member and can speak in
another's name. Where that is too little, votes and machines are guarded by the other providers.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import Counter, OrderedDict
from enum import StrEnum
from typing import Final

from attrs import define, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

HEADER: Final = struct.Struct(">B4s16sQ")
TAG_BYTES: Final = 16
TIME_BYTES: Final = 6
SEAL_BYTES: Final = HEADER.size + TAG_BYTES + TIME_BYTES
KEY_BYTES: Final = 32
SESSION_BYTES: Final = 16
WINDOW: Final = 1_024
SESSIONS_MAX: Final = 65_536
# Deriving a key costs; nobody who makes sessions up may make us derive more than so many a second.
DERIVATIONS_PER_S: Final = 2_000
TOLERANCE_MS: Final = 300_000

_VERSIONS: Final[dict[int, type[AESGCM] | type[ChaCha20Poly1305]]] = {
    1: AESGCM,
    2: ChaCha20Poly1305,
}
CIPHERS: Final = {"aes-256-gcm": 1, "chacha20-poly1305": 2}


class Purpose(StrEnum):
    """What is sealed: one cannot be taken for the other."""

    DATAGRAM = "datagram"
    STREAM = "stream"


class SealError(ValueError):
    """It was not opened, and nothing of it may be used.

    Attributes:
        why: ``malformed``, ``foreign`` (no key of ours), ``forged``, ``replayed``, ``stale`` or
            ``flooded``.
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"a message was not opened: {why}")
        self.why = why


@frozen
class Key:
    """A key of the cluster. Its repr does not show it."""

    secret: bytes

    @property
    def id(self) -> bytes:
        """By which it is named on the wire; says nothing about the key."""
        return hashlib.blake2b(self.secret, digest_size=4, person=b"novacron-gossip").digest()

    def __repr__(self) -> str:
        return f"<key {self.id.hex()}>"


class Window:
    """Which counters of a session have been seen (the window of RFC 4303, section 3.4.3)."""

    __slots__ = ("_bits", "_highest")

    def __init__(self) -> None:
        self._highest = 0
        self._bits = 0

    def is_fresh(self, counter: int) -> bool:
        behind = self._highest - counter
        return behind < 0 or (behind < WINDOW and not self._bits >> behind & 1)

    def mark(self, counter: int) -> None:
        ahead = counter - self._highest
        if ahead > 0:
            self._bits = (self._bits << min(ahead, WINDOW) | 1) & ((1 << WINDOW) - 1)
            self._highest = counter
        else:
            self._bits |= 1 << -ahead


@define
class _Session:
    cipher: AESGCM | ChaCha20Poly1305
    window: Window


class Seal:
    """Seals what this process sends for one purpose, and opens what others sealed.

    Args:
        keys: The first one seals; all of them open.
        cluster: The cluster's name; what another one sealed is refused though the keys be equal.
        session: 16 random bytes, never used before.
        cipher: One of `CIPHERS`; what others use is seen from what they send.

    Attributes:
        counts: What was opened and refused.
    """

    def __init__(
        self,
        keys: tuple[Key, ...],
        cluster: str,
        purpose: Purpose,
        session: bytes,
        cipher: str = "aes-256-gcm",
    ) -> None:
        if len(session) != SESSION_BYTES:
            raise ValueError(f"a session number has {SESSION_BYTES} bytes, not {len(session)}")
        self._cluster = cluster
        self._purpose = purpose
        self._session = session
        self._version = CIPHERS[cipher]
        self._counter = 0
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self._tokens = float(DERIVATIONS_PER_S)
        self._tokens_ms = 0
        self.counts: Counter[str] = Counter()
        self.use(keys)

    def use(self, keys: tuple[Key, ...]) -> None:
        """Take other keys from now on. What a removed one sealed is refused at once."""
        if not keys:
            raise ValueError("a keyring without a key")
        self._keys = {key.id: key for key in keys}
        self._own_id = keys[0].id
        self._own = self._derive(keys[0], self._session, self._version)
        for name in [name for name in self._sessions if name[1:5] not in self._keys]:
            del self._sessions[name]

    def _derive(self, key: Key, session: bytes, version: int) -> AESGCM | ChaCha20Poly1305:
        # HKDF with SHA-256; one block of output is enough.
        drawn = hmac.digest(session, key.secret, "sha256")
        info = f"novacron gossip {version} {self._purpose} {self._cluster}".encode() + b"\x01"
        return _VERSIONS[version](hmac.digest(drawn, info, "sha256"))

    def seal(self, wall_ms: int, message: bytes) -> bytes:
        """Seal a message. ``wall_ms``: milliseconds since 1970."""
        self._counter += 1
        head = HEADER.pack(self._version, self._own_id, self._session, self._counter)
        told = wall_ms.to_bytes(TIME_BYTES, "big") + message
        return head + self._own.encrypt(self._counter.to_bytes(12, "big"), told, head)

    def open(self, wall_ms: int, data: bytes) -> bytes:
        """The message. Raises SealError, and counts."""
        try:
            message = self._open(wall_ms, data)
        except SealError as error:
            self.counts[error.why] += 1
            raise
        self.counts["opened"] += 1
        return message

    def _open(self, wall_ms: int, data: bytes) -> bytes:
        if len(data) < SEAL_BYTES:
            raise SealError("malformed")
        version, key_id, number, counter = HEADER.unpack_from(data)
        if version not in _VERSIONS:
            raise SealError("malformed")
        key = self._keys.get(key_id)
        if key is None:
            raise SealError("foreign")
        name = data[:21]
        session = self._sessions.get(name)
        known = session is not None
        if session is None:
            self._spend(wall_ms)
            session = _Session(self._derive(key, number, version), Window())
        elif not session.window.is_fresh(counter):
            raise SealError("replayed")
        head = data[: HEADER.size]
        try:
            told = session.cipher.decrypt(counter.to_bytes(12, "big"), data[HEADER.size :], head)
        except InvalidTag:
            raise SealError("forged") from None
        if abs(wall_ms - int.from_bytes(told[:TIME_BYTES], "big")) > TOLERANCE_MS:
            raise SealError("stale")
        session.window.mark(counter)
        # Only who has the key gets a place, so a stranger cannot push a member out.
        if not known:
            self._sessions[name] = session
            if len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        else:
            self._sessions.move_to_end(name)
        return told[TIME_BYTES:]

    def _spend(self, wall_ms: int) -> None:
        passed = min(1_000, max(0, wall_ms - self._tokens_ms))
        self._tokens_ms = wall_ms
        self._tokens = min(
            float(DERIVATIONS_PER_S), self._tokens + passed * DERIVATIONS_PER_S / 1_000
        )
        if self._tokens < 1:
            raise SealError("flooded")
        self._tokens -= 1
