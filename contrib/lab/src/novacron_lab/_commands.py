"""``novacron lab``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from attrs import asdict
from click.shell_completion import CompletionItem
from novacron import ConfigError, ShellState

from novacron_lab import _state
from novacron_lab._lab import Lab, is_alive
from novacron_lab._measure import Row
from novacron_lab._measure import measure as run_measurement
from novacron_lab._spec import LabPath, LinkSpec
from novacron_lab._text import LinkText, read_file, seconds, size

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT = "lab"


def _complete_labs(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(name) for name in Lab.names() if name.startswith(incomplete)]


def _complete_sites(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    name = ctx.params.get("lab") or DEFAULT
    if name not in Lab.names():
        return []
    sites = Lab.open(name).sites
    return [CompletionItem(site.name) for site in sites if site.name.startswith(incomplete)]


lab_option = click.option(
    "--lab",
    default=DEFAULT,
    show_default=True,
    metavar="NAME",
    shell_complete=_complete_labs,
    help="The lab; several can be up beside each other.",
)


def figure_options(command: F) -> F:
    """The figures of a link."""
    for option in (
        click.option("--reorder-by", metavar="MS", help="How late they come."),
        click.option("--reorder", metavar="PERCENT", help="Packets that are overtaken."),
        click.option("--queue", metavar="BYTES", help="Drop-tail queue.  [one BDP, 1 MB at least]"),
        click.option("--trace-back", type=click.Path(path_type=Path), help="One for the way back."),
        click.option(
            "--trace", type=click.Path(path_type=Path), help="A delivery trace, not a rate."
        ),
        click.option("--bursts", metavar="P,R[,LOSS]", help="Loss in bursts (Gilbert-Elliott), %."),
        click.option("--loss", metavar="PERCENT", help="Random loss."),
        click.option("--jitter", metavar="MS", help="More or less delay; the order stays."),
        click.option("--delay", metavar="MS", help="One way."),
        click.option("--rtt", metavar="MS", help="Round trip, half of it each way."),
        click.option("--rate", metavar="MBIT", help="Of IP packets."),
    ):
        command = option(command)
    return command


@click.group()
def lab() -> None:
    """Sites joined by wide-area links, on this machine.

    Figures are for both ways, or THERE/BACK: --rate 100/20. Units may be written: 1gbit, 350us.
    """


@lab.command()
@click.argument(
    "file", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option("--lab", metavar="NAME", help="What to call it.  [default: as the file says, or lab]")
@figure_options
@click.option("--outage", "outages", multiple=True, metavar="AT+FOR", help="Seconds, as 10+30.")
@click.option(
    "--engine",
    type=click.Choice(("auto", "emulator", "netem", "veth")),
    help="Ours, the kernel's, or a bare cable.  [default: auto]",
)
@click.option("--site", "sites", multiple=True, help="A site; twice or more.  [default: a, b]")
@click.option("--seed", type=int, help="Of loss and jitter.  [default: 1]")
@click.option("--mtu", type=int, help="Bytes of an IP packet.  [default: 1500]")
@click.option("--cc", metavar="NAME", help="TCP's congestion control in the sites.")
@click.option("--tcp-buffer", metavar="BYTES", help="The most that TCP's buffers grow to.")
@click.option("--no-offload", is_flag=True, help="Hand every packet over on its own.")
@click.pass_obj
def up(
    state: ShellState,
    /,
    file: Path | None,
    lab: str | None,
    outages: tuple[str, ...],
    engine: str | None,
    sites: tuple[str, ...],
    seed: int | None,
    mtu: int | None,
    cc: str | None,
    tcp_buffer: str | None,
    no_offload: bool,
    **figures: Any,
) -> None:
    """Bring a lab up, as FILE says or as the options say."""
    said = {key: value for key, value in figures.items() if value is not None}
    if outages:
        said["outages"] = list(outages)
    if engine is not None:
        said["engine"] = engine
    if file is None:
        names = sites or ("a", "b")
        there, back = LinkText(**said).links()
        arguments: dict[str, Any] = {
            "sites": names,
            "links": {
                (a, b): there if i < j else back
                for i, a in enumerate(names)
                for j, b in enumerate(names)
                if a != b
            },
        }
    elif said or sites:
        option = "--" + next(iter(said), "site").replace("_", "-")
        raise ConfigError(f"{option} stands beside a file", hint="write it into the file")
    else:
        arguments = read_file(file)
    extra = {
        "name": lab,
        "seed": seed,
        "mtu": mtu,
        "congestion_control": cc,
        "tcp_buffer_bytes": None if tcp_buffer is None else int(size(tcp_buffer, "--tcp-buffer")),
        "offload": False if no_offload else None,
    }
    arguments |= {key: value for key, value in extra.items() if value is not None}
    _show_lab(state, Lab.up(**{"name": DEFAULT, **arguments}, keep=True))


def _show_lab(state: ShellState, made: Lab) -> None:
    about = made.state
    if state.json:
        state.print_json(about.to_json())
        return
    state.table(
        f"lab {made.name}",
        ("site", "namespace", "IPv4", "IPv6"),
        [
            (site.name, site.namespace, " ".join(site.addresses), " ".join(site.addresses6))
            for site in about.sites
        ],
    )
    state.table("links", ("from", "to", "engine", "figures"), _link_rows(about.paths))


def _link_rows(paths: tuple[LabPath, ...]) -> list[tuple[str, str, str, str]]:
    return [
        (source, sink, link.engine, described(link, path.round_trip_s))
        for path in paths
        for source, sink, link in path.directions()
    ]


def described(link: LinkSpec, round_trip_s: float) -> str:
    """A direction's figures in words."""
    if link.engine == "veth":
        return "a bare cable"
    rate = f"{link.rate_bit_per_s / 1e6:g} Mbit/s" if link.rate_bit_per_s else "no limit"
    parts = [f"trace {link.trace}" if link.trace else rate, f"{link.delay_s * 1e3:g} ms"]
    if link.jitter_s:
        parts[-1] += f" ± {link.jitter_s * 1e3:g} ms"
    if link.loss:
        parts.append(f"loss {link.loss * 100:g} %")
    if link.bursts:
        b = link.bursts
        parts.append(f"bursts {b.begin * 100:g} % / {b.end * 100:g} % / {b.loss * 100:g} %")
    if link.reorder:
        parts.append(f"reorder {link.reorder * 100:g} % by {link.late_s * 1e3:g} ms")
    if link.rate_bit_per_s or link.trace:
        parts.append(f"queue {link.queue_for(round_trip_s):,} bytes")
    parts += [f"outage at {o.begin_s:g} s for {o.length_s:g} s" for o in link.outages]
    return ", ".join(parts)


