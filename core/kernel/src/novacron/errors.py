"""Errors by cause: who has to act, what they can do, and what is true now.

Every error that reaches a user has a stable ``code``, a message that names what happened and to
which value, a ``hint`` with the next step and ``truth``: what holds after it (above all, is the
machine running, and where). Misuse of the kernel by its own caller is a plain ``ValueError`` or
``RuntimeError`` instead.
"""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import frozen
from novacron_dwcp import LinkBroken, ProtocolError


class NovacronError(Exception):
    """Base of all errors that a user can meet.

    Args:
        message: What happened and to which value.
        hint: What to do next; empty if there is nothing to do.
        truth: What is true now, if that is in doubt ("the machine runs on alpha").
        facts: Values for programs (and tests), so that nobody parses the message.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", truth: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.truth = truth
        self.facts: dict[str, Any] = facts

    def __str__(self) -> str:
        return self.message

    def to_json(self) -> dict[str, Any]:
        """The error as a problem document's members (RFC 9457 names them elsewhere)."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "truth": self.truth,
            "facts": self.facts,
        }


class ConfigError(NovacronError):
    """The configuration or a command's argument is wrong. Nothing was changed."""

    code = "config"
    exit_code = 2


class NotFound(NovacronError):
    """A named thing does not exist. Nothing was changed."""

    code = "not-found"
    exit_code = 3


class Conflict(NovacronError):
    """The thing is in a state that does not allow this (a second resume). Nothing was changed."""

    code = "conflict"
    exit_code = 4


class Refused(NovacronError):
    """A policy or a check said no. Nothing was changed."""

    code = "refused"
    exit_code = 5


class PluginLoadError(NovacronError):
    """A plugin could not be loaded; the others were, unless loading was strict."""

    code = "plugin-load"
    exit_code = 6


class TransportError(NovacronError, LinkBroken):
    """The world broke the path: refused, reset, timed out, vanished.

    What was sent may have arrived wholly, in part or not at all.
    """

    code = "transport"
    exit_code = 7


class Untrusted(NovacronError, LinkBroken):
    """The peer, or we, could not prove an identity that the other side trusts.

    The connection is closed; nothing was sent over it.
    """

    mendable = False
    code = "untrusted"
    exit_code = 8


class PeerProtocolError(NovacronError, ProtocolError):
    """The peer broke the protocol's rules. The connection is closed and not used again."""

    code = "peer-protocol"
    exit_code = 9


class MachineError(NovacronError):
    """The machine's own process failed or refused (QEMU said no, a runner died)."""

    code = "machine"
    exit_code = 10


class Fenced(NovacronError):
    """The ownership register has moved on: somebody with a newer epoch owns the machine.

    The caller must not run the machine.
    """

    code = "fenced"
    exit_code = 11


class MigrationFailed(NovacronError):
    """A migration ended without the machine having moved; ``truth`` says where it runs."""

    code = "migration-failed"
    exit_code = 12


class Cancelled(NovacronError):
    """An operation was cancelled; ``truth`` says what holds now."""

    code = "cancelled"
    exit_code = 13


class NodeUnavailable(NovacronError):
    """No node answers where one should. Nothing was changed."""

    code = "node-unavailable"
    exit_code = 14


class InternalError(NovacronError):
    """Ours. Please report it with the message and the log."""

    code = "internal"
    exit_code = 70


@frozen(kw_only=True)
class Refusal:
    """An objection to a change: what for, and what would lift it.

    Attributes:
        reason: Why not, so that an operator can act on it.
        hint: The next step.
    """

    reason: str
    hint: str = ""
