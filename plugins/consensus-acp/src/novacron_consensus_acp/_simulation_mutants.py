"""Bugs planted in the core on purpose: each breaks one rule that a law depends on."""

from __future__ import annotations

from typing import Final

from novacron_testkit.mutants import Mutant

MUTANTS: Final[tuple[Mutant, ...]] = ()
