"""The section ``[threats]``: what is honest, and how far the node may act by itself."""

from __future__ import annotations

from typing import Final

from attrs import field, frozen
from novacron import ConfigError

from novacron_security_threats._events import DETECTORS
from novacron_security_threats._watch import WatchSettings

SECTION: Final = "threats"
MODEL_FILE: Final = "model"


@frozen(kw_only=True)
class ThreatsSettings:
    """The section ``[threats]``.

    Attributes:
        act: The detectors that may quarantine by themselves; none: they only tell.
        act_score: How certain an alert must be for that; 1 is the threshold of an alert.
        hold_s: For how long an automatic quarantine holds.
        most: How many identities may be in automatic quarantine at once: a fault of ours must not
            shut out everybody.
        protect: Patterns of identities that are never quarantined automatically.
        watch: What honest peers do, see `WatchSettings`.
    """

    act: list[str] = field(factory=list)
    act_score: float = 1.0
    hold_s: float = 3600.0
    most: int = 2
    protect: list[str] = field(factory=lambda: ["local*"])
    watch: WatchSettings = field(factory=WatchSettings)

    def __attrs_post_init__(self) -> None:
        for name in self.act:
            if name not in DETECTORS:
                raise ConfigError(
                    f"[{SECTION}] act has {name!r}", hint=f"known: {', '.join(DETECTORS)}"
                )
        if self.hold_s <= 0 or self.most < 0 or self.act_score < 1:
            raise ConfigError(
                f"[{SECTION}] hold_s, most or act_score is out of bounds",
                hint="hold_s above 0, most at least 0, act_score at least 1",
            )
