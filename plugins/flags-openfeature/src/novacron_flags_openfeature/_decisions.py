"""What was rolled back, and what an operator allowed again.

Each node, with the command line on its host, writes one file of its own, and reads those of all
nodes that use the same folder. A rollback has an id, and a restore names the ids that it lifts; so
files can be written at the same time, be copied about and arrive in any order, and all come to hold
the same.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from attrs import asdict, define, field, frozen
from novacron import ConfigError, structure

from novacron_flags_openfeature._files import Signature, locked, read_json, signature, write_json

log = logging.getLogger("novacron.flags")

FILES_MAX: Final = 10_000
# What a node keeps of what it once rolled back and was restored.
LIFTED_KEPT: Final = 200


@frozen(kw_only=True)
class Rollback:
    """A value of a flag that is refused until it is restored.

    Attributes:
        id: Unique.
        flag, variant, value: What; the value is what is refused, under whatever variant.
        why: What happened, as a sentence.
        by: The node, or who asked for it.
        at: UTC, ISO 8601.
        at_s: The same, seconds since 1970.
    """

    id: str
    flag: str
    variant: str
    value: str
    why: str
    by: str
    at: str
    at_s: float


@frozen(kw_only=True)
class Restore:
    """Lifts a rollback, by its id."""

    rollback: str
    by: str
    at: str
    at_s: float


@frozen(kw_only=True)
class _Written:
    rolled_back: list[Rollback] = field(factory=list)
    restored: list[Restore] = field(factory=list)


Refused = Mapping[tuple[str, str], Rollback]


@define(eq=False)
class Decisions:
    """The decisions of all nodes.

    Args:
        folder: Where their files are; made when it is first written to.
        node: Whose file is ours.

    Attributes:
        doubt: What is wrong with a file that was never read whole. What it says is not known, so
            nothing but what is configured may be used.
    """

    folder: Path
    node: str
    doubt: str = field(default="", init=False)
    _seen: dict[Path, tuple[Signature | None, _Written | None]] = field(factory=dict, init=False)
    _complained: set[str] = field(factory=set, init=False)

    @property
    def own(self) -> Path:
        return self.folder / f"{self.node}.json"

    def refresh(self) -> None:
        """Read the files that have changed."""
        self.doubt = ""
        try:
            paths = sorted(self.folder.glob("[a-z0-9]*.json"))
        except OSError as error:
            paths = []
            self._doubt(self.folder, str(error))
        if len(paths) > FILES_MAX:
            self._doubt(self.folder, f"there are more than {FILES_MAX} files")
            paths = []
        # A file that is gone for a moment, or for good, takes nothing back that it said.
        for path in paths:
            try:
                now = signature(path)
                if path in self._seen and self._seen[path][0] == now:
                    continue
                self._seen[path] = (now, self._read(path))
            except (OSError, ValueError, ConfigError) as error:
                before = self._seen.get(path, (None, None))[1]
                self._seen[path] = (None, before)
                if before is None:
                    self._doubt(path, str(error))
                else:
                    self._complain(f"{path} is damaged and what it said before stands: {error}")

    def _doubt(self, path: Path, reason: str) -> None:
        self.doubt = f"{path} cannot be read: {reason}"
        self._complain(f"{self.doubt}; no variant is used until it is mended or moved away")

    def _complain(self, text: str) -> None:
        if text not in self._complained:
            self._complained.add(text)
            log.error("%s", text)

    def _read(self, path: Path) -> _Written:
        return structure(_Written, read_json(path), str(path))

    def _files(self) -> list[tuple[Path, _Written]]:
        return [(path, written) for path, (_, written) in self._seen.items() if written is not None]

    def _all(self) -> list[_Written]:
        return [written for _, written in self._files()]

    def refused(self) -> Refused:
        """What is rolled back now, by flag and value, as of the last `refresh`."""
        lifted = {restore.rollback for written in self._all() for restore in written.restored}
        every = [rollback for written in self._all() for rollback in written.rolled_back]
        standing = [rollback for rollback in every if rollback.id not in lifted]
        return {(one.flag, one.value): one for one in sorted(standing, key=lambda one: -one.at_s)}

    def restored_at(self) -> Mapping[tuple[str, str], float]:
        """When each flag's value was last restored, seconds since 1970."""
        times = {one.rollback: one.at_s for written in self._all() for one in written.restored}
        found: dict[tuple[str, str], float] = {}
        for written in self._all():
            for rollback in written.rolled_back:
                if rollback.id in times:
                    key = (rollback.flag, rollback.value)
                    found[key] = max(found.get(key, 0.0), times[rollback.id])
        return found

    def roll_back(self, flag: str, variant: str, value: str, why: str, by: str) -> Rollback:
        """Refuse a value from now on; durable when it returns. Raises OSError, ConfigError."""
        now_s = time.time()
        rollback = Rollback(
            id=f"{int(now_s * 1000):011x}{secrets.token_hex(5)}",
            flag=flag,
            variant=variant,
            value=value,
            why=why,
            by=by,
            at=_iso(now_s),
            at_s=now_s,
        )
        self._add([rollback], [])
        return rollback

    def restore(self, flag: str, value: str, by: str) -> list[Rollback]:
        """Allow a value again; durable when it returns. Raises OSError, ConfigError.

        Returns: the rollbacks that were lifted; none if none stood.
        """
        self.refresh()
        lifted = {restore.rollback for written in self._all() for restore in written.restored}
        standing = [
            rollback
            for written in self._all()
            for rollback in written.rolled_back
            if (rollback.flag, rollback.value) == (flag, value) and rollback.id not in lifted
        ]
        now_s = time.time()
        if standing:
            self._add(
                [],
                [Restore(rollback=o.id, by=by, at=_iso(now_s), at_s=now_s) for o in standing],
            )
        return standing

    def _add(self, rolled_back: list[Rollback], restored: list[Restore]) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self.folder / f".{self.node}.lock"):
            try:
                written = self._read(self.own) if self.own.exists() else _Written()
            except ValueError as error:
                raise ConfigError(
                    f"{self.own} is damaged: {error}", hint="mend it, or move it away"
                ) from error
            # What no file says any more needs no restore. A rollback of ours that was lifted, and
            # its restore, are kept for a while, for people to look at.
            lifted = {one.rollback for each in self._all() for one in each.restored}
            old = [one.id for one in written.rolled_back if one.id in lifted]
            dropped = set(old[:-LIFTED_KEPT])
            kept = [one for one in written.rolled_back if one.id not in dropped]
            others = {
                one.id
                for path, each in self._files()
                if path != self.own
                for one in each.rolled_back
            }
            needed = {one.id for one in kept} | others
            whole = _Written(
                rolled_back=kept + rolled_back,
                restored=[one for one in written.restored if one.rollback in needed] + restored,
            )
            write_json(self.own, asdict(whole))
        self.refresh()


def _iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")
