"""Which processors this host's QEMU can give a guest, asked of QEMU itself.

A QEMU that runs nothing is started for a moment (some 0.2 s) and asked what each model means. What
it says depends on the program and the accelerator alone, so it is kept for as long as the program's
file is the same.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from novacron import MachineError

_TIMEOUT_S: Final = 20.0
# What is switched off by hand is remembered by hand: with more than this, another model is simpler.
SWITCHED_OFF_MAX: Final = 6
# A setting that is asked for comes from a peer, too: what is kept has an end.
_KEPT_MAX: Final = 1024
# What the accelerator can do at the most goes by this name.
_MOST: Final = "max"
_HOSTS_OWN: Final = ("host", "max")
_ON: Final = ("on", "true", "yes")
_OFF: Final = ("off", "false", "no")


def is_hosts_own(cpu: str) -> bool:
    """Whether a processor setting means whatever the host has."""
    return cpu.partition(",")[0] in _HOSTS_OWN


def split_model(cpu: str) -> tuple[str, dict[str, Any]]:
    """A processor setting as QEMU's monitor takes it: the model, and what was changed of it.

    ``Haswell,-hle,level=11`` is Haswell with ``{"hle": False, "level": 11}``.
    """
    model, *changes = cpu.split(",")
    props: dict[str, Any] = {}
    for change in filter(None, changes):
        name, equals, value = change.lstrip("+-").partition("=")
        name = name.replace("_", "-")
        if not equals:
            props[name] = not change.startswith("-")
        elif value in (*_ON, *_OFF):
            props[name] = value in _ON
        else:
            props[name] = int(value, 0) if re.fullmatch(r"\d+|0x[0-9a-f]+", value) else value
    for own in ("check", "enforce", "migratable"):  # how to behave, not what the guest sees
        props.pop(own, None)
    return model, props


@frozen(kw_only=True)
class Proposal:
    """A processor that both sides can give, and the change that leads there.

    Attributes:
        cpu: The setting; empty if there is none.
        others: Further ones that would do, the nearest first.
        switched_off: Whether it is the same model with less.
    """

    cpu: str
    others: tuple[str, ...] = ()
    switched_off: bool = False


class Processors:
    """What one QEMU offers with one accelerator. May block; thread-safe.

    Raises from everything: MachineError if QEMU does not answer.
    """

    def __init__(self, binary: str, accel: str) -> None:
        self._binary = binary
        self._accel = accel
        self._asked: dict[str, frozenset[str] | None] = {}
        self._lock = threading.Lock()

    def offered(self) -> frozenset[str]:
        """All flags that a guest can have here."""
        with self._lock:
            return self._flags([_MOST])[_MOST] or frozenset()

    def wanted(self, cpu: str) -> frozenset[str] | None:
        """The flags that a processor setting stands for, None if this QEMU has no such model."""
        return self._wanted_and_offered(cpu)[0]

    def given(self, cpu: str) -> frozenset[str] | None:
        """The flags that a guest with this setting really gets here: QEMU leaves out, with a
        warning that nobody reads, what the host has not."""
        wanted, offered = self._wanted_and_offered(cpu)
        return None if wanted is None else wanted & offered

    def _wanted_and_offered(self, cpu: str) -> tuple[frozenset[str] | None, frozenset[str]]:
        cpu = cpu or "qemu64"
        if is_hosts_own(cpu):
            cpu = ",".join([_MOST, *cpu.split(",")[1:]])
        with self._lock:
            known = self._flags(list(dict.fromkeys((cpu, _MOST))))  # asked together: one process
            return known[cpu], known[_MOST] or frozenset()

    def models(self) -> Mapping[str, frozenset[str]]:
        """All models that may move from host to host, by name. Takes a second when first asked."""
        with self._lock:
            names = self._movable_models
            known = self._flags(names)
        return {name: flags for name in names if (flags := known[name])}

    def propose(
        self, cpu: str, missing: Iterable[str], both: frozenset[str], there: frozenset[str]
    ) -> Proposal:
        """The smallest change of a setting after which both sides give the same.

        Args:
            cpu: The setting as it is.
            missing: Flags of it that this host cannot give.
            both: Flags that both hosts have: the baseline.
            there: The flags that the guest has now.
        """
        nearest = sorted(
            (name for name, flags in self.models().items() if flags <= both),
            # The more of what the guest has now the better; the newest version of a model first.
            key=lambda name: (-len(self.models()[name] & there), _natural(name)),
        )
        lacking = sorted(missing)
        if lacking and not is_hosts_own(cpu) and len(lacking) <= SWITCHED_OFF_MAX:
            less = ",".join([cpu, *(f"{flag}=off" for flag in lacking)])
            return Proposal(cpu=less, others=tuple(nearest[:3]), switched_off=True)
        first, *others = nearest or [""]
        return Proposal(cpu=first, others=tuple(others[:3]))

    # -- asking ----------------------------------------------------------------------------------

    def _flags(self, settings: Sequence[str]) -> Mapping[str, frozenset[str] | None]:
        new = [cpu for cpu in settings if cpu not in self._asked]
        if len(self._asked) + len(new) > _KEPT_MAX:
            self._asked.clear()
            new = list(settings)
        if new:
            questions = []
            for cpu in new:
                model, props = split_model(cpu)
                about = {"name": model, **({"props": props} if props else {})}
                arguments = {"type": "full", "model": about}
                questions.append(
                    {"execute": "query-cpu-model-expansion", "arguments": arguments, "id": cpu}
                )
            for cpu, answer in self._ask(questions).items():
                self._asked[cpu] = self._true_flags(answer)
        return self._asked

    def _true_flags(self, answer: Any) -> frozenset[str] | None:
        try:
            props = answer["model"]["props"]
        except (KeyError, TypeError):
            return None
        return frozenset(name for name in self._names if props.get(name) is True)

    @cached_property
    def _names(self) -> frozenset[str]:
        """What of a model's properties is a flag, each by its one proper name."""
        done = self._run("-cpu", "help")
        _, _, flags = done.partition("CPUID flags:")
        if not flags.strip():
            raise MachineError(f"{self._binary} does not tell its processors' flags")
        return frozenset(flags.split())

    @cached_property
    def _movable_models(self) -> tuple[str, ...]:
        answer = self._ask([{"execute": "query-cpu-definitions", "id": "all"}]).get("all") or []
        return tuple(
            model["name"]
            for model in answer
            # Each once, by the plain name that people know and not by its versions.
            if model.get("migration-safe") and not model.get("deprecated") and "alias-of" in model
        )

    def _ask(self, questions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The answers to questions for the monitor, by the question's id."""
        lines: list[Mapping[str, Any]] = [
            {"execute": "qmp_capabilities"},
            *questions,
            {"execute": "quit"},
        ]
        said = self._run(
            *["-S", "-machine", "q35", "-accel", self._accel, "-m", "16", "-nodefaults"],
            *["-no-user-config", "-display", "none", "-qmp", "stdio"],
            say="".join(json.dumps(line) + "\n" for line in lines),
        )
        answers: dict[str, Any] = {}
        for line in said.splitlines():
            try:
                answer = json.loads(line)
            except ValueError:
                continue
            if isinstance(answer, dict) and "id" in answer:
                answers[answer["id"]] = answer.get("return")
        if len(answers) < len(questions):
            raise MachineError(f"{self._binary} does not tell what processors it has")
        return answers

    def _run(self, *arguments: str, say: str = "") -> str:
        try:
            done = subprocess.run(
                [self._binary, *arguments],
                input=say.encode(),
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MachineError(f"{self._binary} does not answer: {error}") from error
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()[-300:]
            raise MachineError(f"{self._binary} does not tell its processors: {words}")
        return done.stdout.decode(errors="replace")


def _natural(name: str) -> tuple[Any, ...]:
    """Sorts ``Haswell-v4`` before ``Haswell-v1``, and a plain name before both."""
    version = re.search(r"-v(\d+)$", name)
    return (re.sub(r"-v\d+$", "", name), -int(version[1]) if version else -1000)


_known: Final[dict[tuple[str, str, int, int], Processors]] = {}
_knowing: Final = threading.Lock()


def processors(binary: str, accel: str) -> Processors:
    """What is known of a program with an accelerator, or can be asked."""
    try:
        found = Path(binary).stat()
    except OSError as error:
        raise MachineError(f"{binary} cannot be asked: {error.strerror}") from error
    key = (binary, accel, found.st_mtime_ns, found.st_size)
    with _knowing:
        return _known.setdefault(key, Processors(binary, accel))
