"""The kernel is small and names no plugin."""

from __future__ import annotations

import re

import novacron
from workspace import KERNEL, MEMBERS, ROOT

LINES_MAX = {"what runs": 4350, "hookspecs": 1450}  # ADR 024


def test_the_kernel_can_be_read_in_an_evening() -> None:
    counts = dict.fromkeys(LINES_MAX, 0)
    for path in KERNEL.sources():
        kind = "hookspecs" if path.parent.name == "hookspecs" else "what runs"
        counts[kind] += len(path.read_text(encoding="utf-8").splitlines())
    assert all(counts[kind] <= most for kind, most in LINES_MAX.items()), counts


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
