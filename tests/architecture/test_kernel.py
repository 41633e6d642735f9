"""The kernel is small and names no plugin."""

from __future__ import annotations

import re

import novacron
from workspace import KERNEL, MEMBERS, ROOT

LINES_MAX = 4850


def test_the_kernel_can_be_read_in_an_evening() -> None:
    counts = {
        str(path.relative_to(KERNEL.folder)): len(path.read_text(encoding="utf-8").splitlines())
        for path in KERNEL.sources()
    }
    assert sum(counts.values()) <= LINES_MAX, counts


def test_the_kernel_names_no_plugin() -> None:
    """Not even in a comment; the extra `standard` in its pyproject.toml is the one place."""
    names: set[str] = set()
    for member in MEMBERS:
        if member.top in ("plugins", "contrib", "native"):
            names |= {member.project["name"], *member.packages}
        if member.top == "plugins":
            names.add(member.folder.name)
    assert names
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, sorted(names)))})(?![\w-])")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in KERNEL.sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_kernel_needs_little() -> None:
    needed = {re.split(r"[<>=\[]", entry)[0] for entry in KERNEL.project["dependencies"]}
    assert needed <= {
        "attrs",
        "blake3",
        "cattrs",
        "click",
        "msgspec",
        "novacron-dwcp",
        "pluggy",
        "rich",
    }


def test_the_public_names_are_there() -> None:
    assert all(hasattr(novacron, name) for name in novacron.__all__)
