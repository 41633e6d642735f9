"""``novacron flags``: see, explain and change what is rolled out."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import asdict, define
from novacron import DOMAINS, ConfigError, MoveContext, NotFound, ShellState

from novacron_flags_openfeature._settings import FILE_PROVIDER, FOLDER, PREFIX, FlagsSettings

# What evaluates flags is loaded by the commands that need it: this module is loaded by all others.
if TYPE_CHECKING:
    from novacron_flags_openfeature._provider import Client
    from novacron_flags_openfeature._rollout import Rollout


@click.group("flags")
def flags_group() -> None:
    """See and change which machines move through what is new, and what was rolled back."""


@define
class _Opened:
    """The flags of this host's node, by its files; the node need not run."""

    settings: FlagsSettings
    rollout: Rollout
    client: Client

    def flags(self) -> dict[str, Any]:
        """The provider's flags, as far as it can list them; no provider but the file's can."""
        from novacron_flags_openfeature._file import FileProvider

        provider = self.client.provider
        return dict(provider.flags()) if isinstance(provider, FileProvider) else {}

    @property
    def damage(self) -> str:
        from novacron_flags_openfeature._file import FileProvider

        provider = self.client.provider
        return provider.damage if isinstance(provider, FileProvider) else ""


@contextmanager
def _opened(state: ShellState) -> Iterator[_Opened]:
    from novacron_flags_openfeature._provider import Client, make_provider
    from novacron_flags_openfeature._rollout import make_rollout

    settings: FlagsSettings = state.config.sections["service.flags"]
    node = state.config.node
    client = Client(make_provider(settings, node.state_dir / FOLDER, renew=False))
    try:
        yield _Opened(settings, make_rollout(settings, node.name, node.state_dir, client), client)
    finally:
        client.close()


def _asker() -> str:
    return getpass.getuser()


def _value(opened: _Opened, flag: str, variant: str, value: str) -> tuple[str, str]:
    """The variant and the value that the arguments name. Raises NotFound, ConfigError."""
    from novacron_flags_openfeature._percentage import the_variant

    if value:
        return variant, value
    known = opened.flags()
    if flag not in known:
        names = ", ".join(known) or "none that the provider can list"
        raise NotFound(f"there is no flag {flag!r}", hint=f"known: {names}; or give --value")
    variant = variant or the_variant(flag, known[flag])
    variants = known[flag]["variants"]
    if variant not in variants:
        raise NotFound(
            f"flag {flag!r} has no variant {variant!r}", hint=f"it has: {', '.join(variants)}"
        )
    if not variants[variant]:
        raise ConfigError(
            f"the variant {variant!r} of {flag!r} is what is configured: it has no provider",
            hint="name one that has, by --variant or --value",
        )
    return variant, str(variants[variant])


_variant_option = click.option("--variant", default="", help="Needed if there are several.")
_value_option = click.option(
    "--value", default="", help="The provider itself; for flags that cannot be listed."
)


@flags_group.command("list")
@click.pass_obj
def list_(state: ShellState) -> None:
    """Show the flags, how their moves went on this node, and what is rolled back."""
    with _opened(state) as opened:
        told = _told(opened)
        if state.json:
            state.print_json(told)
            return
        if opened.damage:
            state.err.print(opened.damage, style="red", markup=False)
        if opened.rollout.decisions.doubt:
            state.err.print(opened.rollout.decisions.doubt, style="red", markup=False)
        if not opened.settings.enabled:
            state.err.print("the flags are off: [service.flags] enabled = true", style="yellow")
        rows = [
            (
                flag["flag"],
                one["variant"],
                one["value"],
                "by rule" if one["percent"] is None else f"{one['percent']:g} %",
                one["moves"],
                one["failures"],
                f"{one['evidence']:.3g} of {one['needed']:g}",
                one["rolled_back"]["why"] if one["rolled_back"] else "",
            )
            for flag in told["flags"]
            for one in flag["variants"]
        ]
        columns = ("flag", "variant", "provider", "share", "moves", "failed", "evidence", "refused")
        state.table("flags", columns, rows)


def _told(opened: _Opened) -> dict[str, Any]:
    from novacron_flags_openfeature._percentage import percentages

    rollout, flags = opened.rollout, opened.flags()
    refused = rollout.refused()
    seen = {flag for flag, _ in (*rollout.budget.known(), *refused)}
    told = []
    for name in sorted(seen | set(flags)):
        flag = flags.get(name, {})
        shares = percentages(flag) if flag else {}
        rows = [(variant, str(value)) for variant, value in flag.get("variants", {}).items()]
        listed = {value for _, value in rows}
        seen_here = (*rollout.budget.known(), *refused)
        others = {value for known, value in seen_here if known == name and value not in listed}
        rows += [("", value) for value in sorted(others)]
        told.append(
            {
                "flag": name,
                "state": flag.get("state", ""),
                "default": flag.get("defaultVariant") or "",
                "variants": [
                    {
                        "variant": variant,
                        "value": value,
                        "percent": shares.get(variant, 0.0 if shares else None),
                        **_stands(rollout, name, value),
                    }
                    for variant, value in rows
                ],
            }
        )
    return {
        "enabled": opened.settings.enabled,
        "damage": opened.damage,
        "doubt": rollout.decisions.doubt,
        "flags": told,
    }


