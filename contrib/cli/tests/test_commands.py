"""The commands with which one looks at NovaCron itself, run as a person runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

NOVACRON = Path(sys.executable).parent / "novacron"


def novacron(
    *arguments: str, config: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [str(NOVACRON), *(("--config", str(config)) if config else ()), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(environment or {})},
    )


def test_plugins_list_names_this_plugin_and_what_it_answers() -> None:
    listed = json.loads(novacron("--json", "plugins", "list").stdout)
    mine = next(row for row in listed["plugins"] if row["name"] == "cli")
    assert mine["distribution"] == "novacron-cli"
    assert "novacron_register_commands" in mine["hooks"]


def test_plugins_show_of_an_unknown_one_says_where_to_look() -> None:
    ran = novacron("plugins", "show", "nobody")
    assert ran.returncode == 3
    assert "novacron plugins list" in ran.stderr


def test_plugins_trace_times_each_hook_call() -> None:
    ran = novacron("plugins", "trace", "config", "validate")
    assert ran.returncode == 0, ran.stderr
    assert "novacron_register_profiles" in ran.stdout or "Hook calls" in ran.stdout


def test_an_unknown_setting_names_the_nearest_known_one(tmp_path: Path) -> None:
    config = tmp_path / "novacron.toml"
    config.write_text('[node]\nnmae = "alpha"\n')
    ran = novacron("--json", "config", "validate", config=config)
    assert ran.returncode == 2
    error = json.loads(ran.stderr)["error"]
    assert error["code"] == "config"
    assert "'name'" in error["hint"]


def test_environment_overrides_the_file_and_flags_override_both(tmp_path: Path) -> None:
    config = tmp_path / "novacron.toml"
    config.write_text('[node]\nname = "alpha"\nmode = "hybrid"\n')
    overridden = {"NOVACRON_NODE__NAME": "beta"}
    ran = novacron("--json", "config", "show", config=config, environment=overridden)
    node = json.loads(ran.stdout)["node"]
    assert (node["name"], node["mode"]) == ("beta", "hybrid")


def test_profile_use_writes_the_file_and_keeps_its_comments(tmp_path: Path) -> None:
    config = tmp_path / "novacron.toml"
    config.write_text('# ours\n[node]\nname = "alpha"\n\n[profiles.small]\ndescription = "few"\n')
    ran = novacron("profile", "use", "small", config=config)
    assert ran.returncode == 0, ran.stderr
    assert config.read_text().startswith("# ours\n")
    listed = json.loads(novacron("--json", "profile", "list", config=config).stdout)
    assert {"name": "small", "used": True, "description": "few"} in listed


def test_doctor_says_what_it_found() -> None:
    found = json.loads(novacron("--json", "doctor").stdout)
    assert {"python", "configuration", "transport"} <= {finding["subject"] for finding in found}


def test_completion_scripts_are_there_for_three_shells() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_NOVACRON_COMPLETE" in novacron("completion", shell).stdout
