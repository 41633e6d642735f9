"""Who is shut out, durably; and the suspicions that were raised, the newest of them.

Two files below the state folder. The node and the command line write them, so each change is made
under a lock; the node notices another's change by the file's time, so a release counts at once.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from attrs import define, field
from novacron import ConfigError, NotFound

from novacron_security_threats._events import TEXT_CHARACTERS_MAX, Alert
from novacron_security_threats._files import replace
from novacron_security_threats._settings import ThreatsSettings

FOLDER: Final = "security-threats"
ALERTS_KEPT: Final = 500
QUARANTINED_MAX: Final = 10_000
FILE_BYTES_MAX: Final = 16 << 20
# The same suspicion again within this time is counted, not told again.
AGAIN_S: Final = 60.0
S = TypeVar("S", bound=msgspec.Struct)


class Quarantined(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One identity that is shut out.

    Attributes:
        by: The detector, or ``operator``.
        until: When it ends; None holds until it is released.
        alert: The number of the alert that led to it, 0 if an operator did.
    """

    identity: str
    by: str
    reason: str
    since: datetime
    until: datetime | None = None
    alert: int = 0

    def holds(self, now: datetime) -> bool:
        return self.until is None or now < self.until


class Recorded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One alert as it is kept. ``times``: how often it came within a minute of the one before."""

    number: int
    time: datetime
    detector: str
    identity: str
    origin: str
    score: float
    reasons: list[str]
    quarantined: bool = False
    times: int = 1
    last: datetime | None = None


class _Shut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entries: list[Quarantined] = []


class _Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    next: int = 1
    entries: list[Recorded] = []


@define(eq=False)
class Register:
    """The files of one node.

    Args:
        state_dir: The node's.
    """

    state_dir: Path
    _shut: _Shut = field(factory=_Shut, init=False)
    _stamp: tuple[int, int, int] | None = field(default=None, init=False)

    @property
    def folder(self) -> Path:
        return self.state_dir / FOLDER

    # Who is shut out.

    def find(self, identity: str, now: datetime) -> Quarantined | None:
        """The quarantine of an identity that holds now. Raises ConfigError if the file is damaged,
        so that who asks refuses."""
        self._refresh()
        for entry in self._shut.entries:
            if entry.identity == identity and entry.holds(now):
                return entry
        return None

    def quarantined(self, now: datetime) -> list[Quarantined]:
        """All that hold now. Raises ConfigError."""
        self._refresh()
        return [entry for entry in self._shut.entries if entry.holds(now)]

    def quarantine(
        self,
        identity: str,
        *,
        by: str,
        reason: str,
        now: datetime,
        hold_s: float | None,
        alert: int = 0,
    ) -> Quarantined:
        """Shut an identity out; a second time renews. Durable when it returns."""
        if not 0 < len(identity) <= TEXT_CHARACTERS_MAX:
            raise ConfigError(
                "an identity has 1 to 256 characters", hint="name a node or a subject"
            )
        until = None if hold_s is None else now + timedelta(seconds=hold_s)
        entry = Quarantined(identity, by, reason, now, until, alert)
        with self._locked():
            others = [e for e in self._shut.entries if e.identity != identity and e.holds(now)]
            if len(others) >= QUARANTINED_MAX:
                raise ConfigError(
                    f"{QUARANTINED_MAX} identities are in quarantine", hint="release some"
                )
            self._store(_Shut([*others, entry]))
        return entry

    def release(self, identity: str, now: datetime) -> None:
        """Let an identity in again. Raises NotFound."""
        with self._locked():
            rest = [e for e in self._shut.entries if e.identity != identity and e.holds(now)]
            if not any(e.identity == identity and e.holds(now) for e in self._shut.entries):
                raise NotFound(
                    f"{identity!r} is not in quarantine", hint="see `novacron threats list`"
                )
            self._store(_Shut(rest))

    # What was suspected.

    def alerts(self) -> list[Recorded]:
        """The newest, the oldest first. Raises ConfigError if the file is damaged."""
        return self._told().entries

    def alert(self, number: int) -> Recorded:
        """Raises NotFound."""
        for one in self.alerts():
            if one.number == number:
                return one
        raise NotFound(
            f"there is no alert {number}",
            hint=f"the last {ALERTS_KEPT} are kept; see `novacron threats list`",
        )

    def record(self, alert: Alert, now: datetime) -> tuple[Recorded, bool]:
        """Keep an alert. Durable when it returns; with whether it is one that was not told yet."""
        with self._locked():
            told = self._told()
            entries, fresh = list(told.entries), True
            for place in range(len(entries) - 1, max(-1, len(entries) - 50), -1):
                one = entries[place]
                alike = (one.detector, one.identity, one.origin)
                recent = now - (one.last or one.time) <= timedelta(seconds=AGAIN_S)
                if recent and alike == (alert.detector, alert.identity, alert.origin):
                    kept = msgspec.structs.replace(
                        one, times=one.times + 1, last=now, score=max(one.score, alert.score)
                    )
                    entries[place], fresh = kept, False
                    break
            else:
                kept = Recorded(
                    number=told.next,
                    time=now,
                    detector=alert.detector,
                    identity=alert.identity,
                    origin=alert.origin,
                    score=round(alert.score, 3),
                    reasons=list(alert.reasons),
                )
                entries.append(kept)
            number = told.next + (1 if fresh else 0)
            self._write("alerts.json", _Told(number, entries[-ALERTS_KEPT:]))
        return kept, fresh

    def mark(self, number: int) -> None:
        """Note that an alert led to a quarantine."""
        with self._locked():
            told = self._told()
            entries = [
                msgspec.structs.replace(one, quarantined=True) if one.number == number else one
                for one in told.entries
            ]
            self._write("alerts.json", _Told(told.next, entries))

    # Files.

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._refresh()
            yield
        finally:
            os.close(descriptor)

    def _refresh(self) -> None:
        path = self.folder / "quarantine.json"
        try:
            status = path.stat()
        except FileNotFoundError:
            self._shut, self._stamp = _Shut(), None
            return
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp != self._stamp:
            self._shut = self._read("quarantine.json", _Shut)
            self._stamp = stamp

    def _store(self, shut: _Shut) -> None:
        self._write("quarantine.json", shut)
        self._shut, self._stamp = shut, None

    def _told(self) -> _Told:
        return self._read("alerts.json", _Told)

    def _read(self, name: str, kind: type[S]) -> S:
        path = self.folder / name
        try:
            with path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return kind()
        try:
            if len(data) > FILE_BYTES_MAX:
                raise ValueError(f"it has more than {FILE_BYTES_MAX >> 20} MiB")
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path} is damaged: {error}",
                hint="restore it, or move it away: then nobody is in quarantine",
            ) from error

    def _write(self, name: str, content: msgspec.Struct) -> None:
        replace(self.folder / name, msgspec.json.format(msgspec.json.encode(content)))


def may_act(alert: Alert, settings: ThreatsSettings, quarantined: Sequence[Quarantined]) -> str:
    """Why an alert must not lead to a quarantine by itself; empty if it may.

    Args:
        quarantined: Those that hold now.
    """
    if not alert.identity:
        return "only an origin is known, and no identity"
    if alert.detector not in settings.act:
        return f"[threats] act does not name {alert.detector}"
    if alert.score < settings.act_score:
        return f"its score {alert.score:.2f} is below act_score {settings.act_score:g}"
    if any(fnmatchcase(alert.identity, pattern) for pattern in settings.protect):
        return "[threats] protect names it"
    automatic = [e for e in quarantined if e.by != OPERATOR and e.identity != alert.identity]
    if len(automatic) >= settings.most:
        return f"{len(automatic)} identities are in automatic quarantine, and most is so many"
    return ""


OPERATOR: Final = "operator"


def utc_now() -> datetime:
    return datetime.now(UTC)


def as_json(entry: Quarantined | Recorded) -> dict[str, object]:
    """For ``--json``."""
    found: dict[str, object] = msgspec.to_builtins(entry)
    return found
