"""What the watch is told, and what it says: values without I/O."""

from __future__ import annotations

from typing import Final

from attrs import frozen

BRUTE_FORCE: Final = "brute-force"
TOKEN_THEFT: Final = "token-theft"
LATERAL: Final = "lateral-movement"
EXFILTRATION: Final = "exfiltration"
ABUSE: Final = "protocol-abuse"
DETECTORS: Final = (BRUTE_FORCE, TOKEN_THEFT, LATERAL, EXFILTRATION, ABUSE)

TEXT_CHARACTERS_MAX: Final = 256


def short(text: str) -> str:
    """Names come from peers: none is kept longer than this."""
    return text[:TEXT_CHARACTERS_MAX]


@frozen(kw_only=True)
class Attempt:
    """Somebody asked for something and it was granted or refused.

    Attributes:
        identity: Who, as far as it was proved; empty if nothing was.
        origin: Where from (an address), empty if that is not known.
        accepted: Whether it was granted.
    """

    identity: str
    origin: str = ""
    accepted: bool = True


@frozen(kw_only=True)
class Proof:
    """An identity was proved with a credential.

    Attributes:
        fingerprint: Of the certificate or token.
        place: Latitude and longitude in degrees of where it came from; None if not known.
    """

    identity: str
    fingerprint: str
    place: tuple[float, float] | None = None


@frozen(kw_only=True)
class Reach:
    """An identity acted on something: a machine, a node, a tenant."""

    identity: str
    target: str


@frozen(kw_only=True)
class Sent:
    """Bytes left on an identity's behalf."""

    identity: str
    bytes: int


@frozen(kw_only=True)
class Fault:
    """An identity's side broke a protocol's rules."""

    identity: str
    what: str


Event = Attempt | Proof | Reach | Sent | Fault


@frozen(kw_only=True)
class Alert:
    """A suspicion.

    Attributes:
        detector: One of `DETECTORS`.
        identity: Who; empty where only an origin is known.
        origin: Where from, if that is what is suspected.
        score: 1 is the threshold; more is more certain.
        reasons: Sentences with the values.
        at_s: When, on the clock of the events.
    """

    detector: str
    identity: str
    origin: str
    score: float
    reasons: tuple[str, ...]
    at_s: float
