"""A plugin that somebody else wrote, outside the repository, does what our own plugins do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cluster import NOVACRON, Cluster, move
from workspace import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("thirdparty")]

DIST = "novacron-compression-demo"
IMPORT = "novacron_compression_demo"
# What the author adds to the package as it was written, to see it at work.
NOTES = """
    def _note(self, what: str) -> None:
        with open({notes!r}, "a", encoding="utf-8") as notes:
            notes.write(f"{{self._node}} {{what}}\\n")
"""


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def install(package: Path, into: Path) -> None:
    """As ``pip install`` does, but beside the shared environment instead of into it; offline."""
    places = [Path(sys.executable).parent / "uv", ROOT / ".tools" / "bin" / "uv"]
    uv = next((str(place) for place in places if place.exists()), None) or shutil.which("uv")
    installer: tuple[str, ...] = (sys.executable, "-m", "pip", "install")
    if uv is not None:
        installer = (uv, "pip", "install", "--python", sys.executable, "--no-sources")
    run(
        *(*installer, "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--target", into, package),
    )


def with_notes(package: Path, notes: Path) -> None:
    """The author's own change: the provider says when it is asked for a coder."""
    source = package / "src" / IMPORT / "__init__.py"
    text = source.read_text(encoding="utf-8")
    for old, new in (
        ("        self._level: int", "        self._node = node.name\n        self._level: int"),
        (
            "        return Encoder(self",
            "        self._note('encoder')\n        return Encoder(self",
        ),
        ("        return Decoder()", "        self._note('decoder')\n        return Decoder()"),
        ("\n\n@hookimpl", NOTES.format(notes=str(notes)) + "\n\n@hookimpl"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    source.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, as ``novacron plugins new`` writes it, in a folder of its author."""
    out = tmp_path_factory.mktemp("author")
    assert ROOT not in out.parents
    said = json.loads(
        run(NOVACRON, "--json", "plugins", "new", "compression", "demo", "--out", out)
    )
    assert said == {"folder": str(out / DIST), "plugin": "compression-demo"}
    return out / DIST


@pytest.fixture(scope="module")
def installed(written: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the plugin installed."""
    target = tmp_path_factory.mktemp("installed")
    install(written, target)
    return {"PYTHONPATH": str(target)}


def test_it_appears_in_the_list_of_plugins_with_what_it_offers(installed: dict[str, str]) -> None:
    listed = json.loads(run(NOVACRON, "--json", "plugins", "list", environment=installed))
    found = next(row for row in listed["plugins"] if row["name"] == "compression-demo")
    assert (found["distribution"], found["version"]) == (DIST, "0.1.0")
    assert found["offers"] == ["compression demo"]
    assert listed["failures"] == []


def test_it_is_not_there_where_it_was_not_installed() -> None:
    listed = json.loads(run(NOVACRON, "--json", "plugins", "list"))
    assert "compression-demo" not in [row["name"] for row in listed["plugins"]]


def test_it_passes_the_plugin_check_as_written(installed: dict[str, str]) -> None:
    command = (NOVACRON, "--json", "plugins", "check", "compression-demo")
    report: dict[str, Any] = json.loads(run(*command, environment=installed))
    outcomes = Counter(result["outcome"] for result in report["results"])
    assert outcomes["passed"] >= 10
    assert set(outcomes) == {"passed"}


def test_a_migration_that_names_it_in_the_configuration_uses_it(
    written: Path, tmp_path: Path
) -> None:
    notes, target = tmp_path / "notes", tmp_path / "installed"
    package = shutil.copytree(written, tmp_path / "package")
    with_notes(package, notes)
    install(package, target)
    settings = '[use]\ncompression = "demo"\n\n[compression.demo]\nlevel = 6\n'
    cluster = Cluster(tmp_path, settings=settings)
    for node in cluster.nodes.values():
        node.environment["PYTHONPATH"] = str(target)
    with cluster:
        cluster.create("vm", guest="counter", tick_ms=10)
        assert cluster.a.client.plan("vm", "b")["providers"]["compression"] == "demo"
        notes.unlink(missing_ok=True)
        ended = move(cluster.a, cluster.b, "vm")
        assert [machine["state"] for machine in cluster.b.client.machines()] == ["running"]
        assert cluster.a.client.machines() == []
        # The one side asked it for an encoder and the other for a decoder, and nobody else.
        assert sorted(notes.read_text().splitlines()) == ["a encoder", "b decoder"]
        assert ended["progress"]["raw_bytes"] > 0


def test_a_node_without_it_refuses_the_move_by_name_and_the_machine_runs_on(
    written: Path, installed: dict[str, str], tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path)
    text = cluster.a.config_path.read_text()
    cluster.a.config_path.write_text(text + '\n[use]\ncompression = "demo"\n')
    cluster.a.environment.update(installed)
    with cluster:
        cluster.create("vm", guest="counter", tick_ms=10)
        ended = cluster.a.client.wait(cluster.a.client.migrate("vm", "b")["id"])
        assert ended["state"] == "failed"
        assert "demo" in ended["error"]["message"] + ended["error"]["hint"]
        assert [machine["state"] for machine in cluster.a.client.machines()] == ["running"]
        assert cluster.b.client.machines() == []
