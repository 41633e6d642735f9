"""The shell: errors for people and for programs, exit codes, and what plugins bring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner
from novacron import (
    API_VERSION,
    Conflict,
    MachineError,
    NovacronError,
    PluginManager,
    PluginSource,
    ShellState,
    hookimpl,
    shell,
)
from novacron import errors as kinds
from novacron.shell import JSON_FLAG, Shell, main, report

NOVACRON = Path(sys.executable).parent / "novacron"


def plugin(name: str, commands: Any) -> PluginSource:
    @hookimpl
    def novacron_register_commands() -> Any:
        if isinstance(commands, Exception):
            raise commands
        return commands

    found = SimpleNamespace(
        NOVACRON_API=API_VERSION, novacron_register_commands=novacron_register_commands
    )
    return PluginSource(name=name, distribution=name, version="1", plugin=found)


class Installed(ShellState):
    """A shell's state with these plugins and no configuration."""

    def __init__(self, *plugins: PluginSource, json: bool = False) -> None:
        super().__init__(json=json)
        self.__dict__["manager"] = PluginManager.load(sources=plugins)


def group(name: str, *commands: str) -> click.Group:
    made = click.Group(name)
    for command in commands:
        made.add_command(click.Command(command, callback=lambda c=command: click.echo(c)))
    return made


def root() -> click.Group:
    made = Shell(name="novacron")
    made.add_command(group("node", "start"))
    return made