def _stands(rollout: Rollout, flag: str, value: str) -> dict[str, Any]:
    verdict = rollout.budget.verdict(flag, value, "", time.time())
    rollback = rollout.refused().get((flag, value))
    return {
        "moves": verdict.moves,
        "failures": verdict.failures,
        "evidence": verdict.evidence,
        "needed": verdict.needed,
        "rolled_back": asdict(rollback) if rollback is not None else None,
    }


@flags_group.command("explain")
@click.argument("flag")
@click.option("--machine", required=True, help="The machine that would move.")
@click.option("--tenant", default="", help="Whose it is.")
@click.option("--target", default="", help="The node that it would move to.")
@click.option("--mode", default="", help="The mode; the node's own if not given.")
@click.pass_obj
def explain(
    state: ShellState, flag: str, machine: str, tenant: str, target: str, mode: str
) -> None:
    """Say which variant of FLAG a machine gets when it leaves this node, and why."""
    from novacron_flags_openfeature._percentage import percentages, place

    if not flag.startswith(PREFIX):
        raise ConfigError(f"{flag!r} chooses no provider", hint=f'such a flag begins "{PREFIX}"')
    domain = flag.removeprefix(PREFIX)
    mode = mode or state.config.node.mode
    # The protocol's version is no plugin's; the node that is asked knows which ones it speaks.
    plugins = domain in DOMAINS
    chosen = state.config.chosen(domain, mode) if plugins else "the newest"
    with _opened(state) as opened:
        move = MoveContext(
            machine=machine, tenant=tenant, source=state.config.node.name, target=target, mode=mode
        )
        available = list(state.manager.providers(domain)) if plugins else None
        answer = opened.rollout.answer(domain, chosen, available, move)
        if not answer.known and not opened.damage:
            raise NotFound(f"{flag}: {answer.why}", hint="see `novacron flags list`")
        shares = percentages(opened.flags().get(flag, {"state": ""}))
        told = {
            **asdict(answer),
            "machine": machine,
            "place": place(flag, machine) if shares else None,
            "percentages": shares,
            "damage": opened.damage,
        }
        if state.json:
            state.print_json(told)
            return
        click.echo(f"{machine} moves through {answer.used}: {answer.why}")
        if answer.variant:
            click.echo(f"variant {answer.variant} ({answer.value})")
        if told["place"] is not None:
            parts = ", ".join(f"{variant} {share:g} %" for variant, share in shares.items())
            click.echo(f"its place is at {told['place']:g} % of: {parts}")
        if opened.damage:
            click.echo(opened.damage)


@flags_group.command("rollback")
@click.argument("flag")
@_variant_option
@_value_option
@click.option("--why", default="an operator asked for it", help="For those who look later.")
@click.pass_obj
def rollback(state: ShellState, flag: str, variant: str, value: str, why: str) -> None:
    """Refuse a variant of FLAG from now on, for all machines, until it is restored."""
    with _opened(state) as opened:
        variant, value = _value(opened, flag, variant, value)
        standing = opened.rollout.refused().get((flag, value))
        made = standing or opened.rollout.decisions.roll_back(flag, variant, value, why, _asker())
        if state.json:
            state.print_json(asdict(made))
        else:
            click.echo(f"{flag}: {value} is refused since {made.at}: {made.why}")


@flags_group.command("restore")
@click.argument("flag")
@_variant_option
@_value_option
@click.pass_obj
def restore(state: ShellState, flag: str, variant: str, value: str) -> None:
    """Allow a variant of FLAG again; what its moves came to before no longer counts."""
    with _opened(state) as opened:
        variant, value = _value(opened, flag, variant, value)
        lifted = opened.rollout.decisions.restore(flag, value, _asker())
        if not lifted:
            raise NotFound(f"{flag}: {value} is not rolled back", hint="see `novacron flags list`")
        if state.json:
            state.print_json({"restored": [asdict(one) for one in lifted]})
        else:
            click.echo(f"{flag}: {value} is allowed again")


@flags_group.command("set-percentage")
@click.argument("flag")
@click.argument("percent", type=float)
@_variant_option
@click.pass_obj
def set_percentage_(state: ShellState, flag: str, percent: float, variant: str) -> None:
    """Give PERCENT of the machines the variant of FLAG, in the file of flags."""
    from novacron_flags_openfeature._percentage import set_percentage

    settings: FlagsSettings = state.config.sections["service.flags"]
    if settings.provider != FILE_PROVIDER or not settings.file:
        raise ConfigError(
            "the flags are in no file of this node", hint=f"change them at {settings.provider}"
        )
    path = Path(settings.file).expanduser()
    found = set_percentage(path, flag, percent, variant)
    if state.json:
        state.print_json({"flag": flag, "file": str(path), "percentages": found})
    else:
        parts = ", ".join(f"{name} {share:g} %" for name, share in found.items())
        click.echo(f"{flag}: {parts}")
