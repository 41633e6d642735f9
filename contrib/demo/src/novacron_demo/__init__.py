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
    "security": "tls",
    "consensus": "sqlite",
    "placement": "fit",
    "compliance": "local",
}
# On a near path nothing is gained by steering; what the destination has is worth it anywhere.
_BY_MODE: Final = {
    "datacenter": {"transport": "tcp", "compression": "hde"},
    "hybrid": {"transport": "amst", "compression": "hde"},
    "internet": {"transport": "amst", "compression": "hde"},
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
            "modes": {mode: _PROVIDERS | chosen for mode, chosen in _BY_MODE.items()},
        }
    }


__all__ = ["NOVACRON_API", "novacron_register_commands", "novacron_register_profiles"]
