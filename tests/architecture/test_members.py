"""Every distribution has the one shape. Members are found, so a new one is held to it at once."""

from __future__ import annotations

import re

import pytest
from workspace import KERNEL, MEMBERS, PLUGINS, ROOT, Member

every_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.id)
every_plugin = pytest.mark.parametrize("member", PLUGINS, ids=lambda member: member.id)

# "flags" is no domain: what it offers is asked about all of them.
DOMAINS = "machine|compression|security|transport|consensus|placement|compliance|flags"


def names(requirements: list[str]) -> dict[str, str]:
    """Requirements by distribution."""
    return {re.split(r"[\s<>=!~;\[]", entry, maxsplit=1)[0]: entry for entry in requirements}


def test_there_are_members() -> None:
    assert {"core/kernel", "core/testkit"} <= {member.id for member in MEMBERS}
    assert PLUGINS


def test_every_folder_of_a_member_has_a_pyproject() -> None:
    folders = {
        p for top in ("core", "native", "plugins", "contrib") for p in ROOT.glob(f"{top}/*/src")
    }
    assert {folder.parent for folder in folders} <= {member.folder for member in MEMBERS}


@every_member
def test_all_members_have_the_kernels_version(member: Member) -> None:
    assert member.project["version"] == KERNEL.project["version"]


@every_member
def test_a_member_depends_on_members_with_both_bounds(member: Member) -> None:
    ours = {other.project["name"] for other in MEMBERS}
    listed = list(member.project.get("dependencies", []))
    for extra in member.project.get("optional-dependencies", {}).values():
        listed += extra
    for name, requirement in names(listed).items():
        if name in ours or name.startswith("novacron"):
            assert re.fullmatch(r"[\w-]+(\[\w+\])?>=0\.1,<0\.2", requirement), requirement


@every_member
def test_every_dependency_has_a_lower_bound(member: Member) -> None:
    for requirement in member.project.get("dependencies", []):
        assert ">=" in requirement or "~=" in requirement, requirement


@every_member
def test_a_member_says_what_it_is_under_which_licence_and_for_which_python(member: Member) -> None:
    project = member.project
    assert project["description"]
    assert project["license"] == "Apache-2.0"
    assert project["requires-python"] == ">=3.11"
    assert project["readme"] == "README.md"
    assert len((member.folder / "README.md").read_text(encoding="utf-8").split()) >= 10


@every_member
def test_a_member_has_one_typed_package(member: Member) -> None:
    packages = member.packages
    assert packages, "no package in src"
    for package in packages:
        assert (member.folder / "src" / package / "py.typed").exists(), f"{package} has no py.typed"


@every_member
def test_a_member_has_a_dev_group_and_tests(member: Member) -> None:
    assert "dev" in member.document.get("dependency-groups", {})
    assert list((member.folder / "tests").glob("**/test_*.py")), "no tests"


@every_member
def test_lint_type_and_test_settings_stand_in_the_root_alone(member: Member) -> None:
    tools = set(member.document.get("tool", {}))
    assert tools <= {"hatch", "setuptools", "uv", "distutils"}
    for name in ("ruff.toml", ".ruff.toml", "mypy.ini", "pytest.ini", "setup.cfg", "tox.ini"):
        assert not (member.folder / name).exists(), f"{name} would replace the root's settings"


@every_plugin
def test_a_plugin_is_named_by_its_folder_everywhere(member: Member) -> None:
    folder = member.folder.name
    package = f"novacron_{folder.replace('-', '_')}"
    assert re.fullmatch(rf"({DOMAINS})-[a-z0-9-]+", folder), "a folder is <domain>-<name>"
    assert member.project["name"] == f"novacron-{folder}"
    assert member.packages == [package]
    assert member.project["entry-points"]["novacron"] == {folder: package}
    assert "novacron" in names(member.project["dependencies"])
    assert member.document["dependency-groups"]["dev"] == ["novacron-testkit"]


@every_member
def test_entry_points_of_a_member_are_its_own_and_its_api_version_is_stated(member: Member) -> None:
    for target in member.project.get("entry-points", {}).get("novacron", {}).values():
        module = target.partition(":")[0]
        package, _, below = module.partition(".")
        assert package in member.packages
        path = member.folder / "src" / package / (f"{below.replace('.', '/')}.py" if below else "")
        source = path if path.is_file() else path / "__init__.py"
        assert re.search(r"^NOVACRON_API\b.*= 1$", source.read_text(encoding="utf-8"), re.MULTILINE)


@every_member
def test_a_member_is_named_once(member: Member) -> None:
    name = member.project["name"]
    assert [other.id for other in MEMBERS if other.project["name"] == name] == [member.id]