@lab.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@lab_option
@click.argument("site", shell_complete=_complete_sites)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(lab: str, site: str, command: tuple[str, ...]) -> None:
    """Run a command in a site; its exit code is this one's."""
    argv = Lab.open(lab).command(site, command)
    os.execvp(argv[0], argv)


@lab.command()
@lab_option
@click.pass_obj
def stats(state: ShellState, lab: str) -> None:
    """What each direction did since the lab came up."""
    found = Lab.open(lab).stats()
    state.show(
        {wire: asdict(values) for wire, values in found.items()},
        f"lab {lab}",
        ("wire", "sent", "MB", "arrived", "MB", "lost", "queue full", "outage", "queue now", ""),
        [
            (
                wire,
                f"{s.in_packets:,}",
                f"{s.in_bytes / 1e6:,.1f}",
                f"{s.forwarded_packets:,}",
                f"{s.forwarded_bytes / 1e6:,.1f}",
                f"{s.lost_packets:,}",
                f"{s.taildrop_packets:,}",
                f"{s.outage_packets:,}",
                f"{s.queue_bytes:,} bytes",
                "down" if s.down else "",
            )
            for wire, s in found.items()
        ],
    )


@lab.command()
@lab_option
@click.argument("a", shell_complete=_complete_sites)
@click.argument("b", shell_complete=_complete_sites)
@click.option("--for", "length", required=True, metavar="SECONDS", help="How long.")
@click.option("--after", default="0", metavar="SECONDS", help="From when on.  [default: now]")
@click.option("--path", type=int, help="One path of several.")
@click.pass_obj
def outage(
    state: ShellState, lab: str, a: str, b: str, length: str, after: str, path: int | None
) -> None:
    """Cut the link between two sites for a while."""
    length_s, after_s = seconds(length, "--for"), seconds(after, "--after")
    Lab.open(lab).outage(a, b, length_s, after_s=after_s, path=path)
    if state.json:
        state.print_json({"lab": lab, "sites": [a, b], "for_s": length_s, "after_s": after_s})
    else:
        when = f"in {after_s:g} s" if after_s else "now"
        click.echo(f"{a} and {b} are cut off from each other for {length_s:g} s, {when}.")


