"""The commands with which one looks at NovaCron itself."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence

import click
from novacron import Finding, hookimpl

from novacron_cli._completion import completion
from novacron_cli._config import config_group, profile_group
from novacron_cli._doctor import doctor
from novacron_cli._plugins import plugins_group

NOVACRON_API = 1

__all__ = ["NOVACRON_API", "novacron_register_commands", "novacron_register_findings"]


@hookimpl
def novacron_register_commands() -> Sequence[click.Command]:
    return (plugins_group, profile_group, config_group, doctor, completion)


@hookimpl
def novacron_register_findings() -> Sequence[Finding]:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    hint = "" if good else "install Python 3.11 or newer"
    return (
        Finding(subject="python", status="ok" if good else "broken", detail=version, hint=hint),
    )
