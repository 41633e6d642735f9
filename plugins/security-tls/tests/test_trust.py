"""The authority, the nodes that join it, and the commands for both."""

from __future__ import annotations

import json
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron import ConfigError, Conflict, NodeFacts, NotFound, NovacronError, Untrusted
from novacron_security_tls import (
    ALGORITHMS,
    Authority,
    Settings,
    TlsSecurity,
    join,
    novacron_register_commands,
    request,
)
from novacron_security_tls._names import check_node_name
from novacron_security_tls._pem import parse

FOLDER = "security-tls"


def node(tmp_path: Path, name: str) -> TlsSecurity:
    return TlsSecurity(Settings(), NodeFacts(name=name, state_dir=tmp_path / name))


def run(*arguments: object) -> Any:
    """The result of ``novacron trust …``, as JSON; its errors as they are raised."""
    (trust,) = novacron_register_commands()
    assert isinstance(trust, click.Group)
    result = CliRunner().invoke(
        trust, [*map(str, arguments), "--json"], catch_exceptions=False, standalone_mode=False
    )
    return json.loads(result.output)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca")
    authority.issue("alpha", tmp_path / "alpha")
    assert mode(tmp_path / "ca") == 0o700
    assert mode(tmp_path / "ca" / "ca-key.pem") == 0o600
    assert mode(tmp_path / "alpha" / FOLDER) == 0o700
    assert mode(tmp_path / "alpha" / FOLDER / "key.pem") == 0o600
    assert not list(tmp_path.rglob(".*.pem.*"))


def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    Authority.create(tmp_path / "ca").issue("alpha", tmp_path / "alpha")
    (tmp_path / "alpha" / FOLDER / "key.pem").chmod(0o644)
    with pytest.raises(Untrusted, match="others can read") as caught:
        node(tmp_path, "alpha").identity()
    assert "chmod 600" in caught.value.hint


def test_an_authority_is_never_made_over_another(tmp_path: Path) -> None:
    first = Authority.create(tmp_path / "ca", domain="one")
    with pytest.raises(Conflict):
        Authority.create(tmp_path / "ca", domain="two")
    assert Authority.open(tmp_path / "ca").certificate == first.certificate


def test_no_authority_is_said_with_the_command_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        Authority.open(tmp_path)
    assert "novacron trust init" in caught.value.hint


@pytest.mark.parametrize("life", [timedelta(hours=23), timedelta(days=367), timedelta(0)])
def test_lives_out_of_bounds_are_refused(tmp_path: Path, life: timedelta) -> None:
    authority = Authority.create(tmp_path / "ca")
    with pytest.raises(ConfigError, match="cannot live"):
        authority.issue("alpha", tmp_path / "alpha", life=life)
    assert authority.issued() == ()


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=70))
def test_a_node_name_is_good_for_a_uri_and_a_file_or_refused(name: str) -> None:
    try:
        check_node_name(name)
    except ConfigError:
        return
    assert name.isascii()
    assert not set(name) & set("/\\:%?# \n\0")
    assert name not in {"", ".", ".."}


def test_the_identity_is_what_was_issued(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", domain="lab.example")
    authority.issue("alpha", tmp_path / "alpha")
    identity = node(tmp_path, "alpha").identity()
    assert (identity.node, identity.trust_domain) == ("alpha", "lab.example")
    assert len(bytes.fromhex(identity.fingerprint)) == 32


def test_a_node_with_the_certificate_of_another_says_so(tmp_path: Path) -> None:
    Authority.create(tmp_path / "ca").issue("beta", tmp_path / "alpha")
    with pytest.raises(Untrusted, match="it names beta") as caught:
        node(tmp_path, "alpha").identity()
    assert "novacron trust issue alpha" in caught.value.hint


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem", "revoked.pem"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "cut"])
def test_damaged_trust_is_said_and_repaired_by_joining_again(
    tmp_path: Path, name: str, damage: str
) -> None:
    authority = Authority.create(tmp_path / "ca")
    authority.issue("alpha", tmp_path / "alpha")
    path = tmp_path / "alpha" / FOLDER / name
    sound = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "garbage": b"\xff" * 99, "cut": sound[:90]}[damage])
    alpha = node(tmp_path, "alpha")
    with pytest.raises(Untrusted, match="not usable") as caught:
        alpha.identity()
    assert "novacron trust join" in caught.value.hint
    if damage != "missing":
        path.unlink()
    authority.issue("alpha", tmp_path / "alpha")
    assert alpha.identity().node == "alpha"


