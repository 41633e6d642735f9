"""The section ``[compression.hde]``."""

from __future__ import annotations

from typing import Final, Literal

from attrs import field, frozen
from attrs.validators import and_, ge, in_, instance_of, le, optional

from novacron_compression_hde._effort import LEVELS

LEVEL_MIN: Final = -50
# Levels beyond use windows and memory that are out of proportion to a batch.
LEVEL_MAX: Final = 19

_in_range = and_(instance_of(int), ge(LEVEL_MIN), le(LEVEL_MAX))


def _check_level(instance: object, attribute: object, value: object) -> None:
    if value == "auto":
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f'level must be "auto" or a number, not {value!r}')
    if not LEVEL_MIN <= value <= LEVEL_MAX:
        raise ValueError(f"level must be between {LEVEL_MIN} and {LEVEL_MAX}, not {value}")


@frozen(kw_only=True)
class Settings:
    """What to look for, how hard to compress, and what to keep. ``[compression.hde]``.

    Attributes:
        level: A zstd level, or ``auto``: chosen again and again by whether the encoder or the link
            is what the migration waits for.
        level_min: ``auto`` goes no lower.
        level_max: ``auto`` goes no higher.
        store: ``auto`` may send pages uncompressed, or batches as they are, where the link outruns
            ``level_min``.
        dedup: Look for pages by their content.
        delta: Look for pages of which only a part has changed.
        references: Say at the destination, and use at the source, what the destination holds.
        share: Of whose machines a destination says what it holds: ``none`` but the machine itself
            and images, all of the same ``tenant``, or ``all``.
        keep: Keep what was moved, on both sides, so that the next move is cheap.
        store_bytes: What is kept may take so much of the disk; by default 20 GiB or a tenth of the
            disk, whichever is less.
        session_bytes: The page store of one session keeps so much of the machine; by default all.
    """

    level: int | str = field(default="auto", validator=_check_level)
    level_min: int = field(default=LEVELS[0], validator=_in_range)
    level_max: int = field(default=LEVELS[-1], validator=_in_range)
    store: bool = field(default=True, validator=instance_of(bool))
    dedup: bool = field(default=True, validator=instance_of(bool))
    delta: bool = field(default=True, validator=instance_of(bool))
    references: bool = field(default=True, validator=instance_of(bool))
    share: Literal["none", "tenant", "all"] = field(
        default="tenant", validator=in_(("none", "tenant", "all"))
    )
    keep: bool = field(default=True, validator=instance_of(bool))
    store_bytes: int | None = field(default=None, validator=optional(and_(instance_of(int), ge(0))))
    session_bytes: int | None = field(
        default=None, validator=optional(and_(instance_of(int), ge(0)))
    )

    def __attrs_post_init__(self) -> None:
        if self.level_min > self.level_max:
            raise ValueError(
                f"level_min {self.level_min} must be <= level_max, which is {self.level_max}"
            )
