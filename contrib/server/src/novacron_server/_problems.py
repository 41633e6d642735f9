"""Errors as problem documents (RFC 9457), and back."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from errno import ENOSPC
from typing import Any, Final

import msgspec
from novacron import (
    Cancelled,
    ConfigError,
    Conflict,
    Fenced,
    InternalError,
    MachineError,
    MigrationFailed,
    NodeUnavailable,
    NotFound,
    NovacronError,
    PeerProtocolError,
    PluginLoadError,
    Refused,
    TransportError,
    Untrusted,
)

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:novacron:error:"
log = logging.getLogger("novacron.api")

# The nearest class decides; a cause that is not named here is the node's own trouble.
STATUS: Final[Mapping[type[NovacronError], int]] = {
    ConfigError: 400,
    Refused: 403,
    NotFound: 404,
    Conflict: 409,
    Cancelled: 409,
    Fenced: 409,
    TransportError: 502,
    Untrusted: 502,
    PeerProtocolError: 502,
    NodeUnavailable: 503,
    MachineError: 500,
    MigrationFailed: 500,
    PluginLoadError: 500,
    InternalError: 500,
    NovacronError: 500,
}
_TITLES: Final[Mapping[int, str]] = {
    400: "The request is wrong",
    403: "Refused by a policy",
    404: "Not found",
    405: "Method not allowed",
    409: "In conflict with what is true now",
    413: "Too large",
    415: "Unsupported media type",
    500: "The node failed",
    502: "Another node failed",
    503: "Not available now",
    507: "No space left",
}


class MethodNotAllowed(ConfigError):
    """The resource does not know this method. Nothing was changed."""

    code = "method-not-allowed"


class TooLarge(ConfigError):
    """The request is larger than the node takes. Nothing was changed."""

    code = "too-large"


class UnsupportedMediaType(ConfigError):
    """The request's body is no JSON. Nothing was changed."""

    code = "unsupported-media-type"


class Busy(NovacronError):
    """The node serves as many streams as it may. Nothing was changed."""

    code = "busy"


_OWN_STATUS: Final[Mapping[type[NovacronError], int]] = {
    MethodNotAllowed: 405,
    TooLarge: 413,
    UnsupportedMediaType: 415,
    Busy: 503,
}


def status_of(error: NovacronError) -> int:
    """The HTTP status of an error."""
    table = {**STATUS, **_OWN_STATUS}
    return next(table[cls] for cls in type(error).__mro__ if cls in table)


def to_problem(error: NovacronError, instance: str, status: int = 0) -> dict[str, Any]:
    """The problem document of an error.

    Args:
        error: What went wrong.
        instance: The path of the request.
        status: The HTTP status, where the error alone does not tell it.
    """
    status = status or status_of(error)
    members = error.to_json()
    return {
        "type": TYPE_PREFIX + error.code,
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "detail": members["message"],
        "instance": instance,
        "code": members["code"],
        "hint": members["hint"],
        "truth": members["truth"],
        # Facts are for programs, and some of them are no JSON by themselves (paths, states).
        "facts": msgspec.to_builtins(members["facts"], enc_hook=str, str_keys=True),
    }


def as_error(fault: BaseException) -> NovacronError:
    """Any exception as an error with a cause; what is not ours is logged in full."""
    if isinstance(fault, NovacronError):
        return fault
    if isinstance(fault, OSError):
        log.error("a request failed: %s", fault, exc_info=fault)
        return NovacronError(str(fault), hint="repair what the message names and retry")
    log.error("a request failed by a fault of ours", exc_info=fault)
    return InternalError(f"{type(fault).__name__}: {fault}", hint="report this with the node's log")


def status_of_fault(fault: BaseException) -> int:
    """The HTTP status of any exception."""
    if isinstance(fault, OSError):
        return 507 if fault.errno == ENOSPC else 500
    return status_of(as_error(fault)) if isinstance(fault, NovacronError) else 500


def _classes(base: type[NovacronError]) -> Iterator[type[NovacronError]]:
    yield base
    for cls in base.__subclasses__():
        yield from _classes(cls)


def from_problem(document: Mapping[str, Any]) -> NovacronError:
    """The error that a problem document (or an operation's ``error``) tells of.

    An unknown code becomes a plain `NovacronError` with the code among its facts.
    """
    code = str(document.get("code", ""))
    message = str(document.get("detail") or document.get("message") or "the node gave no reason")
    facts = document.get("facts")
    known: dict[str, type[NovacronError]] = {}
    for made in _classes(NovacronError):
        # A plugin's class without a code of its own shares its parent's; the parent comes first.
        known.setdefault(made.code, made)
    cls = known.get(code, NovacronError)
    error = cls(
        message, hint=str(document.get("hint") or ""), truth=str(document.get("truth") or "")
    )
    if isinstance(facts, Mapping):
        error.facts |= facts
    if cls is NovacronError:
        error.facts.setdefault("code", code)
    return error
