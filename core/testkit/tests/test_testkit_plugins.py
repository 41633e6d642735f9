"""New plugins pass their contract as written; the check tells sound plugins from broken ones."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from novacron import (
    DOMAINS,
    ConfigError,
    Conflict,
    NotFound,
    PluginManager,
    PluginSource,
    ShellState,
)
from novacron_testkit.check import FAILED, CheckReport, check_plugin
from novacron_testkit.commands import plugins
from novacron_testkit.scaffold import new_plugin

SETTINGS = Path(__file__).parents[3] / "pyproject.toml"


@pytest.fixture(scope="module", autouse=True)
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where none may be kept beside the sources: many processes here import the same ones."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("PYTHONDONTWRITEBYTECODE"):
            patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("bytecode")))
            patch.delenv("PYTHONDONTWRITEBYTECODE")
        yield


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTEST_ADDOPTS": ""}
    ended = subprocess.run(
        (sys.executable, "-m", *command),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    return ended.stdout


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Import a written plugin as if it were installed; forgotten again afterwards."""
    names: list[str] = []

    def load(folder: Path) -> ModuleType:
        monkeypatch.syspath_prepend(str(folder / "src"))
        (name,) = (path.name for path in (folder / "src").iterdir())
        names.append(name)
        return importlib.import_module(name)

    yield load
    for module in [m for m in sys.modules if m.split(".")[0] in names]:
        del sys.modules[module]


def manager_of(name: str, plugin: object) -> PluginManager:
    source = PluginSource(name=name, distribution="dist-of-the-test", version="1", plugin=plugin)
    return PluginManager.load(sources=[source], strict=True)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[str]]:
    """How the tests of a new plugin of each domain ended, by domain.

    One process for all of them: to start pytest takes longer than most contracts.
    """
    out = tmp_path_factory.mktemp("new")
    folders = [new_plugin(domain, "demo", out) for domain in DOMAINS]
    report = out / "report.xml"
    ran = subprocess.run(
        (
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-c", str(SETTINGS), f"--rootdir={out}", f"--junitxml={report}"),
            *(str(folder / "tests") for folder in folders),
        ),
        cwd=out,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(folder / "src") for folder in folders),
            "PYTEST_ADDOPTS": "",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert report.exists(), (ran.stdout + ran.stderr)[-4000:]
    ended: dict[str, list[str]] = {domain: [] for domain in DOMAINS}
    for case in ElementTree.parse(report).iter("testcase"):
        (domain,) = (d for d in DOMAINS if f"-{d}-demo." in case.get("classname", ""))
        law = case.get("name")
        said = [(child.tag, child.get("message") or "") for child in case]
        # A driver need not examine anything; then there is nothing to hold it to.
        wrong = [
            f"{law}: {tag}: {text}"
            for tag, text in said
            if not (tag == "skipped" and "examine()" in text)
        ]
        ended[domain] += wrong or ["passed"]
    return ended


@pytest.mark.slow
@pytest.mark.xdist_group("new-plugins")  # the fixture once, and not in each worker
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_new_plugin_passes_its_contract_as_written(
    domain: str, outcomes: Mapping[str, list[str]]
) -> None:
    assert len(outcomes[domain]) > 5
    assert {*outcomes[domain]} == {"passed"}


@pytest.mark.slow
def test_new_plugins_are_clean_for_ruff_and_mypy_whatever_their_name(tmp_path: Path) -> None:
    names = ("x", "a-rather-long-name-for-a-plugin")
    for name in names:
        for domain in DOMAINS:
            new_plugin(domain, name, tmp_path)
    settings = str(SETTINGS)
    run(tmp_path, "ruff", "check", "--config", settings, ".")
    run(tmp_path, "ruff", "format", "--check", "--config", settings, ".")
    # A name changes how lines break, not what their types are.
    sources = sorted(str(path) for path in tmp_path.glob(f"*-{names[0]}/src"))
    # Not the cache of the workspace: to it, what is installed here is source.
    cache = SETTINGS.parent / ".mypy_cache" / "new-plugins"
    run(tmp_path, "mypy", "--config-file", settings, "--cache-dir", str(cache), *sources)


def test_a_new_plugin_has_the_shape_of_every_plugin(tmp_path: Path) -> None:
    folder = new_plugin("compression", "my-zip", tmp_path)
    assert folder.name == "novacron-compression-my-zip"
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == [
        "README.md",
        "pyproject.toml",
        "src/novacron_compression_my_zip/__init__.py",
        "src/novacron_compression_my_zip/contract.py",
        "src/novacron_compression_my_zip/py.typed",
        "tests/test_contract.py",
    ]
    text = (folder / "pyproject.toml").read_text()
    assert 'compression-my-zip = "novacron_compression_my_zip"' in text
    assert "@" not in text


