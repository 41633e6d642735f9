"""What we hand out: every distribution as a wheel, in an environment that has nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from workspace import MEMBERS, ROOT, Member

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("packaging")]
UV = Path(sys.executable).parent / "uv"


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    # The environment's own settings must not leak into the bare one.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_", "VIRTUAL_"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept | {"UV_SYSTEM_CERTS": "1", "UV_NO_PROGRESS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each member, built by the back ends that constraints.txt pins."""
    folder = tmp_path_factory.mktemp("wheels")
    for member in MEMBERS:
        run(
            *(
                UV,
                "build",
                "--quiet",
                "--wheel",
                "--no-build-isolation",
                "--python",
                sys.executable,
            ),
            *("--out-dir", folder / member.project["name"], member.folder),
        )
    return {
        member.project["name"]: next((folder / member.project["name"]).glob("*.whl"))
        for member in MEMBERS
    }


@pytest.fixture(scope="module")
def bare(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheels and what they need, at the pinned versions."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    run(UV, "venv", "--quiet", "--python", sys.executable, folder)
    run(
        *(UV, "pip", "install", "--quiet", "--python", folder / "bin" / "python"),
        *("--constraints", ROOT / "constraints.txt", *wheels.values()),
    )
    return folder / "bin"


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.id)
def test_a_wheel_holds_the_package_its_types_and_its_licence_name(
    member: Member, wheels: dict[str, Path]
) -> None:
    with zipfile.ZipFile(wheels[member.project["name"]]) as wheel:
        names = wheel.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        said = wheel.read(metadata).decode()
    for package in member.packages:
        assert f"{package}/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "src/"))]
    assert "License-Expression: Apache-2.0" in said
    assert f"Version: {member.project['version']}\n" in said


def test_what_is_installed_fits_together(bare: Path) -> None:
    run(UV, "pip", "check", "--python", bare / "python")


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.id)
def test_a_package_imports_from_its_wheel(member: Member, bare: Path) -> None:
    for package in member.packages:
        said = run(
            bare / "python", "-W", "error", "-c", f"import {package} as p; print(p.__file__)"
        )
        assert "site-packages" in said


def test_all_plugins_load_from_their_wheels(bare: Path, tmp_path: Path) -> None:
    said = run(
        *(bare / "python", "-c"),
        "import json\n"
        "from novacron.loader import PluginManager\n"
        "manager = PluginManager.load()\n"
        "print(json.dumps([sorted(manager.plugins), [str(f) for f in manager.failures]]))",
        cwd=tmp_path,
    )
    loaded, failures = json.loads(said.splitlines()[-1])
    assert failures == []
    wanted = {n for m in MEMBERS for n in m.project.get("entry-points", {}).get("novacron", {})}
    assert set(loaded) == wanted


# Its laws take three minutes, with a libvirtd and thirty guests; its own tests hold it to them.
LONG = "machine-libvirt"
INSTALLED = [m for m in MEMBERS if m.top == "plugins" and m.folder.name != LONG]


@pytest.mark.parametrize("member", INSTALLED, ids=lambda member: member.id)
def test_a_plugin_keeps_its_contract_where_it_was_installed(
    member: Member, bare: Path, tmp_path: Path
) -> None:
    run(bare / "novacron", "plugins", "check", member.folder.name, cwd=tmp_path)


def needed_of_ours(name: str) -> set[str]:
    """A distribution of the workspace and those that it cannot do without."""
    projects = {member.project["name"]: member.project for member in MEMBERS}
    direct = {re.split(r"[<>=\[]", entry)[0] for entry in projects[name].get("dependencies", [])}
    return {name}.union(*(needed_of_ours(below) for below in direct & set(projects)))


def test_the_kernel_alone_starts_and_says_what_is_missing(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    run(UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(
        *(UV, "pip", "install", "--quiet", "--python", python),
        *("--constraints", ROOT / "constraints.txt"),
        *(wheels[name] for name in sorted(needed_of_ours("novacron"))),
    )
    novacron = python.parent / "novacron"
    assert "node" in run(novacron, "--help", cwd=tmp_path)
    done = subprocess.run(
        [novacron, "node", "start"],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "provider" in done.stderr
    assert "hint" in done.stderr
    assert "Traceback" not in done.stderr
