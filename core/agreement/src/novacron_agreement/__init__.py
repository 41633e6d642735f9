"""What NovaCron's agreement protocols share: effects, and the state machines they replicate."""

from __future__ import annotations

from novacron_agreement.effects import (
    COMMAND_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    NAME_CHARS_MAX,
    Commit,
    Done,
    Effect,
    LogCore,
    Note,
    Readable,
    Reason,
    Rejected,
    Restore,
    Save,
    Send,
)

__all__ = [
    "COMMAND_BYTES_MAX",
    "MESSAGE_BYTES_MAX",
    "NAME_CHARS_MAX",
    "Commit",
    "Done",
    "Effect",
    "LogCore",
    "Note",
    "Readable",
    "Reason",
    "Rejected",
    "Restore",
    "Save",
    "Send",
]
