"""A member's key: kept from others, never taken for another, and shown as members need it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from novacron import ConfigError, Conflict
from novacron_consensus_bft import BftSection, Schemes
from novacron_consensus_bft._commands import consensus
from novacron_consensus_bft._keys import as_text, from_text, load_key, make_key, mark_used, used
from novacron_consensus_bft._signing import SIGNERS


@pytest.mark.parametrize("scheme", SIGNERS)
def test_a_key_signs_the_same_after_it_was_read_back(tmp_path: Path, scheme: str) -> None:
    made = make_key(tmp_path / "below" / "key", scheme)
    read = load_key(tmp_path / "below" / "key")
    public = from_text(as_text(made.public_key))
    assert public == made.public_key == read.public_key
    assert Schemes().verify(public, b"said", read.sign(b"said"))
    assert (tmp_path / "below" / "key").stat().st_mode & 0o777 == 0o600


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    first = make_key(tmp_path / "key", "ed25519").public_key
    with pytest.raises(Conflict):
        make_key(tmp_path / "key", "ed25519")
    assert load_key(tmp_path / "key").public_key == first


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    make_key(tmp_path / "key", "ed25519")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(ConfigError, match="0640") as caught:
        load_key(tmp_path / "key")
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"novacron-consensus-key ed25519",
        b"novacron-consensus-key ed25519 AAAA",
        b"novacron-consensus-key rot13 " + b"A" * 43 + b"=",
        b"another-word ed25519 " + b"A" * 43 + b"=",
        b"novacron-consensus-key ed25519 " + b"A" * 10_000,
    ],
)
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(ConfigError, match="holds no key"):
        load_key(tmp_path / "key")


def test_a_key_is_used_from_the_moment_that_a_log_begins(tmp_path: Path) -> None:
    make_key(tmp_path / "key", "ed25519")
    assert not used(tmp_path / "key")
    mark_used(tmp_path / "key")
    assert used(tmp_path / "key")


@given(st.text(max_size=60) | st.text(max_size=60).map(lambda text: "ed25519:" + text))
def test_any_text_is_a_public_key_or_refused(text: str) -> None:
    try:
        public = from_text(text)
    except ValueError:
        return
    assert Schemes().signature_bytes(public) > 0


def public(seed: int) -> str:
    return as_text(SIGNERS["ed25519"].from_seed(bytes([seed]) * 32).public_key)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cluster": "No Name"}, "is no name"),
        ({"members": {"a": "ed25519:AAAA"}}, "for 'a' a wrong key"),
        ({"members": {"a": "rot13:AAAA"}}, "ed25519 or ml-dsa-65"),
        ({"change_to": {"b": "nothing"}}, "change_to has for 'b'"),
        ({"members": {"a": public(1), "b": public(1)}}, "have one key"),
        ({"writers": "anybody"}, "writers"),
        ({"round_trip_ms": 0}, "round_trip_ms"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BftSection(**settings)


def run(tmp_path: Path, *arguments: str, as_json: bool = False) -> Result:
    config = SimpleNamespace(
        sections={"consensus.bft": BftSection()},
        node=SimpleNamespace(name="paris", state_dir=tmp_path),
    )
    state = SimpleNamespace(
        config=config, json=as_json, print_json=lambda value: click.echo(json.dumps(value))
    )
    return CliRunner().invoke(consensus, list(arguments), obj=state)


def test_the_commands_make_a_key_and_show_it_as_the_configuration_needs_it(tmp_path: Path) -> None:
    missing = run(tmp_path, "keys", "show")
    assert isinstance(missing.exception, ConfigError)
    made = run(tmp_path, "keys", "new")
    assert made.exit_code == 0
    assert made.output.startswith('paris = "ed25519:')
    assert run(tmp_path, "keys", "show").output == made.output
    shown = json.loads(run(tmp_path, "keys", "show", as_json=True).output)
    assert made.output == f'{shown["node"]} = "{shown["public_key"]}"\n'
    assert shown["file"] == str(tmp_path / "consensus-bft" / "key")
    assert isinstance(run(tmp_path, "keys", "new").exception, Conflict)
