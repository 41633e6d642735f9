"""The command ``novacron demo``."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from novacron import ConfigError, InternalError, NovacronError

if TYPE_CHECKING:
    from novacron import ShellState

_SIZE: Final = re.compile(r"([0-9]{1,9})\s*([kmg])i?b?", re.ASCII)
_UNITS: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_memory(text: str) -> int:
    """Bytes: ``64MiB``. Raises ConfigError."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise ConfigError(f"{text!r:.40} is no size of a memory", hint="write it like 64MiB")
    return int(match[1]) * _UNITS[match[2]]


def _state(ctx: click.Context) -> ShellState:
    from novacron import ShellState

    return ctx.ensure_object(ShellState)


def _set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        _state(ctx).json = True


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Whoever asks this process to end gets what Ctrl-C gets: everything started is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        # Once: a second signal must not break off the ending of things, which is bounded.
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command("demo")
@click.option(
    "--wan",
    default="100mbit,80ms",
    show_default=True,
    metavar="RATE,RTT",
    help="The link between the nodes: its rate and its round trip.",
)
@click.option(
    "--machine",
    type=click.Choice(("wasm", "qemu")),
    default="wasm",
    show_default=True,
    help="What moves: a key-value store in WebAssembly, or a Linux guest of QEMU.",
)
@click.option("--memory", metavar="SIZE", help="The machine's memory.  [wasm: 64MiB, qemu: 128MiB]")
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Work in this folder and leave configuration and logs there.",
)
@click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_json,
    help="Print JSON.",
)
@click.pass_context
def demo(ctx: click.Context, wan: str, machine: str, memory: str | None, keep: Path | None) -> None:
    """Move a machine to another node and back, and prove that nothing was lost.

    Two nodes with a fresh certificate authority start on this host, with a link between them that
    is as slow and as long as you say. Nothing of it is left afterwards. The exit code is 0 only if
    the proof holds.
    """
    from novacron_demo._demo import MEMORY_BYTES, Options, run
    from novacron_demo._show import screen
    from novacron_demo.wan import Wan

    state = _state(ctx)
    options = Options(
        wan=Wan.parse(wan),
        machine=machine,
        memory_bytes=MEMORY_BYTES[machine] if memory is None else parse_memory(memory),
        keep=keep,
    )
    show = screen(state.console, json=state.json)
    try:
        with _ended_in_order():
            report = run(options, show)
    except NovacronError as error:
        if logs := error.facts.get("logs"):
            error.hint = "; ".join(filter(None, [error.hint, f"what the nodes said: {logs}"]))
        raise
    if state.json:
        state.print_json(report.to_json())
    else:
        show.report(report)
        if keep is not None:
            state.console.print(f"Configuration and logs are in {keep}.", markup=False)
    if not report.holds:
        raise InternalError(
            "the proof does not hold: " + "; ".join(report.faults),
            hint="run it again with --keep DIR and report it with the logs in that folder",
        )