def test_a_revocation_list_of_another_authority_stops_the_node(tmp_path: Path) -> None:
    Authority.create(tmp_path / "ca").issue("alpha", tmp_path / "alpha")
    other = Authority.create(tmp_path / "other")
    (tmp_path / "alpha" / FOLDER / "revoked.pem").write_bytes(
        (other.folder / "revoked.pem").read_bytes()
    )
    with pytest.raises(Untrusted, match="not signed by the authority"):
        node(tmp_path, "alpha").identity()


def test_an_older_revocation_list_does_not_bring_a_node_back(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca")
    authority.issue("gamma", tmp_path / "gamma")
    old, _ = authority.issue_bundle("alpha")
    authority.revoke("gamma")
    authority.issue("alpha", tmp_path / "alpha")
    alpha = node(tmp_path, "alpha")
    assert len(alpha._folder.current().revoked) == 1
    # A bundle that was made before installs its certificate, and not its list.
    (tmp_path / "old.pem").write_bytes(old.dump())
    join(tmp_path / "old.pem", tmp_path / "alpha")
    assert len(alpha._folder.current().revoked) == 1
    # Put there by hand, it stops the node.
    assert old.revoked is not None
    (tmp_path / "alpha" / FOLDER / "revoked.pem").write_bytes(type(old)(revoked=old.revoked).dump())
    with pytest.raises(Untrusted, match="older one"):
        alpha.identity()


def test_a_list_alone_is_taken_from_the_nodes_own_authority_only(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca")
    authority.issue("alpha", tmp_path / "alpha")
    other = Authority.create(tmp_path / "other")
    (tmp_path / "list.pem").write_bytes(other.trust_bundle().dump())
    with pytest.raises(Untrusted, match="does not know"):
        join(tmp_path / "list.pem", tmp_path / "alpha")
    with pytest.raises(Untrusted, match="does not know"):
        join(tmp_path / "list.pem", tmp_path / "nobody")


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_a_key_can_stay_where_it_was_made(tmp_path: Path, algorithm: str) -> None:
    authority = Authority.create(tmp_path / "ca", algorithm=algorithm)
    asked = request("alpha", tmp_path / "alpha", ALGORITHMS[algorithm]())
    bundle, issued = authority.issue_bundle("alpha", request=parse(asked, "request").request)
    assert bundle.key is None
    assert issued.algorithm == algorithm
    (tmp_path / "alpha.pem").write_bytes(bundle.dump())
    with pytest.raises(Untrusted, match="is not here"):
        join(tmp_path / "alpha.pem", tmp_path / "elsewhere")
    join(tmp_path / "alpha.pem", tmp_path / "alpha")
    assert node(tmp_path, "alpha").identity().node == "alpha"
    assert not (tmp_path / "alpha" / FOLDER / "key.new.pem").exists()


def test_a_request_leaves_the_key_in_use_alone(tmp_path: Path) -> None:
    Authority.create(tmp_path / "ca").issue("alpha", tmp_path / "alpha")
    alpha = node(tmp_path, "alpha")
    before = alpha.identity()
    request("alpha", tmp_path / "alpha", ALGORITHMS["ecdsa-p256"]())
    assert alpha.identity() == before


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=300), st.integers(0, 4000), st.integers(0, 255))
def test_any_file_is_a_bundle_or_a_config_error(data: bytes, at: int, value: int) -> None:
    sound = _sample()
    mutated = bytearray(sound)
    mutated[at % len(mutated)] = value
    for each in (data, bytes(mutated), sound[: at % len(sound)], data + sound):
        try:
            parse(each, "a file")
        except ConfigError as error:
            assert "a file" in error.message  # noqa: PT017


_samples: list[bytes] = []


def _sample() -> bytes:
    if not _samples:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            _samples.append(Authority.create(Path(folder) / "ca").issue_bundle("alpha")[0].dump())
    return _samples[0]


