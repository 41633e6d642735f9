"""``novacron trust``: the authority and the nodes that it vouches for.

Each command imports cryptography for itself: this module is loaded by all of ``novacron``'s.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from novacron import ConfigError

from novacron_security_tls import _files
from novacron_security_tls._algorithms import ALGORITHMS
from novacron_security_tls._files import FOLDER

if TYPE_CHECKING:
    from novacron_security_tls._authority import Authority, Issued

_MINUTE = timedelta(minutes=1)
_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Life(click.ParamType[timedelta]):
    """``24h`` or ``90d``; ``30m`` where so little makes sense."""

    name = "life"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"([0-9]{1,5})([mhd])", value)
        if not found:
            self.fail(f"{value!r} is no time; write 30m, 24h or 90d", param, ctx)
        count = int(found[1])
        return count * {"m": _MINUTE, "h": 60 * _MINUTE, "d": 1440 * _MINUTE}[found[2]]


def _default_folder() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "novacron" / "trust"


def _folder_option(command: _Command) -> _Command:
    return click.option(
        "--dir",
        "folder",
        type=click.Path(path_type=Path, file_okay=False),
        default=_default_folder,
        help="The authority's folder; ~/.config/novacron/trust if not given.",
    )(command)


def _json_option(command: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _algorithm_option(command: _Command) -> _Command:
    return click.option(
        "--algorithm",
        type=click.Choice(list(ALGORITHMS)),
        default="ecdsa-p256",
        show_default=True,
        help="The kind of key.",
    )(command)


def _state_option(*, required: bool) -> Callable[[_Command], _Command]:
    return click.option(
        "--state",
        "state_dir",
        type=click.Path(path_type=Path, file_okay=False),
        required=required,
        help="The node's state folder.",
    )


def _authority(folder: Path) -> Authority:
    from novacron_security_tls._authority import Authority

    return Authority.open(folder)


def _say(as_json: bool, data: dict[str, Any], text: str) -> None:
    click.echo(json.dumps(data) if as_json else text)


@click.group()
def trust() -> None:
    """Decide which nodes may speak to each other."""


@trust.command()
@_folder_option
@click.option("--domain", default="novacron", show_default=True, help="Name of the trust domain.")
@_algorithm_option
@_json_option
def init(folder: Path, domain: str, algorithm: str, as_json: bool) -> None:
    """Make the authority that vouches for your nodes."""
    from novacron_security_tls._authority import Authority

    authority = Authority.create(folder, domain=domain, algorithm=algorithm)
    ends = authority.certificate.not_valid_after_utc
    _say(
        as_json,
        {
            "folder": str(folder),
            "domain": domain,
            "algorithm": algorithm,
            "not_after": ends.isoformat(),
        },
        f"made the authority of {domain} in {folder}; it ends {ends:%Y-%m-%d}\n"
        f"keep {folder / 'ca-key.pem'} secret and back it up: who has it can make any node\n"
        "next: novacron trust issue NODE --out NODE.pem",
    )


@trust.command()
@click.argument("node")
@_folder_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a bundle for `novacron trust join` here.",
)
@_state_option(required=False)
@click.option(
    "--life", type=_Life(), default="90d", show_default=True, help="24h to 366d, as 24h or 90d."
)
@_algorithm_option
@click.option(
    "--request",
    "request_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What `novacron trust request` wrote on the node: its key then stays there.",
)
@_json_option
def issue(
    node: str,
    folder: Path,
    out: Path | None,
    state_dir: Path | None,
    life: timedelta,
    algorithm: str,
    request_file: Path | None,
    as_json: bool,
) -> None:
    """Make a certificate for NODE, into a bundle (--out) or its state folder here (--state)."""
    if (out is None) == (state_dir is None):
        raise ConfigError(
            "say where the certificate goes",
            hint="--out FILE for another host, or --state DIR for a node on this one",
        )
    if request_file is not None and out is None:
        raise ConfigError("the answer to a request is a bundle", hint="add --out FILE")
    authority = _authority(folder)
    if out is not None:
        asked = None
        if request_file is not None:
            from novacron_security_tls import _pem

            asked = _pem.parse(_files.read(request_file), str(request_file)).request
            if asked is None:
                raise ConfigError(
                    f"{request_file} holds no request",
                    hint="make one on the node: novacron trust request",
                )
        bundle, issued = authority.issue_bundle(node, life=life, algorithm=algorithm, request=asked)
        _files.write(out, bundle.dump(), mode=0o600)
        place = str(out)
        secret = "" if asked is not None else f"it holds the key of {node}: move it safely; "
        text = f"{secret}next, on {node}: novacron trust join {out.name} --state DIR"
    else:
        assert state_dir is not None
        issued = authority.issue(node, state_dir, life=life, algorithm=algorithm)
        place = str(state_dir / FOLDER)
        text = f"{node} uses it from its next handshake on"
    _say(
        as_json,
        {**issued.to_json(), "to": place},
        f"made a certificate for {node}, until {issued.not_after:%Y-%m-%d %H:%M} UTC, in {place}\n"
        f"{text}",
    )


@trust.command()
@click.argument("node")
@_state_option(required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Write the request here.",
)
@_algorithm_option
@_json_option
def request(node: str, state_dir: Path, out: Path, algorithm: str, as_json: bool) -> None:
    """Make a key on this host, for NODE, and ask for a certificate; the key stays here."""
    from novacron_security_tls._enrolment import request as make_request

    asked = make_request(node, state_dir, ALGORITHMS[algorithm]())
    _files.write(out, asked)
    _say(
        as_json,
        {"node": node, "request": str(out), "algorithm": algorithm},
        f"wrote a request for {node} to {out}\n"
        f"next, at the authority: novacron trust issue {node} --request {out.name} "
        f"--out {node}.pem",
    )


@trust.command()
@click.argument("node")
@_folder_option
@click.option(
    "--address", required=True, metavar="HOST:PORT", help="Where the authority's office listens."
)
@click.option(
    "--valid", type=_Life(), default="1h", show_default=True, help="How long it may be used."
)
@_json_option
def token(node: str, folder: Path, address: str, valid: timedelta, as_json: bool) -> None:
    """Make a token by which a host may become NODE, once.

    It is printed on standard output and is a secret: give it to `novacron trust join -` there.
    """
    from novacron_security_tls._tokens import Token, Tokens, fingerprint

    authority = _authority(folder)
    number, secret = Tokens(authority.folder).make(node, datetime.now(UTC), valid)
    made = Token(
        node=node,
        address=address,
        domain=authority.domain,
        authority=fingerprint(authority.certificate),
        number=number,
        secret=secret,
    )
    if as_json:
        click.echo(json.dumps({"node": node, "number": number, "token": made.text()}))
        return
    click.echo(made.text())
    hours = valid / timedelta(hours=1)
    click.echo(
        f"it may be used once, within {hours:g} h; on the host that is to be {node}:\n"
        f"novacron trust join - --state DIR",
        err=True,
    )


@trust.command()
@_folder_option
@_json_option
def tokens(folder: Path, as_json: bool) -> None:
    """Show the tokens that were made: for whom, until when, and which were used."""
    from novacron_security_tls._tokens import Tokens

    now = datetime.now(UTC)
    kept = Tokens(_authority(folder).folder).all()
    if as_json:
        shown = [
            {
                "number": each.number,
                "node": each.node,
                "state": each.state(now),
                "until": each.until.isoformat(),
                "used_at": each.used_at.isoformat() if each.used_at else None,
            }
            for each in kept
        ]
        click.echo(json.dumps(shown))
        return
    click.echo(f"{'NODE':<24} {'STATE':<8} {'UNTIL (UTC)':<17} NUMBER")
    for each in kept:
        click.echo(
            f"{each.node:<24} {each.state(now):<8} {each.until:%Y-%m-%d %H:%M}  {each.number}"
        )


@trust.command()
@click.argument("bundle", type=click.Path(path_type=Path, allow_dash=True))
@_state_option(required=True)
@_algorithm_option
@_json_option
def join(bundle: Path, state_dir: Path, algorithm: str, as_json: bool) -> None:
    """Make this host a node by BUNDLE: a file or folder that the authority made, or a token.

    A token is read from a file, or from standard input with "-"; the key is made here then, of the
    kind that --algorithm says.
    """
    from novacron_security_tls._enrolment import join as join_bundle
    from novacron_security_tls._names import named_node

    shown = _token_in(bundle)
    if shown is not None:
        from novacron_security_tls._tokens import parse
        from novacron_security_tls._visit import enrol

        found = enrol(parse(shown), state_dir, algorithm)
    else:
        found = join_bundle(bundle, state_dir)
    assert found.ca is not None
    certificate = found.certificate
    named = named_node(certificate) if certificate is not None else None
    if certificate is None or named is None:
        _say(
            as_json,
            {"node": None, "to": str(state_dir / FOLDER)},
            f"renewed the revocation list in {state_dir / FOLDER}",
        )
        return
    ends = certificate.not_valid_after_utc
    _say(
        as_json,
        {
            "node": named[1],
            "domain": named[0],
            "not_after": ends.isoformat(),
            "to": str(state_dir / FOLDER),
        },
        f"this is {named[1]} of {named[0]} until {ends:%Y-%m-%d %H:%M} UTC",
    )


def _token_in(source: Path) -> str | None:
    """The token that a file or standard input holds, if it is one."""
    from novacron_security_tls._tokens import TEXT_CHARACTERS_MAX, is_token

    if str(source) == "-":
        return sys.stdin.read(TEXT_CHARACTERS_MAX + 2)
    if source.is_dir():
        return None
    data = _files.read(source)
    return data.decode("ascii", "replace") if is_token(data) else None


@trust.command(name="list")
@_folder_option
@_json_option
def list_(folder: Path, as_json: bool) -> None:
    """Show all certificates: of whom, until when, and which were revoked."""
    authority = _authority(folder)
    now = datetime.now(UTC)
    entries = sorted(authority.issued(), key=lambda entry: (entry.node, entry.not_before))
    if as_json:
        listed = [{**entry.to_json(), "state": entry.state(now)} for entry in entries]
        click.echo(json.dumps({"domain": authority.domain, "issued": listed}))
        return
    click.echo(f"{'NODE':<24} {'STATE':<8} {'UNTIL (UTC)':<17} {'KEY':<11} SERIAL")
    for entry in entries:
        click.echo(_row(entry, now))


def _row(entry: Issued, now: datetime) -> str:
    until = f"{entry.not_after:%Y-%m-%d %H:%M}"
    return (
        f"{entry.node:<24} {entry.state(now):<8} {until:<17} {entry.algorithm:<11} {entry.serial}"
    )


@trust.command()
@click.argument("node")
@_folder_option
@click.option(
    "--state",
    "state_dirs",
    type=click.Path(path_type=Path, file_okay=False),
    multiple=True,
    help="Tell this node on this host at once; may be given again.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the new list here, for `novacron trust join` on the other hosts.",
)
@_json_option
def revoke(
    node: str, folder: Path, state_dirs: tuple[Path, ...], out: Path | None, as_json: bool
) -> None:
    """Revoke all certificates of NODE. Nodes refuse it once they have the new list."""
    authority = _authority(folder)
    revoked = authority.revoke(node)
    authority.publish(*state_dirs)
    if out is not None:
        _files.write(out, authority.trust_bundle().dump())
    told = [str(each) for each in state_dirs]
    _say(
        as_json,
        {"node": node, "serials": [entry.serial for entry in revoked], "told": told},
        f"revoked {len(revoked)} of {node}'s certificates\n"
        + (
            f"next, on every node: novacron trust join {out.name} --state DIR"
            if out is not None
            else "next: novacron trust revocations --out FILE, and on every node "
            "novacron trust join FILE --state DIR"
        ),
    )


@trust.command()
@_folder_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Write the list here.",
)
@_json_option
def revocations(folder: Path, out: Path, as_json: bool) -> None:
    """Write the present revocation list, for `novacron trust join` on the nodes."""
    bundle = _authority(folder).trust_bundle()
    assert bundle.revoked is not None
    _files.write(out, bundle.dump())
    count = len(bundle.revoked)
    _say(
        as_json,
        {"out": str(out), "revoked": count},
        f"wrote the list of {count} revoked certificates to {out}\n"
        f"next, on every node: novacron trust join {out.name} --state DIR",
    )
