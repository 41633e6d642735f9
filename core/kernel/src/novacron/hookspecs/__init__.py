"""The hooks of the kernel, one module per domain.

Four kinds of hook, told apart by their verb: ``register_*`` offers classes, which configuration
picks by name, or other things to use; ``choose_*`` is decided by the first that answers;
``check_*`` asks everyone, and any refusal or exception refuses; ``on_*`` observes.
"""

from __future__ import annotations

from types import ModuleType

from novacron.hookspecs import (
    command,
    compliance,
    compression,
    consensus,
    machine,
    move,
    node,
    placement,
    security,
    transport,
)

# The domains in which configuration picks a provider by name, in the order of the main path.
DOMAINS: tuple[str, ...] = (
    "machine",
    "compression",
    "security",
    "transport",
    "consensus",
    "placement",
    "compliance",
)

SPEC_MODULES: tuple[ModuleType, ...] = (
    machine,
    compression,
    security,
    transport,
    consensus,
    placement,
    compliance,
    move,
    node,
    command,
)

__all__ = ["DOMAINS", "SPEC_MODULES"]
