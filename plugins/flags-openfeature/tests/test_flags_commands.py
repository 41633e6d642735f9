"""`novacron flags`, on the files of a node that need not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from click.testing import CliRunner, Result
from novacron import ConfigError, NotFound, ShellState
from novacron_flags_openfeature._commands import flags_group

FLAG = "provider.compression"
FLAGS = {
    "flags": {
        FLAG: {
            "state": "ENABLED",
            "variants": {"stable": "", "new": "zstd"},
            "defaultVariant": "stable",
        },
        "provider.protocol": {
            "state": "DISABLED",
            "variants": {"old": "2", "new": ""},
            "defaultVariant": "old",
        },
    }
}


@define
class Host:
    folder: Path

    def run(self, *arguments: str, as_json: bool = True) -> Result:
        state = ShellState(json=as_json, config_path=self.folder / "novacron.toml")
        return CliRunner().invoke(flags_group, list(arguments), obj=state)

    def told(self, *arguments: str) -> Any:
        ran = self.run(*arguments)
        assert ran.exit_code == 0, (ran.output, ran.exception)
        return json.loads(ran.stdout)

    def explain(self, *more: str) -> Any:
        return self.told("explain", FLAG, "--machine", "vm1", *more)

    def new(self) -> Any:
        flags = {flag["flag"]: flag for flag in self.told("list")["flags"]}
        return next(one for one in flags[FLAG]["variants"] if one["variant"] == "new")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr("getpass.getuser", lambda: "ida")
    (tmp_path / "flags.json").write_text(json.dumps(FLAGS))
    (tmp_path / "novacron.toml").write_text(
        f'[node]\nname = "a"\nstate_dir = "{tmp_path / "state"}"\n'
        '[use]\ncompression = "hde"\n'
        f'[service.flags]\nenabled = true\nfile = "{tmp_path / "flags.json"}"\n'
    )
    return Host(tmp_path)


def test_a_rollout_by_hand(host: Host) -> None:
    assert host.explain()["used"] == "hde"
    assert host.told("set-percentage", FLAG, "100")["percentages"] == {"new": 100, "stable": 0}
    assert host.explain()["used"] == "zstd"
    made = host.told("rollback", FLAG, "--why", "it is slow")
    assert (made["value"], made["by"], made["why"]) == ("zstd", "ida", "it is slow")
    assert host.told("rollback", FLAG)["id"] == made["id"]  # once is enough
    found = host.explain()
    assert found["used"] == "hde"
    assert "by ida" in found["why"]
    assert host.new()["rolled_back"]["id"] == made["id"]
    (restored,) = host.told("restore", FLAG)["restored"]
    assert restored["id"] == made["id"]
    assert host.explain()["used"] == "zstd"


def test_explain_says_where_a_machine_stands(host: Host) -> None:
    host.told("set-percentage", FLAG, "30")
    found = host.explain("--tenant", "x", "--target", "b")
    assert found["percentages"] == {"new": 30.0, "stable": 70.0}
    assert found["used"] == ("zstd" if found["place"] < 30 else "hde")
    text = host.run("explain", FLAG, "--machine", "vm1", as_json=False).output
    assert f"vm1 moves through {found['used']}: " in text
    assert "new 30 %, stable 70 %" in text


def test_list_shows_every_variant_and_a_damaged_file(host: Host) -> None:
    told = host.told("list")
    assert [flag["flag"] for flag in told["flags"]] == [FLAG, "provider.protocol"]
    assert [flag["state"] for flag in told["flags"]] == ["ENABLED", "DISABLED"]
    assert told["damage"] == ""
    assert "zstd" in host.run("list", as_json=False).output
    (host.folder / "flags.json").write_text("{")
    assert "flags.json" in host.told("list")["damage"]
    # Only the node keeps what it has read.
    assert not (host.folder / "state").exists()


def test_the_protocols_version_can_be_a_flag_too(host: Host) -> None:
    found = host.told("explain", "provider.protocol", "--machine", "vm1")
    assert found["why"] == "the flag is off"


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("explain", "colour", "--machine", "vm"), ConfigError, "chooses no provider"),
        (("explain", "provider.transport", "--machine", "vm"), NotFound, "no such flag"),
        (("rollback", "provider.x"), NotFound, "there is no flag"),
        (("rollback", FLAG, "--variant", "x"), NotFound, "no variant 'x'"),
        (("rollback", FLAG, "--variant", "stable"), ConfigError, "what is configured"),
        (("restore", FLAG), NotFound, "is not rolled back"),
        (("set-percentage", FLAG, "101"), ConfigError, "no percentage"),
    ],
)
def test_what_cannot_be_done_is_refused(
    host: Host, arguments: tuple[str, ...], error: type[Exception], says: str
) -> None:
    refused = host.run(*arguments).exception
    assert isinstance(refused, error), refused
    assert says in str(refused)


def test_a_flag_that_cannot_be_listed_is_rolled_back_by_its_value(host: Host) -> None:
    text = (host.folder / "novacron.toml").read_text().partition("file =")[0]
    provider = "openfeature.provider.no_op_provider:NoOpProvider"
    (host.folder / "novacron.toml").write_text(f'{text}provider = "{provider}"\n')
    assert host.told("list")["flags"] == []
    assert host.told("rollback", FLAG, "--value", "zstd")["value"] == "zstd"
    assert host.told("list")["flags"][0]["variants"][0]["rolled_back"]["by"] == "ida"
    refused = host.run("set-percentage", FLAG, "10").exception
    assert isinstance(refused, ConfigError)
    assert provider in refused.hint
