"""What a replica asks of its driver beside `Send`, `Save` and `Note`; how a call collects it."""

from __future__ import annotations

from typing import Any

from attrs import define, field, frozen
from novacron_agreement import Effect, Note, Save, Send

from novacron_consensus_state._messages import EVENT_BYTES_MAX, Events, Message, encode


@frozen(kw_only=True)
class Answer:
    """What a read or write gives.

    Attributes:
        value: A read's value as plain data; None for a write.
        token: The session's token from now on: give it to the next read or write at ``local``.
        level: At which level it was served.
        age_ms: How old the picture of the member that is seen the least freshly is at the most, in
            the key's range; None if it was never whole.
        version: Of a key that is written at ``strong``: the number of its last strong write.
    """

    value: Any = None
    token: bytes = b""
    level: str = ""
    age_ms: int | None = None
    version: int = 0


@frozen
class Done(Effect):
    """The request with this ticket is done."""

    ticket: int
    answer: Answer


@frozen
class Refused(Effect):
    """The request came to nothing, or nobody knows yet what came of it: ``truth`` says which.

    Attributes:
        code: A constant word: ``operation``, ``type``, ``too-large``, ``stale``, ``session``,
            ``timeout``, ``no-log``, ``version``, ``busy``.
    """

    ticket: int
    code: str
    reason: str
    hint: str = ""
    truth: str = "nothing was changed"


@frozen
class Changed(Effect):
    """A key has changed here, by whomever."""

    name: str
    kind: str


@define
class Outbox:
    """The effects of one call, in the making.

    All records of a call are saved before anything else of it happens.
    """

    mark: bytes
    records: list[bytes] = field(factory=list)
    replaces: bool = False
    effects: list[Effect] = field(factory=list)
    events: dict[str, list[bytes]] = field(factory=dict)

    def save(self, *records: bytes) -> None:
        self.records += records

    def replace(self, records: list[bytes]) -> None:
        """These take the place of all that was saved ever."""
        self.records, self.replaces = records, True

    def send(self, to: str, message: Message) -> None:
        self.effects.append(Send(to, encode(self.mark, message)))

    def send_event(self, to: str, raw: bytes) -> None:
        """Send an event, together with others of the same call."""
        self.events.setdefault(to, []).append(raw)

    def note(self, kind: str, detail: str = "") -> None:
        self.effects.append(Note(kind, detail))

    def taken(self, urgent: frozenset[str] = frozenset()) -> list[Effect]:
        """What has been collected, in the order in which to do it.

        Args:
            urgent: Peers that are to acknowledge at once.
        """
        for to, raws in self.events.items():
            part: list[bytes] = []
            size = 0
            for raw in raws:
                if part and size + len(raw) > EVENT_BYTES_MAX:
                    self.send(to, Events(part, to in urgent))
                    part, size = [], 0
                part.append(raw)
                size += len(raw)
            self.send(to, Events(part, to in urgent))
        made: list[Effect] = []
        if self.records or self.replaces:
            made.append(Save(tuple(self.records), self.replaces))
        made += self.effects
        self.records, self.replaces, self.effects, self.events = [], False, [], {}
        return made
