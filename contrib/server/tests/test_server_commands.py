"""The commands, as somebody types them, against an API on a real socket."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import novacron_server
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from novacron import (
    Cancelled,
    ConfigError,
    Conflict,
    NodeUnavailable,
    NotFound,
    PluginManager,
    PluginSource,
    Refused,
    ShellState,
    TransportError,
)
from novacron_server._client import Client
from novacron_server._commands import _settings, commands
from novacron_server._units import (
    parse_milliseconds,
    parse_rate,
    parse_size,
    plain_table,
    show_rate,
    show_seconds,
    show_size,
)
from rich.console import Console


class Terminal:
    """Somebody at a shell, with a configuration of their own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "novacron.toml"
        self.path.write_text(f'[node]\nname = "alpha"\nstate_dir = "{folder}"\n')
        # As the kernel does: two groups of one name are one.
        self.root = click.Group("novacron")
        for command in commands():
            self.root.add_command(command)
        self.state = self.fresh_state()

    def fresh_state(self) -> ShellState:
        state = ShellState(config_path=self.path)
        state.manager = PluginManager.load(
            sources=[
                PluginSource(
                    name="server",
                    distribution="novacron-server",
                    version="0",
                    plugin=novacron_server,
                )
            ]
        )
        return state

    def type(self, line: str) -> str:
        """The output of a command; raises what it raised."""
        self.state = self.fresh_state()
        result = self.run(line)
        if result.exception is not None:
            raise result.exception
        return result.stdout

    def run(self, line: str) -> Result:
        return CliRunner().invoke(self.root, line.split(), obj=self.state, standalone_mode=False)

    def complete(self, line: str, typed: str) -> list[str]:
        shell = ShellComplete(self.root, {"obj": self.fresh_state()}, "novacron", "_NOVACRON")
        return [item.value for item in shell.get_completions(line.split(), typed)]


