"""The section ``[consensus.bft]``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from attrs import Attribute, field, frozen, validators

from novacron_consensus_bft._judge import Writers
from novacron_consensus_bft._keys import from_text
from novacron_consensus_bft._settings import CoreSettings
from novacron_consensus_bft._wire import Member

# A cluster's name stands in the name of its channel.
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
FOLDER: Final = "consensus-bft"


def _check_name(_: Any, __: Attribute[Any], name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"cluster {name!r} is no name (use {NAME.pattern})")


def _check_members(_: Any, attribute: Attribute[Any], members: dict[str, str]) -> None:
    for name, key in members.items():
        try:
            from_text(key)
        except ValueError as error:
            raise ValueError(f"{attribute.name} has for {name!r} a wrong key: {error}") from None
    if len(set(members.values())) < len(members):
        raise ValueError(f"two of {attribute.name} have one key; each needs its own")


@frozen(kw_only=True)
class BftSection:
    """The section ``[consensus.bft]``; all members have the same, but for ``key_file``.

    Attributes:
        cluster: The cluster's name. Data and messages of another one are refused.
        members: Those with which the cluster began, for ever, and their public keys as
            `novacron consensus keys show` prints them. Their addresses stand in ``[peers]``.
        change_to: Other members that there shall be instead. Done once a quorum of the present
            ones has been started with the same; empty for no change.
        key_file: This node's key; "" for one in its state folder.
        round_trip_ms: About how long a message and its answer take between members; timeouts are
            made from it.
        writers: Who may change a machine's record: its ``owner`` alone, or any ``member``.
        timeout_s: How long a request waits for the cluster before it is an error.
        checkpoint_every: After how many commands the state takes the place of the log.
    """

    cluster: str = field(default="novacron", validator=_check_name)
    members: dict[str, str] = field(factory=dict, validator=_check_members)
    change_to: dict[str, str] = field(factory=dict, validator=_check_members)
    key_file: str = ""
    round_trip_ms: int = field(default=50, validator=[validators.ge(1), validators.le(60_000)])
    writers: Writers = field(default="owner", validator=validators.in_(("owner", "member")))
    timeout_s: float = field(
        default=10.0, converter=float, validator=[validators.gt(0), validators.le(600)]
    )
    checkpoint_every: int = field(default=1024, validator=validators.ge(1))

    def key_path(self, state_dir: Path) -> Path:
        """Where this node's key is."""
        return Path(self.key_file).expanduser() if self.key_file else state_dir / FOLDER / "key"

    def core(self) -> CoreSettings:
        """What the core is told."""
        return CoreSettings(
            # Members that judge otherwise would come to other states: they are another cluster.
            cluster=f"{self.cluster}/{self.writers}",
            view_timeout_ms=20 * self.round_trip_ms,
            retry_ms=4 * self.round_trip_ms,
            status_ms=25 * self.round_trip_ms,
            checkpoint_every=self.checkpoint_every,
        )


def as_members(keys: dict[str, str]) -> list[Member]:
    """What the core knows members by."""
    return [Member(name, from_text(key), "") for name, key in sorted(keys.items())]
