"""``novacron demo``: two nodes, a shaped link, and a machine that moves there and back.

Also brings the profile ``standard``: the providers that the demo, and a node without choices of its
own, uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from novacron import hookimpl

if TYPE_CHECKING:
    import click

NOVACRON_API = 1

_PROVIDERS: Final = {
    "transport": "tcp",
    "compression": "zstd",
    "security": "tls",
    "consensus": "sqlite",
    "placement": "fit",
    "compliance": "local",
}


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    from novacron_demo._command import demo

    return [demo]


@hookimpl
def novacron_register_profiles() -> Mapping[str, Mapping[str, Any]]:
    return {
        "standard": {
            "description": 'what `pip install "novacron[standard]"` brings, for any network',
            # One set for all three until there is something to choose from.
            "modes": {mode: dict(_PROVIDERS) for mode in ("datacenter", "hybrid", "internet")},
        }
    }


__all__ = ["NOVACRON_API", "novacron_register_commands", "novacron_register_profiles"]
