"""Small rules for the whole repository, so that nobody has to remember them in a review."""

from __future__ import annotations

import ast
import re

import pytest
from workspace import MEMBERS, ROOT, Member, files

# Written in pieces, or this file would break its own rules.
UNFINISHED = [a + b for a, b in (("TO", "DO"), ("FIX", "ME"), ("X" * 2, "X"), ("HA", "CK"))]
# Hosts that hand out packages: whoever mirrors them must not meet their names in here.
REGISTRIES = [
    name + end
    for name, end in (
        ("pypi", ".org"),
        ("pythonhosted", ".org"),
        ("npmjs", ".org"),
        ("registry.npm", "js"),
        ("crates", ".io"),
        ("proxy.golang", ".org"),
        ("deb.debian", ".org"),
        ("archive.ubuntu", ".com"),
        ("docker", ".io"),
        ("ghcr", ".io"),
    )
]
TEXT = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".yml",
    ".yaml",
    ".c",
    ".h",
    ".cfg",
    ".ini",
    ".wat",
    ".sh",
    "",
}
BIGGEST_FILE = 1 << 20


def texts() -> list[tuple[str, str]]:
    found = []
    for path in files():
        if path.suffix in TEXT and path.name != "LICENSE":
            data = path.read_bytes()
            if b"\0" not in data:
                found.append((str(path.relative_to(ROOT)), data.decode("utf-8")))
    return found


@pytest.fixture(scope="module")
def contents() -> list[tuple[str, str]]:
    return texts()


def found(contents: list[tuple[str, str]], pattern: str, flags: int = 0) -> list[str]:
    rule = re.compile(pattern, flags)
    return [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in contents
        for number, line in enumerate(text.splitlines(), 1)
        if rule.search(line)
    ]


def test_no_registry_is_named(contents: list[tuple[str, str]]) -> None:
    wrong = found(contents, "|".join(map(re.escape, REGISTRIES)), re.IGNORECASE)
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_for_later_in_the_code(contents: list[tuple[str, str]]) -> None:
    wrong = found(contents, rf"\b({'|'.join(UNFINISHED)})\b")
    assert not wrong, "\n".join(wrong)


def test_no_merge_was_left_half_done(contents: list[tuple[str, str]]) -> None:
    assert not found(contents, r"^(<{7}|>{7}) ")


def test_no_lock_file_with_addresses_is_kept() -> None:
    ours = {path.name for path in files()}
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    for name in ("uv.lock", "poetry.lock", "package-lock.json", "yarn.lock", "pnpm-lock.yaml"):
        assert name not in ours or name in ignored, f"{name} records where each file came from"


def test_every_pin_has_a_hash_and_an_exact_version() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=\S)", text)
    pins = [block for block in blocks if not block.startswith("#")]
    assert pins
    for pin in pins:
        assert re.match(r"[a-z0-9-]+==\S+ ", pin), pin.splitlines()[0]
        assert "--hash=sha256:" in pin, pin.splitlines()[0]
    assert "://" not in text


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.id)
def test_everything_that_a_member_asks_for_is_pinned(member: Member) -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
    ours = {other.project["name"] for other in MEMBERS}
    asked = [*member.project.get("dependencies", []), *member.document["build-system"]["requires"]]
    for extra in member.project.get("optional-dependencies", {}).values():
        asked += extra
    for group in member.document.get("dependency-groups", {}).values():
        asked += [entry for entry in group if isinstance(entry, str)]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", entry)[0]).lower() for entry in asked}
    missing = {name for name in names - ours - pinned if not name.startswith("novacron-")}
    assert not missing, f"run `make lock`: constraints.txt lacks {', '.join(sorted(missing))}"


def test_no_file_is_huge() -> None:
    wrong = [str(p.relative_to(ROOT)) for p in files() if p.stat().st_size > BIGGEST_FILE]
    assert not wrong


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.id)
def test_a_library_prints_nothing(member: Member) -> None:
    """Commands speak through click and rich; a library logs."""
    wrong = []
    for path in member.sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in ("print", "breakpoint"):
                wrong.append(f"{path.relative_to(ROOT)}:{called.lineno}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.id)
def test_every_module_says_what_it_is_for(member: Member) -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in member.sources()
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert not wrong, "\n".join(wrong)


def test_scripts_can_be_run() -> None:
    scripts = [p for p in (ROOT / "scripts").iterdir() if p.is_file() and not p.suffix]
    assert scripts
    for script in [*scripts, ROOT / ".ci" / "run"]:
        assert script.stat().st_mode & 0o111, f"{script.name} is not executable"
        assert script.read_bytes().startswith(b"#!"), f"{script.name} does not say who reads it"