@pytest.fixture
def terminal(running: Any, tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


def create(terminal: Terminal) -> None:
    terminal.type("machine create vm --driver paper --memory 2MiB --set port=80 --set a.b=x")


def test_a_machine_is_made_shown_and_listed(terminal: Terminal) -> None:
    assert "create vm: succeeded" in terminal.type(
        "machine create vm --driver paper --memory 2MiB --set port=80 --set a.b=x"
    )
    machine = json.loads(terminal.type("machine show vm --json"))
    assert machine["settings"] == {"port": 80, "a": {"b": "x"}}
    assert machine["memory_bytes"] == 2 << 20
    assert "2.0 MiB" in terminal.type("machine list")
    assert "settings.a.b" in terminal.type("machine show vm")
    assert [m["name"] for m in json.loads(terminal.type("machine list --json"))] == ["vm"]


def test_a_machine_is_paused_resumed_stopped_started_and_deleted(
    terminal: Terminal, client: Client
) -> None:
    create(terminal)
    for verb, state in (
        ("pause", "paused"),
        ("resume", "running"),
        ("stop", "stopped"),
        ("start", "running"),
    ):
        ended = json.loads(terminal.type(f"machine {verb} vm --json"))
        assert (ended["kind"], ended["state"]) == (verb, "succeeded")
        assert client.machine("vm")["state"] == state
    with pytest.raises(Conflict) as failed:
        terminal.type("machine delete vm")
    assert failed.value.facts["operation"].startswith("op-")
    terminal.type("machine delete vm --force")
    assert client.machines() == []


def test_a_machine_is_made_and_not_started(terminal: Terminal, client: Client) -> None:
    operation = terminal.type("machine create vm --driver paper --no-start --detach").strip()
    client.wait(operation)
    assert client.machine("vm")["state"] == "stopped"


def test_without_a_driver_the_installed_ones_are_named(terminal: Terminal) -> None:
    with pytest.raises(ConfigError) as wrong:
        terminal.type("machine create vm")
    assert "--driver" in wrong.value.hint


def test_settings_come_from_a_file_and_are_overridden_by_flags(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    file.write_text('port = 1\nhost = "h"\n[deep]\nx = 1\n')
    assert _settings(file, ["port=2", "deep.y=[1, 2]", "name=a=b", "flag=true", "empty="]) == {
        "port": 2,
        "host": "h",
        "deep": {"x": 1, "y": [1, 2]},
        "name": "a=b",
        "flag": True,
        "empty": "",
    }


@pytest.mark.parametrize("given", ["novalue", "=1", "a..b=1", "port.x=1"])
def test_a_setting_that_cannot_be_read_is_named(tmp_path: Path, given: str) -> None:
    file = tmp_path / "vm.toml"
    file.write_text("port = 1")
    with pytest.raises(ConfigError, match="--set"):
        _settings(file, [given])
    file.write_text("port = ")
    with pytest.raises(ConfigError, match="not sound TOML"):
        _settings(file, [])
    with pytest.raises(ConfigError, match="cannot be read"):
        _settings(tmp_path / "none.toml", [])


def test_a_plan_is_shown_and_nothing_moves(terminal: Terminal, client: Client) -> None:
    create(terminal)
    shown = terminal.type("migrate vm beta --plan --max-downtime 1.5s --rate 8mbit")
    assert "vm to beta: nothing stands in the way" in shown
    assert "2.0 s (1.0 s to 3.0 s)" in shown
    assert "✓ nothing stands in the way of this move" in shown
    assert "1500 ms" in shown
    assert "8.0 Mbit/s" in shown
    plan = json.loads(terminal.type("migrate vm beta --plan --json --mode hybrid"))
    assert (plan["mode"], plan["target"]) == ("hybrid", "beta")
    assert len(client.operations()) == 1


def test_a_blocked_plan_names_every_obstacle_with_its_cure_and_ends_as_a_refusal_does(
    terminal: Terminal, tmp_path: Path
) -> None:
    create(terminal)
    file = tmp_path / "plan.json"
    terminal.state = terminal.fresh_state()
    ended = terminal.run(f"migrate vm gamma --plan --export {file}")
    assert ended.return_value == Refused.exit_code
    shown = ended.stdout
    assert "vm to gamma: would be refused, one obstacle" in shown
    # What blocks comes first, and what a peer writes moves no cursor.
    assert shown.index("✗ cpu.feature-missing (target gamma)") < shown.index("! qemu.older")
    assert "has what gamma has not: [2Javx2" in shown
    assert "cure: set its cpu to Westmere" in shown
    assert "\x1b" not in shown
    terminal.state = terminal.fresh_state()
    ended = terminal.run("migrate vm gamma --plan --json")
    assert ended.return_value == Refused.exit_code
    assert json.loads(ended.stdout) == json.loads(file.read_text())


def test_a_plan_is_only_exported_when_one_is_asked_for_and_to_where_it_can_be(
    terminal: Terminal, tmp_path: Path, client: Client
) -> None:
    create(terminal)
    with pytest.raises(ConfigError, match="goes with --plan"):
        terminal.type(f"migrate vm beta --export {tmp_path / 'plan.json'}")
    with pytest.raises(ConfigError, match="cannot be written"):
        terminal.type(f"migrate vm beta --plan --export {tmp_path / 'none' / 'plan.json'}")
    assert [operation["kind"] for operation in client.operations()] == ["create"]


def test_a_move_is_told_in_lines_where_there_is_no_terminal(
    running: Any, terminal: Terminal
) -> None:
    create(terminal)
    running.let(3)
    shown = terminal.type("migrate vm beta --max-downtime 300 --rate 1MB")
    assert "copy" in shown
    assert "migrate vm to beta: succeeded in" in shown
    assert "down 12 ms" in shown
    assert "\x1b" not in shown


def test_a_move_is_shown_live_on_a_terminal(running: Any, terminal: Terminal) -> None:
    create(terminal)
    running.let(3)
    terminal.state = terminal.fresh_state()
    terminal.state.console = Console(force_terminal=True, width=100, height=20)
    result = terminal.run("migrate vm beta")
    assert result.exception is None
    assert "\x1b[" in result.stdout
    assert "succeeded" in result.stdout


def test_a_move_that_fails_says_where_the_machine_runs(terminal: Terminal) -> None:
    create(terminal)
    with pytest.raises(TransportError) as failed:
        terminal.type("migrate vm nowhere")
    assert failed.value.truth == "the machine runs on alpha"


def test_ctrl_c_leaves_a_move_alone_and_says_how_to_come_back(
    running: Any, terminal: Terminal, client: Client
) -> None:
    create(terminal)
    running.until(lambda: running.service._shared.streams == 0)

    # Whatever handlers other tests left; the second one only ends a wait that began between the
    # arrival of the first signal and its handling.
    handlers = {
        number: signal.signal(number, handler)
        for number, handler in (
            (signal.SIGINT, signal.default_int_handler),
            (signal.SIGUSR1, lambda *_: None),
        )
    }
    over = threading.Event()
    waiting = threading.get_ident()

    def interrupt() -> None:
        running.until(lambda: running.service._shared.streams == 1)
        signal.pthread_kill(waiting, signal.SIGINT)
        while not over.wait(0.1):
            signal.pthread_kill(waiting, signal.SIGUSR1)

    finger = threading.Thread(target=interrupt)
    finger.start()
    terminal.state = terminal.fresh_state()
    try:
        result = terminal.run("migrate vm beta")
    finally:
        over.set()
        finger.join(20)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert result.exception is None
    (move,) = client.operations(state="running")
    assert f"novacron operation watch {move['id']}" in result.stderr
    assert f"novacron operation cancel {move['id']}" in result.stderr
    running.let(3)
    assert "succeeded" in terminal.type(f"operation watch {move['id']}")


def test_operations_are_listed_shown_watched_and_cancelled(
    running: Any, terminal: Terminal, client: Client
) -> None:
    create(terminal)
    move = terminal.type("migrate vm beta --detach").strip()
    assert move in terminal.type("operation list --state running --json")
    assert "migrate" in terminal.type("operation list --machine vm")
    assert "beta" in terminal.type(f"operation show {move}")
    assert "the machine runs on alpha" in terminal.type(f"operation cancel {move}")
    assert client.operation(move)["state"] == "cancelled"
    with pytest.raises(Cancelled):
        terminal.type(f"operation watch {move}")
    lines = terminal.type(f"operation watch {move} --json").splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == list(range(1, len(lines) + 1))
    with pytest.raises(NotFound):
        terminal.type("operation show op-none")
    assert terminal.type("operation list --machine other --json").strip() == "[]"


def test_the_node_and_its_peers_are_shown(terminal: Terminal) -> None:
    assert "alpha" in terminal.type("node status")
    assert json.loads(terminal.type("node status --json"))["mode"] == "internet"
    shown = terminal.type("node peers")
    assert "80.5 ms" in shown
    assert "no: refused" in shown


def test_names_and_ids_are_completed_by_asking_the_node(running: Any, terminal: Terminal) -> None:
    create(terminal)
    move = terminal.type("migrate vm beta --detach").strip()
    assert terminal.complete("machine show", "v") == ["vm"]
    assert terminal.complete("machine show", "x") == []
    assert terminal.complete("migrate vm", "") == ["beta", "gamma", "auto"]
    assert move in terminal.complete("operation show", "op-")
    assert terminal.complete("operation cancel", "") == [move]
    running.let(3)


def test_completion_is_silent_where_no_node_runs(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    assert terminal.complete("machine show", "") == []
    assert terminal.complete("operation cancel", "") == []
    terminal.path.write_text("not toml")
    assert terminal.complete("machine show", "") == []
    assert terminal.complete("machine create vm --driver", "") == []


@pytest.mark.parametrize(
    "line",
    ["machine list", "machine console vm", "migrate vm beta", "node status", "node stop"],
)
def test_without_a_node_every_command_says_how_to_start_one(tmp_path: Path, line: str) -> None:
    with pytest.raises(NodeUnavailable) as gone:
        Terminal(tmp_path).type(line)
    assert "novacron node start" in gone.value.hint


# Units.


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_size, "64MiB", 64 << 20),
        (parse_size, "64Mi", 64 << 20),
        (parse_size, "64MB", 64_000_000),
        (parse_size, " 1.5 GiB ", 3 << 29),
        (parse_size, "1048576", 1 << 20),
        (parse_size, "7b", 7),
        (parse_milliseconds, "300", 300),
        (parse_milliseconds, "300ms", 300),
        (parse_milliseconds, "0.3s", 300),
        (parse_milliseconds, "2 min", 120_000),
        (parse_rate, "100mbit", 12_500_000),
        (parse_rate, "100Mbit/s", 12_500_000),
        (parse_rate, "1gbit", 125_000_000),
        (parse_rate, "10MB", 10_000_000),
        (parse_rate, "10MiB/s", 10 << 20),
        (parse_rate, "800bit", 100),
        (parse_rate, "5000", 5000),
    ],
)
def test_units_are_read_as_people_write_them(
    parse: Callable[[str], int], text: str, value: int
) -> None:
    assert parse(text) == value