@pytest.mark.parametrize("name", ["", "Zip", "1zip", "a_b", "a--b", "-a", "../a", "a" * 41, "ä"])
def test_a_name_that_cannot_be_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        new_plugin("compression", name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_domain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="teleport"):
        new_plugin("teleport", "demo", tmp_path)


def test_a_folder_that_exists_is_not_written_over(tmp_path: Path) -> None:
    new_plugin("placement", "demo", tmp_path)
    with pytest.raises(Conflict):
        new_plugin("placement", "demo", tmp_path)


def failures(report: CheckReport) -> dict[str, str]:
    return {result.law: result.why for result in report.results if result.outcome == FAILED}


def test_a_contract_is_made_where_the_plugin_brings_none(tmp_path: Path, imported: object) -> None:
    folder = new_plugin("placement", "bare", tmp_path)
    next(folder.glob("src/*/contract.py")).unlink()
    plugin = imported(folder)  # type: ignore[operator]
    report = check_plugin("placement-bare", manager_of("placement-bare", plugin))
    assert report.ok
    assert len(report.results) > 10


def test_a_broken_plugin_fails_with_the_law_and_the_reason(
    tmp_path: Path, imported: object
) -> None:
    folder = new_plugin("placement", "broken", tmp_path)
    source = next(folder.glob("src/*/__init__.py"))
    text = source.read_text()
    sound = "if candidate.free_memory_bytes < wanted:"
    assert sound in text
    source.write_text(text.replace(sound, "if candidate.free_memory_bytes < 0:"))
    plugin = imported(folder)  # type: ignore[operator]
    report = check_plugin("placement-broken", manager_of("placement-broken", plugin))
    assert not report.ok
    broken = failures(report)
    assert "no machine is sent where its memory or its driver is missing" in broken
    assert all(broken.values())


def test_a_machine_plugin_without_a_contract_is_told_to_bring_one(
    tmp_path: Path, imported: object
) -> None:
    folder = new_plugin("machine", "shy", tmp_path)
    next(folder.glob("src/*/contract.py")).unlink()
    plugin = imported(folder)  # type: ignore[operator]
    report = check_plugin("machine-shy", manager_of("machine-shy", plugin))
    assert list(failures(report)) == ["it brings a contract to be checked by"]
    assert (
        "novacron_machine_shy.contract" in failures(report)["it brings a contract to be checked by"]
    )


def test_a_plugin_without_form_fails_for_its_form(tmp_path: Path) -> None:
    class Plugin:
        NOVACRON_API = 1

    report = check_plugin("formless", manager_of("formless", Plugin()))
    assert failures(report) == {"it says in a docstring what it is": "it has none"}


def test_checking_an_unknown_plugin_names_the_nearest(tmp_path: Path) -> None:
    class Plugin:
        """A plugin."""

        NOVACRON_API = 1

    with pytest.raises(NotFound) as one:
        check_plugin("smooty", manager_of("smooth", Plugin()))
    assert "smooth" in one.value.hint


def test_the_commands_write_a_sound_plugin_and_report_every_law_as_kept(
    tmp_path: Path, imported: object
) -> None:
    shell = ShellState()
    said = CliRunner().invoke(
        plugins, ["new", "placement", "cmd", "--out", str(tmp_path)], obj=shell
    )
    assert said.exit_code == 0, said.output
    assert "novacron plugins check placement-cmd" in said.output
    plugin = imported(tmp_path / "novacron-placement-cmd")  # type: ignore[operator]
    shell.manager = manager_of("placement-cmd", plugin)
    said = CliRunner().invoke(plugins, ["check", "placement-cmd", "--json"], obj=shell)
    assert said.exit_code == 0, said.output
    report = json.loads(said.output)
    assert report["ok"] is True
    laws = {(result["subject"], result["law"]) for result in report["results"]}
    assert ("placement cmd", "no candidates is a refusal") in laws
    assert ("plugin", "its types are public (py.typed)") in laws


def test_a_report_is_a_table_of_laws_unless_json_is_asked_for() -> None:
    class Plugin:
        """A plugin that offers nothing."""

        NOVACRON_API = 1

    shell = ShellState()
    shell.manager = manager_of("bare", Plugin())
    said = CliRunner().invoke(plugins, ["check", "bare"], obj=shell)
    assert said.exit_code == 0, said.output
    assert "it says in a docstring what it is" in said.output
    assert "2 passed, 0 failed" in said.output


def test_the_check_command_ends_with_one_when_a_law_is_broken() -> None:
    class Plugin:
        NOVACRON_API = 1

    shell = ShellState()
    shell.manager = manager_of("formless", Plugin())
    said = CliRunner().invoke(plugins, ["check", "formless", "--failures"], obj=shell)
    assert said.exit_code == 1
    assert "1 failed" in said.output