def test_certificates_issued_at_once_are_all_on_record(tmp_path: Path) -> None:
    Authority.create(tmp_path / "ca")
    names = [f"n{number}" for number in range(12)]

    def issue(name: str) -> None:
        Authority.open(tmp_path / "ca").issue_bundle(name)

    threads = [threading.Thread(target=issue, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(entry.node for entry in Authority.open(tmp_path / "ca").issued()) == sorted(names)


def test_an_authority_and_two_nodes_take_milliseconds(tmp_path: Path) -> None:
    begun = datetime.now(UTC)
    authority = Authority.create(tmp_path / "ca")
    for name in ("alpha", "beta"):
        authority.issue(name, tmp_path / name)
    assert datetime.now(UTC) - begun < timedelta(seconds=2)


def test_the_commands_enrol_list_and_revoke(tmp_path: Path) -> None:
    ca, alpha = tmp_path / "ca", tmp_path / "alpha"
    made = run("init", "--dir", ca, "--domain", "lab")
    assert made["domain"] == "lab"
    issued = run("issue", "alpha", "--dir", ca, "--out", tmp_path / "alpha.pem", "--life", "24h")
    assert mode(tmp_path / "alpha.pem") == 0o600
    joined = run("join", tmp_path / "alpha.pem", "--state", alpha)
    assert (joined["node"], joined["domain"]) == ("alpha", "lab")
    assert node(tmp_path, "alpha").identity().trust_domain == "lab"
    run("issue", "beta", "--dir", ca, "--state", tmp_path / "beta")
    listed = run("list", "--dir", ca)["issued"]
    assert [(entry["node"], entry["state"]) for entry in listed] == [
        ("alpha", "valid"),
        ("beta", "valid"),
    ]
    assert listed[0]["serial"] == issued["serial"]
    revoked = run("revoke", "beta", "--dir", ca, "--out", tmp_path / "list.pem")
    assert revoked["serials"] == [listed[1]["serial"]]
    assert run("join", tmp_path / "list.pem", "--state", alpha)["node"] is None
    assert len(node(tmp_path, "alpha")._folder.current().revoked) == 1
    assert run("revocations", "--dir", ca, "--out", tmp_path / "list2.pem")["revoked"] == 1
    assert run("list", "--dir", ca)["issued"][1]["state"] == "revoked"
    with pytest.raises(NotFound, match="no certificate of node 'beta'"):
        run("revoke", "beta", "--dir", ca)


def test_the_commands_take_a_request_and_a_folder(tmp_path: Path) -> None:
    ca, alpha = tmp_path / "ca", tmp_path / "alpha"
    run("init", "--dir", ca, "--algorithm", "ml-dsa-65")
    run("request", "alpha", "--state", alpha, "--out", tmp_path / "a.csr")
    run("issue", "alpha", "--dir", ca, "--request", tmp_path / "a.csr", "--out", tmp_path / "a.pem")
    run("join", tmp_path / "a.pem", "--state", alpha)
    # A folder with a node's trust is a bundle too.
    copied = tmp_path / "copy"
    copied.mkdir()
    run("join", alpha / FOLDER, "--state", copied)
    facts = NodeFacts(name="alpha", state_dir=copied)
    assert TlsSecurity(Settings(), facts).identity() == node(tmp_path, "alpha").identity()


def test_the_commands_speak_to_people_too(tmp_path: Path) -> None:
    (trust,) = novacron_register_commands()
    runner = CliRunner()

    def say(*arguments: object) -> str:
        result = runner.invoke(trust, [*map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "next: novacron trust issue" in say("init", "--dir", tmp_path / "ca")
    told = say("issue", "alpha", "--dir", tmp_path / "ca", "--out", tmp_path / "a.pem")
    assert "novacron trust join a.pem" in told
    assert "this is alpha of novacron until" in say(
        "join", tmp_path / "a.pem", "--state", tmp_path / "alpha"
    )
    assert "alpha" in say("list", "--dir", tmp_path / "ca")
    assert "revoked 1" in say("revoke", "alpha", "--dir", tmp_path / "ca")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("issue", "alpha"), ConfigError),
        (("issue", "alpha", "--out", "x.pem", "--state", "y"), ConfigError),
        (("issue", "al/pha", "--out", "x.pem"), ConfigError),
        (("issue", "alpha", "--out", "x.pem", "--life", "1h"), ConfigError),
        (("issue", "alpha", "--out", "x.pem", "--life", "forever"), click.UsageError),
        (("issue", "alpha", "--out", "no/such/folder/x.pem"), ConfigError),
        (("issue", "alpha", "--out", "x.pem", "--request", "none.csr"), NotFound),
        (("issue", "alpha", "--out", "x.pem", "--algorithm", "rsa"), click.UsageError),
        (("revoke", "nobody"), NotFound),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    error: type[Exception],
) -> None:
    monkeypatch.chdir(tmp_path)
    run("init", "--dir", "ca")
    with pytest.raises(error):
        run(*arguments, "--dir", "ca")
    assert [path.name for path in tmp_path.iterdir()] == ["ca"]


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a bundle")
    (tmp_path / "empty").mkdir()
    for name in ("text", "empty", "missing"):
        with pytest.raises(NovacronError):
            run("join", tmp_path / name, "--state", tmp_path / "alpha")
    assert not (tmp_path / "alpha").exists()