@lab.command("set")
@lab_option
@click.argument("a", shell_complete=_complete_sites)
@click.argument("b", shell_complete=_complete_sites)
@click.option("--path", type=int, help="One path of several.")
@figure_options
@click.pass_obj
def set_(state: ShellState, /, lab: str, a: str, b: str, path: int | None, **figures: Any) -> None:
    """Change figures of a link while it is used; THERE is from A to B."""
    there, back = LinkText(**figures).figures()
    if not there:
        raise ConfigError("no figure is given", hint="--rate 10, for example; see --help")
    opened = Lab.open(lab)
    opened.set_link(a, b, path=path, back=False, **_replacing(there))
    opened.set_link(b, a, path=path, back=False, **_replacing(back))
    _show_lab(state, opened)


def _replacing(figures: dict[str, Any]) -> dict[str, Any]:
    """A rate takes the place of a trace, and the other way round."""
    if "rate_bit_per_s" in figures and "trace" not in figures:
        return {**figures, "trace": None}
    if "trace" in figures and "rate_bit_per_s" not in figures:
        return {**figures, "rate_bit_per_s": None}
    return figures


@lab.command()
@lab_option
@click.option("--all", "every", is_flag=True, help="All labs of this machine.")
@click.option("--kill", is_flag=True, help="End what still runs in the sites, too.")
@click.pass_obj
def down(state: ShellState, lab: str, every: bool, kill: bool) -> None:
    """Take a lab down: its links, its namespaces."""
    names = Lab.names() if every else [lab]
    inside = {name: Lab.open(name).down(end_processes=kill) for name in names}
    if state.json:
        state.print_json(
            {"down": names, "processes": [p for each in inside.values() for p in each]}
        )
        return
    for name, processes in inside.items():
        click.echo(f"The lab {name} is down.")
        if processes:
            word = "were told to end" if kill else "go on, cut off (--kill would have ended them)"
            click.echo(f"Processes in its sites {word}: {', '.join(map(str, processes))}")
    if not names:
        click.echo("There is no lab.")


@lab.command("list")
@click.pass_obj
def list_(state: ShellState) -> None:
    """The labs of this machine."""
    labs = [(name, _state.read(name)) for name in Lab.names()]
    state.show(
        [{**about.to_json(), "up": is_alive(about)} for _, about in labs],
        "",
        ("lab", "", "sites", "links"),
        [
            (
                name,
                "up" if is_alive(about) else "ended; take it down",
                " ".join(site.name for site in about.sites),
                "\n".join(f"{a} > {b}: {words}" for a, b, _, words in _link_rows(about.paths)),
            )
            for name, about in labs
        ],
    )


@lab.command()
@click.option(
    "--seconds", type=click.FloatRange(0.2, 60), default=3.0, show_default=True, help="Per rate."
)
@click.pass_obj
def measure(state: ShellState, seconds: float) -> None:
    """What the emulated links really do on this machine: rate, round trip, loss, processor.

    It makes labs of its own and takes a minute or two.
    """

    def told(row: Row) -> None:
        if not state.json:
            click.echo(f"{row.what:<50} {row.asked:>8} {row.found:>16}")

    rows = run_measurement(seconds, told)
    if state.json:
        state.print_json([asdict(row) for row in rows])
