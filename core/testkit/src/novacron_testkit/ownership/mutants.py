"""Bugs planted in what decides who runs a machine; the simulation of ownership finds them."""

from __future__ import annotations

from novacron_testkit.mutants import Mutant

MUTANTS: tuple[Mutant, ...] = ()
