"""Writes a new plugin from the templates: a package that passes its contract as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from novacron import DOMAINS, ConfigError, Conflict

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_NAME_MAX: Final = 40
_SUFFIX: Final = ".tmpl"

_SUMMARIES: Final = {
    "machine": "A machine driver for NovaCron: a toy guest that counts",
    "compression": "A codec for NovaCron, on zlib",
    "security": "Mutual TLS 1.3 between NovaCron nodes",
    "transport": "A transport for NovaCron, on TCP",
    "consensus": "A register of ownership for NovaCron, in a JSON file",
    "placement": "Placement for NovaCron: the node that is loaded least",
    "compliance": "A hash-chained operation log for NovaCron",
}
_DEPENDENCIES: Final = {
    "machine": ("blake3>=1.0",),
    "security": ("cryptography>=43", "pyopenssl>=24.2"),
    "compliance": ("blake3>=1.0",),
}


def new_plugin(domain: str, name: str, out: Path) -> Path:
    """Write the package ``novacron-DOMAIN-NAME`` into a new folder of ``out``; returns the folder.

    Raises:
        ConfigError: The domain or the name is none. Nothing was written.
        Conflict: The folder exists. Nothing was written.
    """
    if domain not in DOMAINS:
        raise ConfigError(f"there is no domain {domain!r}", hint=f"one of {', '.join(DOMAINS)}")
    if not _NAME.fullmatch(name) or len(name) > _NAME_MAX:
        raise ConfigError(
            f"{name!r} cannot be a plugin's name",
            hint=f"small letters, digits and single hyphens, at most {_NAME_MAX} characters",
        )
    plugin = f"{domain}-{name}"
    words = {
        "DOMAIN": domain,
        "NAME": name,
        "PLUGIN": plugin,
        "DIST": f"novacron-{plugin}",
        "IMPORT": f"novacron_{plugin.replace('-', '_')}",
        "SUMMARY": _SUMMARIES[domain],
        "DEPENDENCIES": ", ".join(
            f'"{each}"'
            for each in sorted(
                ("attrs>=24.2", "novacron>=0.1,<0.2", *_DEPENDENCIES.get(domain, ()))
            )
        ),
    }
    folder = out / words["DIST"]
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise Conflict(f"{folder} exists already", hint="remove it, or choose --out") from None
    package = folder / "src" / words["IMPORT"]
    package.mkdir(parents=True)
    (folder / "tests").mkdir()
    (package / "py.typed").touch()
    places = {"test_contract.py": folder / "tests", "pyproject.toml": folder, "README.md": folder}
    for template in _templates(domain):
        target = template.name.removesuffix(_SUFFIX)
        text = _filled(template.read_text(encoding="utf-8"), words)
        (places.get(target, package) / target).write_text(text, encoding="utf-8")
    return folder


def _templates(domain: str) -> Iterator[Traversable]:
    root = resources.files("novacron_testkit") / "templates"
    for part in ("common", domain):
        for template in sorted((root / part).iterdir(), key=lambda entry: entry.name):
            if template.name.endswith(_SUFFIX):
                yield template


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"@([A-Z]+)@", lambda found: words[found[1]], text)
