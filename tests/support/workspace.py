"""What is in this repository, found by looking and never listed."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("core", "native", "plugins", "contrib")
GENERATED = {
    ".venv",
    ".hypothesis",
    ".cache",
    ".tools",
    "build",
    "dist",
    "site",
    "__pycache__",
    ".git",
    "node_modules",
}


@frozen
class Member:
    """One distribution of the workspace."""

    folder: Path

    @property
    def top(self) -> str:
        return self.folder.parent.name

    @property
    def id(self) -> str:
        return f"{self.top}/{self.folder.name}"

    @property
    def document(self) -> dict[str, Any]:
        return tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))

    @property
    def project(self) -> dict[str, Any]:
        project: dict[str, Any] = self.document["project"]
        return project

    @property
    def packages(self) -> list[str]:
        """Its import names."""
        return sorted(p.parent.name for p in (self.folder / "src").glob("*/__init__.py"))

    def sources(self) -> list[Path]:
        return sorted(
            path
            for path in (self.folder / "src").rglob("*.py")
            if not GENERATED.intersection(path.relative_to(self.folder).parts)
        )


MEMBERS = [Member(p.parent) for top in TOPS for p in sorted(ROOT.glob(f"{top}/*/pyproject.toml"))]
PLUGINS = [member for member in MEMBERS if member.top == "plugins"]
KERNEL = next(member for member in MEMBERS if member.id == "core/kernel")


def files() -> list[Path]:
    """Every file that belongs to the repository, as far as it is text."""
    return sorted(path for path in _walk(ROOT) if path.is_file())


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in GENERATED or path.name.endswith((".egg-info", "_cache")):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


@frozen
class Import:
    """An import statement's one name: ``from module import name``, or ``import module``."""

    path: Path
    line: int
    module: str
    name: str | None

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        said = f"from {self.module} import {self.name}" if self.name else f"import {self.module}"
        return f"{self.path.relative_to(ROOT)}:{self.line}: {said}"


def imports(path: Path) -> list[Import]:
    """All absolute imports of a file, those inside functions and for typing too."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    found: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(path, node.lineno, alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found += [Import(path, node.lineno, node.module, alias.name) for alias in node.names]
    return found