def run(command: click.Command, state: ShellState, *arguments: str) -> Any:
    return CliRunner().invoke(command, arguments, obj=state)


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run ``novacron`` with a command that raises; gives exit code, output and errors."""

    def fail_with(error: BaseException, *flags: str) -> tuple[int, str, str]:
        @click.command("fail")
        def command() -> None:
            raise error

        def raising_main(**arguments: Any) -> None:
            command.main([], **arguments)

        monkeypatch.setattr(shell.cli, "main", raising_main)
        monkeypatch.setattr(sys, "argv", ["novacron", *flags, "fail"])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return fail_with


# Errors.


def test_an_error_tells_people_what_happened_what_is_true_and_what_to_do(
    capfd: pytest.CaptureFixture[str],
) -> None:
    error = Conflict("vm runs [already]", hint="stop it first", truth="it runs on alpha")
    report(error, as_json=False)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error (conflict): vm runs [already]",
        "now: it runs on alpha",
        "hint: stop it first",
    ]


def test_an_error_without_truth_and_hint_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    report(Conflict("no"), as_json=False)
    assert capfd.readouterr().err == "error (conflict): no\n"


def test_an_error_tells_programs_the_same_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    error = Conflict("vm runs", hint="stop it", truth="it runs", machine="vm", path=Path("/x"))
    report(error, as_json=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert json.loads(err) == {
        "error": {
            "code": "conflict",
            "message": "vm runs",
            "hint": "stop it",
            "truth": "it runs",
            "facts": {"machine": "vm", "path": "/x"},
        }
    }


def causes() -> list[type[NovacronError]]:
    found = [kind for kind in vars(kinds).values() if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, NovacronError)]


@pytest.mark.parametrize("kind", causes(), ids=lambda kind: kind.__name__)
def test_each_cause_has_its_own_exit_code(kind: type[NovacronError], fail: Any) -> None:
    code, _, err = fail(kind("what happened"))
    assert code == kind.exit_code
    assert f"({kind.code}): what happened" in err


def test_no_two_causes_share_a_code() -> None:
    assert len({kind.code for kind in causes()}) == len(causes())
    assert len({kind.exit_code for kind in causes()}) == len(causes())
    assert all(0 < kind.exit_code < 126 for kind in causes())


def test_every_cause_explains_itself_for_the_reference_page() -> None:
    assert all("__doc__" in vars(kind) and kind.__doc__ for kind in causes())


def test_the_json_flag_counts_wherever_it_stands(fail: Any) -> None:
    for flags in ((JSON_FLAG,), ("--profile", "x", JSON_FLAG)):
        _, out, err = fail(MachineError("no"), *flags)
        assert out == ""
        assert json.loads(err)["error"]["code"] == "machine"


def test_an_error_of_the_system_is_an_error_and_no_traceback(fail: Any) -> None:
    code, _, err = fail(PermissionError(13, "Permission denied", "/x"))
    assert code == 1
    assert "Permission denied" in err
    assert "hint" in err


def test_an_interrupt_ends_as_a_cancellation(fail: Any) -> None:
    assert fail(KeyboardInterrupt())[0] == kinds.Cancelled.exit_code
    assert fail(click.Abort())[0] == kinds.Cancelled.exit_code


def test_wrong_usage_ends_with_two(fail: Any) -> None:
    code, _, err = fail(click.UsageError("no such option"))
    assert code == 2
    assert "no such option" in err


# Commands of plugins.


def test_the_commands_of_plugins_stand_beside_those_of_the_shell() -> None:
    state = Installed(plugin("a", [click.Command("hello", callback=lambda: click.echo("hi"))]))
    shown = run(root(), state, "--help").output
    assert "hello" in shown
    assert "node" in shown
    assert run(root(), state, "hello").output == "hi\n"


def test_groups_of_one_name_are_one_group_with_the_commands_of_all() -> None:
    state = Installed(
        plugin("a", [group("machine", "list")]),
        plugin("b", [group("machine", "show"), group("node", "status")]),
    )
    for words in (("machine", "list"), ("machine", "show"), ("node", "start"), ("node", "status")):
        assert run(root(), state, *words).output == f"{words[1]}\n"


def test_two_commands_of_one_name_are_a_clash_that_names_the_second_and_keeps_the_first(
    capfd: pytest.CaptureFixture[str],
) -> None:
    state = Installed(
        plugin("a", [click.Command("hello", callback=lambda: click.echo("first"))]),
        plugin("b", [click.Command("hello", callback=lambda: click.echo("second"))]),
    )
    with click.Context(root(), obj=state) as context:
        command = root().get_command(context, "hello")
    assert command is not None
    err = capfd.readouterr().err
    assert "'hello'" in err
    assert "'b'" in err
    assert CliRunner().invoke(command).output == "first\n"


BROKEN: dict[str, Any] = {
    "raises": RuntimeError("broken on purpose"),
    "raises with markup": RuntimeError("[/bold] is no end of anything"),
    "a number": 5,
    "no list": click.Command("alone"),
    "text": "hello",
    "a list of text": ["hello"],
    "a list of nothing": [None],
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_plugin_with_broken_commands_is_named_and_the_others_work(
    broken: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    good = [click.Command("hello", callback=lambda: click.echo("hi"))]
    state = Installed(plugin("bad", broken), plugin("good", good))
    shell_root = root()
    with click.Context(shell_root, obj=state) as context:
        assert shell_root.list_commands(context) == ["hello", "node"]
    assert "'bad'" in capfd.readouterr().err


# The real thing.


def novacron(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NOVACRON_")}
    return subprocess.run(
        [str(NOVACRON), *arguments],
        cwd=folder,
        env=kept | {"XDG_CONFIG_HOME": str(folder), "XDG_STATE_HOME": str(folder)} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_broken_file_does_not_hide_the_commands_that_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "novacron.toml").write_text("[node]\nnaem = 'x'\n")
    done = novacron(tmp_path, "node", "start")
    assert done.returncode == 2
    assert "naem" in done.stderr
    assert "'name'" in done.stderr
    assert "Traceback" not in done.stderr
    assert novacron(tmp_path, "--help").returncode == 0


HOSTILE_STARTS: list[Sequence[str]] = [
    ["--config", "absent.toml", "node", "start"],
    ["--config", ".", "node", "start"],
    ["--profile", "no-such-profile", "node", "start"],
]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", HOSTILE_STARTS, ids=" ".join)
def test_a_start_that_cannot_be_says_why_and_what_to_do(
    tmp_path: Path, arguments: Sequence[str]
) -> None:
    done = novacron(tmp_path, "--json", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert json.loads(done.stderr)["error"]["code"] == "config"


@pytest.mark.slow
def test_an_unknown_log_level_is_refused_and_no_traceback(tmp_path: Path) -> None:
    done = novacron(tmp_path, "node", "start", NOVACRON_NODE__LOG_LEVEL="loud")
    assert done.returncode == 2
    assert "'loud'" in done.stderr
    assert "Traceback" not in done.stderr
