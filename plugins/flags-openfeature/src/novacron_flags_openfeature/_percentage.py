"""Changing a flag's percentage in its file, and telling where in it a machine stands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from novacron import ConfigError, NotFound
from openfeature.evaluation_context import EvaluationContext

from novacron_flags_openfeature._file import check_flags, engine, read_flags, shares
from novacron_flags_openfeature._files import locked, write_json

# Weights are whole numbers: percent where that will do, else thousandths of one.
FINE: Final = 1_000
PLACES: Final = 1_000
BY_HAND: Final = "write the rule into the file by hand"


def set_percentage(path: Path, flag: str, percent: float, variant: str = "") -> dict[str, float]:
    """Give a share of the machines a variant, and the rest the flag's default one.

    Only the share's size changes: a machine that has the variant keeps it while the share grows.
    Returns: the percentage by variant.
    Raises: NotFound, ConfigError; OSError. The file is as it was then.
    """
    if not 0 <= percent <= 100:
        raise ConfigError(f"{percent:g} is no percentage", hint="give a number from 0 to 100")
    try:
        with locked(path.with_name(f".{path.name}.lock")):
            document = read_flags(path)
            found = _changed(document, flag, percent, variant)
            check_flags(document)
            write_json(path, document, mode=path.stat().st_mode & 0o777)
    except ValueError as error:
        raise ConfigError(f"{path} cannot be used: {error}", hint="mend it") from error
    return found


def _changed(document: dict[str, Any], name: str, percent: float, variant: str) -> dict[str, float]:
    flag = document["flags"].get(name)
    if flag is None:
        known = ", ".join(document["flags"]) or "none"
        raise NotFound(f"there is no flag {name!r}", hint=f"known: {known}")
    default = flag.get("defaultVariant") or ""
    variant = variant or the_variant(name, flag)
    if variant not in flag["variants"]:
        known = ", ".join(flag["variants"])
        raise NotFound(f"flag {name!r} has no variant {variant!r}", hint=f"it has: {known}")
    if not default or variant == default:
        raise ConfigError(
            f"flag {name!r}: the rest would get {default or 'nothing'!r}",
            hint="give the flag another defaultVariant",
        )
    weights = _weights(percent)
    arms = [[variant, weights[0]], [default, weights[1]]]
    found = shares(flag.get("targeting"))
    if not flag.get("targeting"):
        flag["targeting"] = {"fractional": arms}
    elif len(found) == 1 and _names(found[0]) == {variant, default}:
        key = [] if isinstance(found[0][0], list) else found[0][:1]
        # In the order in which they stand: the one that grows takes from the other's edge.
        first = next(arm for arm in found[0] if isinstance(arm, list))[0]
        found[0][:] = key + (arms if first == variant else arms[::-1])
    else:
        raise ConfigError(
            f"flag {name!r}: its rule has not exactly one share between {variant!r} and "
            f"{default!r}",
            hint=BY_HAND,
        )
    return {variant: percent, default: round(100 - percent, 3)}


def _weights(percent: float) -> tuple[int, int]:
    scale = 1 if percent == int(percent) else FINE
    weight = round(percent * scale)
    return weight, 100 * scale - weight


def _names(arms: list[Any]) -> set[Any]:
    """The variants of a share, all of them with a number as weight; else nothing."""
    parts = arms if arms and isinstance(arms[0], list) else arms[1:]
    if not all(isinstance(arm, list) and len(arm) == 2 for arm in parts) or len(parts) != 2:
        return set()
    return {arm[0] for arm in parts if isinstance(arm[0], str) and isinstance(arm[1], int)}


def the_variant(name: str, flag: Mapping[str, Any]) -> str:
    """The variant beside the default one. Raises ConfigError if there is not exactly one."""
    others = [one for one in flag["variants"] if one != flag.get("defaultVariant")]
    if len(others) != 1:
        raise ConfigError(
            f"flag {name!r} has the variants {', '.join(flag['variants'])}",
            hint="say which with --variant",
        )
    return str(others[0])


def percentages(flag: Mapping[str, Any]) -> dict[str, float]:
    """The percentage of each variant, where the flag's rule is one share or none at all."""
    rule = flag.get("targeting")
    default = flag.get("defaultVariant") or ""
    if flag.get("state") != "ENABLED" or not rule:
        return {default: 100.0} if default else {}
    if list(rule) != ["fractional"] or not _names(shares(rule)[0]):
        return {}
    arms = [arm for arm in shares(rule)[0] if isinstance(arm, list)]
    total = sum(arm[1] for arm in arms)
    return {arm[0]: round(100 * arm[1] / total, 3) for arm in arms} if total > 0 else {}


def place(name: str, machine: str) -> float:
    """Where a machine stands in a share of the flag, in percent from 0: a variant whose share
    begins below that and ends above it is the machine's. To a tenth, rounded down."""
    arms = [[str(number), 1] for number in range(PLACES)]
    variants = {str(number): str(number) for number in range(PLACES)}
    flag = {"state": "ENABLED", "variants": variants, "targeting": {"fractional": arms}}
    core = engine({"flags": {name: flag}})
    found = core.resolve_string_value(name, "", EvaluationContext(machine, {}))
    return int(found.value) * 100 / PLACES
