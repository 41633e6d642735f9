"""Who may import what. import-linter holds the arrows between packages (scripts/check-arrows, run
here too); what it cannot say about names stands here."""

from __future__ import annotations

import subprocess
import sys

import novacron
import pytest
from workspace import KERNEL, MEMBERS, PLUGINS, ROOT, Import, Member, imports

OURS = {package: member for member in MEMBERS for package in member.packages}
# A protocol gets events and the time, and gives effects.
WORLD = {"asyncio", "os", "random", "selectors", "socket", "ssl", "subprocess", "threading", "time"}


def all_imports(member: Member) -> list[Import]:
    return [found for path in member.sources() for found in imports(path)]


def test_import_linter_holds_the_arrows() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/check-arrows"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("member", PLUGINS, ids=lambda member: member.id)
def test_a_plugin_imports_only_public_names_of_the_kernel(member: Member) -> None:
    public = set(novacron.__all__)
    wrong = [
        str(found)
        for found in all_imports(member)
        if found.top == "novacron" and (found.module != "novacron" or found.name not in public)
        # `import novacron` gives what __all__ has; what is then used of it mypy sees.
        if not (found.module == "novacron" and found.name is None)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("member", PLUGINS, ids=lambda member: member.id)
def test_a_plugin_imports_of_ours_only_the_kernel_native_and_the_testkit_for_developers(
    member: Member,
) -> None:
    wrong = []
    for found in all_imports(member):
        other = OURS.get(found.top)
        if other is None or other in (member, KERNEL) or other.top == "native":
            continue
        # A domain whose contract needs a factory: the plugin brings it in a module of that name.
        # A protocol's simulation, too, is a module that only the testkit imports.
        developers = "contract" in found.path.stem or "simulation" in found.path.stem
        if found.top == "novacron_testkit" and developers:
            continue
        # What the simulator runs stands in a module of that name, imported only by the simulator.
        if found.top == "novacron_testkit" and found.path.stem.startswith("_simulation"):
            continue
        if found.top == "novacron_agreement" and member.folder.name.startswith("consensus-"):
            continue
        if found.top == "novacron_qemu" and member.folder.name.startswith("machine-"):
            continue
        wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.id)
def test_a_member_declares_what_it_imports_of_ours(member: Member) -> None:
    declared = " ".join(member.project.get("dependencies", []))
    for extra in member.project.get("optional-dependencies", {}).values():
        declared += " ".join(extra)
    for group in member.document["dependency-groups"].values():
        declared += " ".join(entry for entry in group if isinstance(entry, str))
    used = {OURS[found.top] for found in all_imports(member) if found.top in OURS} - {member}
    missing = [other.project["name"] for other in used if other.project["name"] not in declared]
    assert not missing


def test_protocols_import_nothing_of_the_world() -> None:
    of_protocols = [
        path
        for path in (path for member in MEMBERS for path in member.sources())
        if {"novacron_dwcp", "novacron_agreement", "novacron_qemu"} & set(path.parts)
    ]
    # These move frames, batches and messages over real streams, and records to real files.
    drivers = (
        *("accept.py", "client.py", "control.py", "driver.py", "forwarding.py", "logfile.py"),
        *("peers.py", "pump.py", "registrar.py"),
    )
    modules = [path for path in of_protocols if path.name not in drivers]
    assert len(modules) > 3
    wrong = [str(found) for path in modules for found in imports(path) if found.top in WORLD]
    assert not wrong, "\n".join(wrong)
