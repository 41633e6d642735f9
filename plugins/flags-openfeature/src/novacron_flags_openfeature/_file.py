"""An OpenFeature provider that reads flags from a file, in the format of flagd.

Rules are evaluated by flagd's own engine for Python, so that a fleet can go over to flagd with the
file as it is. See https://flagd.dev/reference/flag-definitions/ for the format.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import OpenFeatureError, ParseError, TypeMismatchError
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType
from openfeature.provider import AbstractProvider, Metadata

from novacron_flags_openfeature._files import Signature, read_json, signature, write_json

log = logging.getLogger("novacron.flags")

FLAGS_MAX: Final = 1_000
T = TypeVar("T")
Composite = Sequence[FlagValueType] | Mapping[str, FlagValueType]


def read_flags(path: Path) -> dict[str, Any]:
    """The document in a file of flags. Raises OSError; ValueError that says what is wrong."""
    document = read_json(path)
    check_flags(document)
    return document


def check_flags(document: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the flag, if one of them could not be evaluated."""
    flags = document.get("flags")
    if not isinstance(flags, Mapping):
        raise ValueError('it has no table "flags"')
    if len(flags) > FLAGS_MAX:
        raise ValueError(f"it has more than {FLAGS_MAX} flags")
    for name, flag in flags.items():
        if not isinstance(flag, Mapping):
            raise ValueError(f"flag {name!r} is no table")
        variants = flag.get("variants")
        if not isinstance(variants, Mapping) or not variants:
            raise ValueError(f"flag {name!r} has no variants")
        default = flag.get("defaultVariant")
        if default not in (None, "") and default not in variants:
            raise ValueError(f"flag {name!r}: its defaultVariant {default!r} is none of its own")
        for share in shares(flag.get("targeting")):
            for arm in share:
                if isinstance(arm, list) and arm and isinstance(arm[0], str):
                    if arm[0] not in variants:
                        raise ValueError(f"flag {name!r}: {arm[0]!r} is no variant of it")
                    if len(arm) > 1 and not isinstance(arm[1], int | dict):
                        raise ValueError(f"flag {name!r}: the weight {arm[1]!r} is no number")
    core = engine(document)
    for name, flag in flags.items():
        _try(core, name, next(iter(flag["variants"].values())))


def engine(document: Mapping[str, Any]) -> FlagdCore:
    """Flagd's engine with these flags. Raises ValueError."""
    core = FlagdCore()
    try:
        # It takes parts of what it is given out of it, so it gets a copy of the outer levels.
        flags = {name: dict(flag) for name, flag in document["flags"].items()}
        core.set_flags({**document, "flags": flags})
    except (OpenFeatureError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"it is refused: {error}") from error
    return core


def _try(core: FlagdCore, name: str, value: Any) -> None:
    context = EvaluationContext("machine", {"machine": "machine", "node": "node"})
    try:
        if isinstance(value, str):
            core.resolve_string_value(name, "", context)
        else:
            core.resolve_object_value(name, {}, context)
    except TypeMismatchError:
        return
    # Rules are run by a library that raises what it likes.
    except Exception as error:
        raise ValueError(f"flag {name!r} cannot be evaluated: {error}") from error


def shares(rule: Any) -> list[list[Any]]:
    """The arguments of all ``fractional`` operations in a rule."""
    found: list[list[Any]] = []
    if isinstance(rule, Mapping):
        for operation, arguments in rule.items():
            if operation == "fractional" and isinstance(arguments, list):
                found.append(arguments)
            found += shares(arguments)
    elif isinstance(rule, list):
        for part in rule:
            found += shares(part)
    return found


class FileProvider(AbstractProvider):
    """Flags from a file, read again when it changes.

    A file that is damaged, or gone, changes nothing: what it said last stays, which is kept on disk
    over restarts too, and the log says so. Without that, no flag is set.

    Args:
        path: The file.
        keep: Where what it said last is kept; empty for nowhere.
        renew: Keep it there; else only read it from there.
    """

    def __init__(self, path: str, keep: str = "", renew: bool = True) -> None:
        super().__init__()
        self.path = Path(path)
        self.damage = ""
        self._keep = Path(keep) if keep else None
        self._renew = renew
        self._core: FlagdCore | None = None
        self._document: Mapping[str, Any] = {}
        self._signature: Signature | None = None
        self._looked = False
        self._lock = threading.Lock()

    def get_metadata(self) -> Metadata:
        return Metadata(name="novacron-file")

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        self.refresh()

    def flags(self) -> Mapping[str, Any]:
        """The flags as they are in use."""
        self.refresh()
        flags: Mapping[str, Any] = self._document.get("flags", {})
        return flags

    def refresh(self) -> None:
        """Read the file if it has changed."""
        with self._lock:
            try:
                now = signature(self.path)
                if self._looked and now == self._signature:
                    return
                self._signature, self._looked = now, True
                document = read_flags(self.path)
                self._core, self._document = engine(document), document
            except (OSError, ValueError) as error:
                self._damaged(str(error))
                return
            self._read_well()

    def _read_well(self) -> None:
        log.info("flags are read from %s: %s", self.path, ", ".join(self._document["flags"]))
        if self.damage:
            self.damage = ""
            self.emit_provider_ready(ProviderEventDetails())
        self.emit_provider_configuration_changed(ProviderEventDetails())
        if self._keep is not None and self._renew:
            try:
                self._keep.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_json(self._keep, self._document)
            except OSError as error:
                log.error("the flags cannot be kept for a restart: %s", error)

    def _damaged(self, reason: str) -> None:
        stands = "what it said before stands"
        if self._core is None and self._keep is not None and self._keep.exists():
            stands = f"what it said before stands, from {self._keep}"
            try:
                self._document = read_flags(self._keep)
                self._core = engine(self._document)
            except (OSError, ValueError) as error:
                log.error("%s is damaged, too: %s", self._keep, error)
        if self._core is None:
            stands = "no flag is set"
        self.damage = f"{self.path} cannot be used: {reason}; {stands}"
        log.error("%s", self.damage)
        self.emit_provider_stale(ProviderEventDetails(message=self.damage))

    def _resolve(
        self, ask: Callable[[FlagdCore], FlagResolutionDetails[T]]
    ) -> FlagResolutionDetails[T]:
        self.refresh()
        if self._core is None:
            raise ParseError(self.damage)
        return ask(self._core)

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        return self._resolve(
            lambda core: core.resolve_boolean_value(flag_key, default_value, evaluation_context)
        )

    def resolve_string_details(
        self,
        flag_key: str,
        default_value: str,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[str]:
        return self._resolve(
            lambda core: core.resolve_string_value(flag_key, default_value, evaluation_context)
        )

    def resolve_integer_details(
        self,
        flag_key: str,
        default_value: int,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[int]:
        return self._resolve(
            lambda core: core.resolve_integer_value(flag_key, default_value, evaluation_context)
        )

    def resolve_float_details(
        self,
        flag_key: str,
        default_value: float,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[float]:
        return self._resolve(
            lambda core: core.resolve_float_value(flag_key, default_value, evaluation_context)
        )

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Composite,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Composite]:
        return self._resolve(
            lambda core: core.resolve_object_value(flag_key, default_value, evaluation_context)
        )