@pytest.mark.parametrize("parse", [parse_size, parse_milliseconds, parse_rate])
@pytest.mark.parametrize(
    "text",
    ["", "x", "-1", "0", "1e9", "MiB", "5 parsecs", "1_000", "٣", "9" * 40, "1.2.3", "nan", "0.01"],
)
def test_what_is_no_unit_is_refused_with_examples(parse: Callable[[str], int], text: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        parse(text)
    assert wrong.value.hint


@pytest.mark.parametrize("text", ["100mbps", "10MBps", "bit", "mbbit", "5bit"])
def test_a_rate_that_could_mean_two_things_is_refused(text: str) -> None:
    if text == "mbbit":
        text = "5mbbit"
    with pytest.raises(ConfigError):
        parse_rate(text)


def test_a_table_in_a_pipe_has_one_line_per_row_whatever_is_in_it() -> None:
    rows = [("vm", None, "a" * 200), ("longer-name", 5, "two\nlines\x1b[31m")]
    assert plain_table(("name", "n", "note"), rows) == [
        "name         n  note",
        "vm              " + "a" * 200,
        "longer-name  5  two lines [31m",
    ]


def test_figures_are_shown_as_people_read_them() -> None:
    assert [show_size(n) for n in (0, 1023, 1024, 3 << 19, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 MiB",
        "5.0 TiB",
    ]
    assert [show_rate(n) for n in (1, 12_500_000, 125_000_000)] == [
        "8.0 bit/s",
        "100.0 Mbit/s",
        "1.00 Gbit/s",
    ]
    assert [show_seconds(n) for n in (0.25, 59.4, 125, 7260)] == [
        "0.2 s",
        "59 s",
        "2 min 5 s",
        "2 h 1 min",
    ]
