"""What the documents say is true: links lead somewhere, examples work, commands exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from novacron import errors
from novacron.config import NodeSettings, PeerSettings, Profile, structure
from novacron.shell import cli
from workspace import GENERATED, MEMBERS, ROOT

PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/*/README.md")]
    if not GENERATED.intersection(path.relative_to(ROOT).parts)
)
EXAMPLES = sorted(ROOT.glob("examples/**/*.toml"))
# Made when the documentation is built, so not there to be found in the source.
MADE = ("reference/", "plugins/", "adr/index.md")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", prose):
        made = any(part in target for part in MADE) and page.is_relative_to(ROOT / "docs")
        if "://" not in target and not target.startswith("mailto:") and not made:
            assert (page.parent / target).exists(), target


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/build-docs", "--into", str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "index.html").exists()


# A package's README explains its own keys.
SHARED = [p for p in PAGES if p.parent == ROOT or p.is_relative_to(ROOT / "docs")]


@pytest.mark.parametrize("page", SHARED, ids=named)
def test_toml_in_the_root_and_docs_is_an_example_that_is_run(page: Path) -> None:
    examples = [path.read_text(encoding="utf-8").strip() for path in EXAMPLES]
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        snippet = re.fullmatch(r'--8<-- "(examples/\S+\.toml)"\n', block)
        if snippet:
            assert ROOT / snippet[1] in EXAMPLES
        else:
            assert block.strip() in examples, f"no file in examples/ is this:\n{block}"


@pytest.mark.parametrize("example", EXAMPLES, ids=named)
def test_an_example_configuration_is_valid(example: Path) -> None:
    done = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "novacron"), "--config", str(example)),
            *("config", "validate"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=named)
def test_the_kernels_own_sections_of_an_example_have_only_known_keys(example: Path) -> None:
    tables = tomllib.loads(example.read_text(encoding="utf-8"))
    structure(NodeSettings, tables.get("node", {}), "[node]")
    for name, peer in tables.get("peers", {}).items():
        structure(PeerSettings, peer, f"[peers.{name}]")
    for name, profile in tables.get("profiles", {}).items():
        structure(Profile, profile, f"[profiles.{name}]")


def commands(page: Path) -> list[list[str]]:
    """The lines that a reader would type: ``$ novacron …`` in a console block."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    typed = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [
        shlex.split(line.partition("novacron ")[2], comments=True)
        for line in typed
        if re.match(r"\$ (\.venv/bin/)?novacron ", line)
    ]


@pytest.mark.parametrize("page", [p for p in SHARED if commands(p)], ids=named)
def test_a_command_in_the_documentation_exists_with_its_options(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOVACRON_CONFIG", os.devnull)
    for words in commands(page):
        command: click.Command | None = cli
        with click.Context(cli, info_name="novacron") as context:
            rest = list(words)
            while isinstance(command, click.Group) and rest:
                command = command.get_command(context, rest.pop(0))
            assert command is not None, f"there is no command novacron {' '.join(words)}"
            known = {name for parameter in command.get_params(context) for name in parameter.opts}
        used = {word.partition("=")[0] for word in rest if word.startswith("-")}
        assert used <= known, f"novacron {' '.join(words)}: no option {used - known}"
        needed = {
            parameter.opts[0]
            for parameter in command.get_params(context)
            if isinstance(parameter, click.Option) and parameter.required
        }
        assert needed <= used, f"novacron {' '.join(words)}: it needs {needed - used}"
        places = [p for p in command.get_params(context) if isinstance(p, click.Argument)]
        assert len([p for p in places if p.required]) <= len([w for w in rest if w[0] != "-"])


def test_every_error_has_an_exit_code_of_its_own_and_a_docstring() -> None:
    found = [
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type)
        and issubclass(cls, errors.NovacronError)
        and cls is not errors.NovacronError
    ]
    assert len({cls.exit_code for cls in found}) == len({cls.code for cls in found}) == len(found)
    assert all(cls.__doc__ for cls in found)


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("docs/adr/[0-9]*.md")), ids=lambda page: page.name
)
def test_a_decision_has_a_number_a_status_and_what_was_rejected(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    number = page.name[:3]
    assert re.match(rf"# {number}: \S", text)
    assert re.search(r"^Status: (proposed|accepted|replaced by \d{3})$", text, re.MULTILINE)
    for heading in ("The question", "The decision", "What was rejected", "What follows"):
        assert f"\n## {heading}\n" in text
    assert len(list(page.parent.glob(f"{number}-*.md"))) == 1, "two decisions have this number"


def test_changelog_fragments_begin_with_a_package() -> None:
    kinds = {"feature", "bugfix", "doc", "removal", "misc"}
    names = {member.project["name"] for member in MEMBERS} | {"workspace", "docs"}
    for fragment in sorted((ROOT / "changelog.d").glob("*.md")):
        assert fragment.name.split(".")[-2] in kinds, fragment.name
        for line in fragment.read_text(encoding="utf-8").strip().splitlines():
            if line and not line.startswith(" "):
                assert line.partition(":")[0] in names, f"{fragment.name}: {line}"


def test_the_readme_says_what_is_not_done_yet() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for words in ("make demo", "make test", "novacron.toml", "## Not done yet", "Apache-2.0"):
        assert words in text
