"""The shape of a replicated log's core, and the effects by which it acts on the world.

A core does no I/O. Each call gives it an event and the time, and returns effects. What a driver
owes a core:

1. It performs effects in their order, across calls too: the effects of a later call come after all
   of an earlier one. Order is what makes them safe, so a core takes a `Save` that it has returned
   for done. Several saves may be made durable by one sync, as long as nothing that follows the
   first of them happens before that sync.
2. If a `Save` fails, the core is finished: what it believes is no longer what is durable. The
   effects after the failed one are dropped, and a new core is made from the records read back.
3. Messages are handed to `LogCore.receive` with the sender's authenticated name. They may be lost,
   repeated, delayed and reordered.
4. `LogCore.tick` is called when ``deadline_ms`` is reached; sooner or later costs only time.
5. Times are whole milliseconds of a clock that only goes forward and never stops while the process
   lives. Two members' clocks need not agree; how far their rates may differ is the core's setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from attrs import frozen

# The longest command that a log takes, and the longest message that one member sends another. A
# message may hold one longest command and what surrounds it.
COMMAND_BYTES_MAX: Final = 1 << 20
MESSAGE_BYTES_MAX: Final = COMMAND_BYTES_MAX + (64 << 10)
NAME_CHARS_MAX: Final = 255


@frozen
class Effect:
    """Base of what a core asks its driver to do."""


@frozen
class Send(Effect):
    """Give a message to a member's transport. It need not arrive, and nobody is told."""

    to: str
    message: bytes


@frozen
class Save(Effect):
    """Append records to what is durable, in this order; durable before the next effect.

    Attributes:
        records: Opaque to the driver; a core is made from all of them, in order.
        replaces: The records take the place of all earlier ones, in one step: after a crash either
            all old ones are there or all of these.
    """

    records: tuple[bytes, ...]
    replaces: bool = False


@frozen
class Commit(Effect):
    """Apply a command to the state machine. Commands come in the order of their indexes, each once
    per life of the core; indexes are left out where the log holds something of the core's own.

    Attributes:
        index: Its place in the log, from 1.
        command: What was proposed.
        ticket: The proposal's number, if it was proposed here and not answered yet; else None.
    """

    index: int
    command: bytes
    ticket: int | None = None


@frozen
class Restore(Effect):
    """Put the state machine into a snapshot's state: all commands up to and with ``index``."""

    index: int
    snapshot: bytes


@frozen
class Readable(Effect):
    """The read may be served from the state machine as it is now, after the effects before this.

    Attributes:
        ticket: The read's number.
        index: The read sees at least the commands up to this index.
    """

    ticket: int
    index: int


@frozen
class Done(Effect):
    """What was asked of the protocol itself, such as a change of members, has been done.

    Attributes:
        ticket: The request's number.
        index: It is done as of this index.
    """

    ticket: int
    index: int


@frozen
class Rejected(Effect):
    """A proposal, read or other request came to nothing here.

    Attributes:
        ticket: Its number.
        reason: One of the constants of `Reason`.
        leader: Who might serve it, as far as this member knows.
    """

    ticket: int
    reason: str
    leader: str | None = None


class Reason:
    """Why a request was rejected; what is true afterwards stands beside each."""

    # It was never taken into a log, and never will be: it may be made again at once.
    NOT_LEADER: Final = "not-leader"
    BUSY: Final = "busy"  # too much is under way: try again later
    TOO_LARGE: Final = "too-large"
    INVALID: Final = "invalid"  # it makes no sense in the present state
    # It may still take effect, or never: only the state machine's exactly-once requests, or a read
    # through the leader, tell.
    UNCERTAIN: Final = "uncertain"


@frozen
class Note(Effect):
    """Something that people and metrics want to know; nothing depends on it.

    Attributes:
        kind: A short constant word, such as ``leader``.
        detail: A sentence's worth of facts.
    """

    kind: str
    detail: str = ""


class LogCore(Protocol):
    """One member of a replicated log. Made from its name, the members, the durable records read
    back, settings and a seeded ``random.Random``.

    Attributes:
        deadline_ms: When `tick` wants to be called; None if no time is waited for. It is read anew
            after each call.
        leader: The member that can serve requests, as far as this one knows.
        members: All that take part, with their addresses ("" where none was given); the driver
            keeps paths to these.
    """

    @property
    def deadline_ms(self) -> int | None: ...

    @property
    def leader(self) -> str | None: ...

    @property
    def members(self) -> Mapping[str, str]: ...

    def start(self, now_ms: int) -> list[Effect]:
        """Begin; called once, before anything else. Restores and applies what is known to be
        committed."""
        ...

    def receive(self, now_ms: int, sender: str, message: bytes) -> list[Effect]:
        """A member's message. Anything that is no sound message is counted and dropped."""
        ...

    def propose(self, now_ms: int, ticket: int, command: bytes) -> list[Effect]:
        """Ask for a command to be committed. Some later call returns `Commit` with the ticket, or
        `Rejected`.

        Args:
            ticket: The caller's own number for this request, used once in this process's life.
        """
        ...

    def read(self, now_ms: int, ticket: int) -> list[Effect]:
        """Ask when a linearizable read may be served. Some later call returns `Readable` or
        `Rejected`."""
        ...

    def tick(self, now_ms: int) -> list[Effect]:
        """The time has come (or it has not: then nothing happens)."""
        ...

    def compact(self, index: int, snapshot: bytes) -> list[Effect]:
        """The state machine's state up to and with ``index``, so that the log before it may go.

        Raises: ValueError if that index was never handed out by `Commit` or `Restore`. An index
            that is compacted already changes nothing.
        """
        ...
