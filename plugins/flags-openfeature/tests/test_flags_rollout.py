"""From a flag to the provider of a move, and from a move's end to a rollback."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from novacron import ConfigError, MachineSpec, MoveContext, MoveFacts
from novacron_flags_openfeature import FlagsSettings
from novacron_flags_openfeature._blame import OUTAGE_S, Blame, Failure
from novacron_flags_openfeature._decisions import Decisions, Rollback
from novacron_flags_openfeature._provider import Client, make_provider
from novacron_flags_openfeature._rollout import Rollout, make_rollout

FLAG = "provider.compression"
HAVE = ["acme", "hde", "zstd"]
CODEC = Failure(reason="a frame is not sound", again=True, link_up=True)
LINK = Failure(reason="connection refused", again=True, link_up=False)

Make = Callable[..., Rollout]


def flag(value: str = "acme", **more: Any) -> dict[str, Any]:
    variants = {"stable": "", "new": value}
    return {"state": "ENABLED", "variants": variants, "defaultVariant": "new"} | more


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    clients = []

    def made(flags: dict[str, Any] | None = None, node: str = "a", **settings: Any) -> Rollout:
        path = tmp_path / "flags.json"
        path.write_text(json.dumps({"flags": {FLAG: flag()} if flags is None else flags}))
        chosen = FlagsSettings(
            enabled=True, file=str(path), decisions=str(tmp_path / "decisions"), **settings
        )
        clients.append(Client(make_provider(chosen, tmp_path / node)))
        return make_rollout(chosen, node, tmp_path / node, clients[-1])

    yield made
    for client in clients:
        client.close()


def context(machine: str = "vm", **facts: str) -> MoveContext:
    told = {"tenant": "", "source": "a", "target": "b", "mode": "internet"} | facts
    return MoveContext(machine=machine, **told)


def choose(rollout: Rollout, machine: str = "vm", domain: str = "compression") -> str | None:
    return rollout.choose(domain, "hde", HAVE, context(machine))


def end(rollout: Rollout, codec: str, failure: Failure | None = None, machine: str = "vm") -> None:
    spec = MachineSpec(name=machine, driver="wasm", memory_bytes=1 << 20)
    facts = MoveFacts(
        machine=spec,
        target="b",
        mode="internet",
        codec=codec,
        session="mig-1",
        raw_bytes=1_000,
        wire_bytes=400,
        elapsed_s=1.0,
    )
    rollout.ended(facts, failure)


def fail(rollout: Rollout, times: int = 3, failure: Failure = CODEC) -> None:
    for _ in range(times):
        given = choose(rollout)
        end(rollout, given or "hde", failure)


# Before a move.


@pytest.mark.parametrize(
    ("flags", "used", "why"),
    [
        ({FLAG: flag()}, "acme", "this variant"),
        ({FLAG: flag(defaultVariant="stable")}, None, "leaves the machine"),
        ({FLAG: flag("hde")}, None, "leaves the machine"),
        ({FLAG: flag(state="DISABLED")}, None, "is off"),
        ({}, None, "no such flag"),
        ({FLAG: flag("unknown")}, None, "both sides"),
        ({FLAG: flag() | {"variants": {"stable": "", "new": 7}}}, None, "cannot be asked"),
        ({FLAG: flag(metadata={"fallback": "zstd"})}, "acme", "this variant"),
        ({FLAG: flag("", metadata={"fallback": "zstd"})}, None, "this variant"),
        ({FLAG: flag("zstd", metadata={"fallback": "zstd"})}, "zstd", "leaves the machine"),
        ({FLAG: flag("x", metadata={"fallback": "zstd"})}, "zstd", "both sides"),
        ({FLAG: flag("x", metadata={"fallback": "y"})}, None, "both sides"),
    ],
)
def test_choose_provider_by_a_flag(
    make: Make, flags: dict[str, Any], used: str | None, why: str
) -> None:
    rollout = make(flags)
    assert choose(rollout) == used
    assert why in rollout.answer("compression", "hde", HAVE, context()).why


def test_rules_see_the_move_and_this_nodes_own_attributes(make: Make) -> None:
    asked = {
        "machine": "vm", "tenant": "x", "node": "a", "target": "b", "mode": "internet",
        "site": "hel", "ring": "canary", "domain": "compression", "configured": "hde",
    }  # fmt: skip
    rule = {"if": [{"and": [{"==": [{"var": key}, told]} for key, told in asked.items()]}, "new"]}
    flags = {FLAG: flag(defaultVariant="stable", targeting=rule)}
    rollout = make(flags, site="hel", attributes={"ring": "canary"})
    assert rollout.choose("compression", "hde", HAVE, context(tenant="x")) == "acme"
    assert rollout.choose("compression", "hde", HAVE, context(tenant="y")) is None


def test_a_provider_that_not_both_sides_have_is_told_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = make({FLAG: flag("unknown")})
    choose(rollout)
    choose(rollout, "another")
    assert len([r for r in caplog.records if "both sides" in r.message]) == 1


# After it.


def test_a_variant_that_fails_is_rolled_back_told_and_kept(make: Make) -> None:
    rollout = make()
    told: list[tuple[Rollback, str]] = []
    rollout.on_rollback = lambda rollback, session: told.append((rollback, session))
    fail(rollout)
    assert choose(rollout) is None
    ((rollback, session),) = told
    assert (rollback.flag, rollback.variant, rollback.value) == (FLAG, "new", "acme")
    assert (rollback.by, session) == ("node a", "mig-1")
    assert "3 of its last 3 moves failed" in rollback.why
    fail(rollout)  # it is not used any more, so it is not rolled back again either
    assert len(told) == 1
    # The node starts anew, and another one reads the same folder.
    assert choose(make()) is None
    assert choose(make(node="b")) is None


def test_another_value_under_the_same_variant_is_another_thing(make: Make) -> None:
    fail(make())
    assert choose(make({FLAG: flag("zstd")})) == "zstd"
    assert choose(make({FLAG: flag("acme", defaultVariant="stable")})) is None


@pytest.mark.parametrize(
    "failure",
    [
        LINK,
        Failure(reason="b was restarted", again=True, link_up=True),
        Failure(reason="the destination was restarted in the middle", again=True, link_up=True),
        Failure(reason="the runner died", again=False, link_up=True),
        Failure(reason="cancelled by the operator", again=False, link_up=True),
        Failure(reason="the peer broke the protocol: kind 9", again=True, link_up=False),
    ],
)
def test_a_codec_is_not_to_blame_for_the_rest_of_the_world(make: Make, failure: Failure) -> None:
    rollout = make()
    fail(rollout, 10, failure)
    assert choose(rollout) == "acme"
    assert rollout.budget.outcomes(FLAG, "acme") == ()


def test_a_digest_that_differs_is_the_codecs_fault(make: Make) -> None:
    rollout = make()
    why = "what arrived is not what was sent"
    fail(rollout, 3, Failure(reason=why, again=False, link_up=True))
    assert choose(rollout) is None


def test_a_move_that_went_over_to_another_codec_says_nothing_of_this_one(make: Make) -> None:
    rollout = make()
    for _ in range(5):
        choose(rollout)
        end(rollout, "zstd", CODEC)
    assert choose(rollout) == "acme"


def test_a_move_that_was_never_planned_here_changes_nothing(make: Make) -> None:
    rollout = make()
    end(rollout, "acme", CODEC)
    assert rollout.budget.known() == []


def test_with_a_fallback_the_configured_provider_is_what_is_rolled_out(make: Make) -> None:
    rollout = make({FLAG: flag("", metadata={"fallback": "zstd"})})
    fail(rollout)
    assert choose(rollout) == "zstd"
    assert choose(rollout, "another") == "zstd"


def test_outcomes_outlive_the_node_and_a_damaged_file_of_them_is_left_out(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fail(make(), 2)
    again = make()
    assert choose(again) == "acme"
    end(again, "acme", CODEC)
    assert choose(again) is None
    (tmp_path / "a" / "service-flags" / "outcomes.json").write_text("{")
    assert make().budget.known() == []
    assert "outcomes.json" in caplog.text


def test_a_variant_that_was_restored_begins_anew(make: Make, tmp_path: Path) -> None:
    rollout = make()
    fail(rollout)
    operator = Decisions(tmp_path / "decisions", "b")
    operator.restore(FLAG, "acme", "somebody")
    assert choose(rollout) == "acme"
    assert rollout.budget.outcomes(FLAG, "acme") == ()
    end(rollout, "acme", CODEC)
    assert choose(rollout) == "acme"
    fail(rollout, 2)
    assert choose(rollout) is None
    # Also where the node did not run when it was restored.
    operator.restore(FLAG, "acme", "somebody")
    later = make()
    assert (choose(later), later.budget.outcomes(FLAG, "acme")) == ("acme", ())


def test_what_cannot_be_written_is_refused_all_the_same_and_written_later(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = make()
    told: list[Rollback] = []
    rollout.on_rollback = lambda rollback, session: told.append(rollback)
    own = tmp_path / "decisions" / "a.json"
    own.mkdir(parents=True)  # nobody can write a file there
    rollout.decisions.doubt = ""
    for _ in range(3):
        rollout._given["vm"] = {"compression": _acme()}
        end(rollout, "acme", CODEC)
    assert told == []
    assert "cannot be written yet" in caplog.text
    assert choose(rollout) is None
    own.rmdir()
    assert choose(rollout) is None
    assert [one.value for one in told] == ["acme"]
    assert own.is_file()


def _acme() -> Any:
    from novacron_flags_openfeature._rollout import Answer

    return Answer(
        flag=FLAG, variant="new", value="acme", configured="hde", fallback="hde", used="acme",
        why="",
    )  # fmt: skip


def test_while_decisions_cannot_be_read_no_variant_is_used(make: Make, tmp_path: Path) -> None:
    (tmp_path / "decisions").mkdir()
    (tmp_path / "decisions" / "b.json").write_text("{")
    rollout = make()
    assert choose(rollout) is None
    (tmp_path / "decisions" / "b.json").unlink()
    assert choose(rollout) == "acme"


def test_what_others_decide_is_told_in_the_log(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = make()
    caplog.set_level(logging.WARNING)
    other = Decisions(tmp_path / "decisions", "b")
    other.roll_back(FLAG, "new", "acme", "it hurts", "somebody")
    choose(rollout)
    assert "was rolled back by somebody: it hurts" in caplog.text
    other.restore(FLAG, "acme", "somebody")
    choose(rollout)
    assert "acme is restored" in caplog.text


# Blame.


def test_a_transport_is_to_blame_for_a_lost_link_unless_others_lose_it_too() -> None:
    blame, now_s = Blame(), time.time()
    assert blame.is_to("transport", "new", "b", "link", now_s)
    assert blame.is_to("transport", "new", "b", "link", now_s + 1)
    assert not blame.is_to("transport", "old", "b", "link", now_s + 2)
    assert not blame.is_to("transport", "new", "b", "link", now_s + 3)
    assert blame.is_to("transport", "new", "c", "link", now_s + 4)
    assert blame.is_to("transport", "new", "b", "link", now_s + 4 + OUTAGE_S)
    assert not blame.is_to("transport", "new", "b", "codec", now_s)


def test_a_version_of_the_protocol_is_to_blame_for_what_a_peer_cannot_read() -> None:
    unsound = Failure(reason="the peer broke the protocol: kind 9", again=True, link_up=True)
    assert Blame().is_to("protocol", "3", "b", unsound.cause, 0.0)
    assert not Blame().is_to("compression", "acme", "b", unsound.cause, 0.0)
    assert not Blame().is_to("placement", "x", "b", "codec", 0.0)


# The provider.


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "names no file"),
        ({"provider": "no.such.module:Class"}, "no module 'no'"),
        ({"provider": "json:Class"}, "json has no Class"),
        ({"provider": "json:JSONDecoder"}, "is no OpenFeature provider"),
        ({"provider": "json:dumps"}, "is no OpenFeature provider"),
        (
            {
                "provider": "openfeature.provider.in_memory_provider:InMemoryProvider",
                "arguments": {"colour": 1},
            },
            "cannot be made from its arguments",
        ),
        ({"provider": "openfeature.provider:AbstractProvider"}, "cannot be made"),
        (
            {
                "provider": "openfeature.provider.in_memory_provider:InMemoryProvider",
                "file": "x",
            },
            "has a file and the provider",
        ),
        ({"file": "x", "arguments": {"path": "y"}}, "another provider"),
    ],
)
def test_a_provider_that_cannot_be_had_is_refused_with_the_reason(
    settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        make_provider(FlagsSettings(**settings), tmp_path)


@pytest.mark.parametrize("name", ["json", "json:", ":x", "a b:c", "a/b:c", "json:a.b"])
def test_a_provider_is_named_by_module_and_class(name: str) -> None:
    with pytest.raises(ValueError, match=r"package\.module:Class"):
        FlagsSettings(provider=name)


@pytest.mark.parametrize(
    "settings", [{"failure_rate": 0.0}, {"window_moves": 5_000}, {"least_moves": 0}]
)
def test_a_budget_that_makes_no_sense_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        FlagsSettings(**settings)


def test_any_other_openfeature_provider_answers(tmp_path: Path) -> None:
    from openfeature.provider.in_memory_provider import InMemoryFlag

    settings = FlagsSettings(
        provider="openfeature.provider.in_memory_provider:InMemoryProvider",
        arguments={"flags": {FLAG: InMemoryFlag("new", {"new": "acme"})}},
    )
    client = Client(make_provider(settings, tmp_path))
    rollout = make_rollout(settings, "a", tmp_path, client)
    assert choose(rollout) == "acme"
    fail(rollout)
    assert choose(rollout) is None
    client.close()


def test_a_provider_that_cannot_begin_is_refused() -> None:
    from openfeature.provider.in_memory_provider import InMemoryProvider

    class Broken(InMemoryProvider):
        def initialize(self, evaluation_context: Any) -> None:
            raise ConnectionError("nobody there")

    with pytest.raises(ConfigError, match="cannot begin: ConnectionError: nobody there"):
        Client(Broken({}))
