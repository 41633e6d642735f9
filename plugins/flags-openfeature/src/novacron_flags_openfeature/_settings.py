"""The section ``[service.flags]``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from attrs import Attribute, field, frozen

if TYPE_CHECKING:
    from novacron_flags_openfeature._budget import BudgetLimits

# Of the node's state folder.
FOLDER: Final = "service-flags"
# A flag's name begins so, and ends with the domain whose provider it chooses.
PREFIX: Final = "provider."
FILE_PROVIDER: Final = "novacron_flags_openfeature:FileProvider"
WINDOW_MOVES_MAX: Final = 500
_CLASS: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
Named = Attribute  # attrs' own, in the words of its validators


def _names_a_class(_: Any, attribute: Named[Any], value: str) -> None:
    if not _CLASS.fullmatch(value):
        raise ValueError(f'{attribute.name} {value!r} is no "package.module:Class"')


def _within(least: float, most: float) -> Any:
    def check(_: Any, attribute: Named[Any], value: float) -> None:
        if not least <= value <= most:
            raise ValueError(
                f"{attribute.name} is {value:g} and must be from {least:g} to {most:g}"
            )

    return check


@frozen(kw_only=True)
class FlagsSettings:
    """The section ``[service.flags]``.

    Attributes:
        enabled: Ask the flags at each plan of a move. Off by default.
        file: The flags, as flagd reads them; for the provider that reads a file.
        provider: Any OpenFeature provider, ``package.module:Class``.
        arguments: What the provider's class is called with, by name; for another than the file's.
        site: This node's site, for rules by site.
        attributes: More about this node that rules may ask for.
        decisions: A folder where nodes write which variants were rolled back. Give all nodes the
            same shared one, and what one has rolled back all refuse. Empty for one of this node's.
        failure_rate: The error budget: the share of moves that may fail for a variant's sake.
        false_alarm_moves: A sound variant is rolled back at most once in so many moves.
        least_moves: No variant is judged by fewer.
        window_moves: A variant is judged by its last moves, at most so many.
        window_s: A variant is judged by no move that is older, in seconds.
        bytes_regression: The share by which moves may send more than the same machine's moves to
            the same node did without the variant; 0 for any.
        time_regression: The same for the time they take.
    """

    enabled: bool = False
    file: str = ""
    provider: str = field(default=FILE_PROVIDER, validator=_names_a_class)
    arguments: dict[str, Any] = field(factory=dict)
    site: str = ""
    attributes: dict[str, str] = field(factory=dict)
    decisions: str = ""
    failure_rate: float = field(default=0.01, validator=_within(0.0001, 0.5))
    false_alarm_moves: float = field(default=10_000.0, validator=_within(10, 1e9))
    least_moves: int = field(default=3, validator=_within(1, 500))
    window_moves: int = field(default=200, validator=_within(3, WINDOW_MOVES_MAX))
    window_s: float = field(default=7 * 86400.0, validator=_within(60, 366 * 86400))
    bytes_regression: float = field(default=0.25, validator=_within(0, 100))
    time_regression: float = field(default=1.0, validator=_within(0, 100))

    def limits(self) -> BudgetLimits:
        from novacron_flags_openfeature._budget import BudgetLimits

        return BudgetLimits(
            failure_rate=self.failure_rate,
            false_alarm_moves=self.false_alarm_moves,
            least_moves=self.least_moves,
            window_moves=self.window_moves,
            window_s=self.window_s,
            bytes_regression=self.bytes_regression,
            time_regression=self.time_regression,
        )
