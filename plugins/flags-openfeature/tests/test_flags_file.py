"""The provider that reads a file: the format of flagd, and what becomes of a damaged file."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from novacron import ConfigError, NotFound
from novacron_flags_openfeature import FileProvider
from novacron_flags_openfeature._file import check_flags, engine
from novacron_flags_openfeature._files import FILE_BYTES_MAX, read_json
from novacron_flags_openfeature._percentage import percentages, place, set_percentage
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import OpenFeatureError

NAME = "provider.compression"
SHARE: dict[str, Any] = {"fractional": [["new", 10], ["old", 90]]}


def document(targeting: Any = None, **more: Any) -> dict[str, Any]:
    flag = {"state": "ENABLED", "variants": {"old": "", "new": "acme"}, "defaultVariant": "old"}
    return {"flags": {NAME: flag | ({"targeting": targeting} if targeting else {}) | more}}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def ask(provider: FileProvider, **attributes: str) -> str | None:
    context = EvaluationContext("vm", attributes)
    return provider.resolve_string_details(NAME, "default", context).variant


def variant(found: dict[str, Any], machine: str) -> str | None:
    core = engine(found)
    return core.resolve_string_value(NAME, "", EvaluationContext(machine, {})).variant


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flags.json"


@pytest.mark.parametrize(
    ("rule", "attributes", "expected"),
    [
        ({"if": [{"==": [{"var": "node"}, "a"]}, "new"]}, {"node": "a"}, "new"),
        ({"if": [{"==": [{"var": "node"}, "a"]}, "new"]}, {"node": "b"}, "old"),
        ({"if": [{"in": [{"var": "tenant"}, ["x", "y"]]}, "new"]}, {"tenant": "y"}, "new"),
        ({"if": [{"in": [{"var": "tenant"}, ["x", "y"]]}, "new"]}, {}, "old"),
        ({"if": [{"==": [{"var": "site"}, "hel"]}, "new", "old"]}, {"site": "hel"}, "new"),
        ({"if": [{"!=": [{"var": "mode"}, "internet"]}, "new"]}, {"mode": "hybrid"}, "new"),
        ({"if": [{"starts_with": [{"var": "machine"}, "t-"]}, "new"]}, {"machine": "t-1"}, "new"),
    ],
)
def test_rules_ask_for_node_tenant_site_mode_and_machine(
    path: Path, rule: Any, attributes: dict[str, str], expected: str
) -> None:
    assert ask(FileProvider(str(write(path, document(rule)))), **attributes) == expected


@given(st.text(min_size=1, max_size=30), st.integers(0, 99), st.integers(0, 99))
def test_a_machine_that_has_a_variant_keeps_it_while_its_share_grows(
    machine: str, one: int, other: int
) -> None:
    less, more = sorted((one, other))
    had = variant(document({"fractional": [["new", less], ["old", 100 - less]]}), machine)
    has = variant(document({"fractional": [["new", more], ["old", 100 - more]]}), machine)
    assert has == "new" or had == "old"


def test_a_share_is_about_as_large_as_it_says() -> None:
    names = [f"machine-{number}" for number in range(2_000)]
    found = document(SHARE)
    core = engine(found)
    chosen = [
        core.resolve_string_value(NAME, "", EvaluationContext(name, {})).variant for name in names
    ]
    assert 160 <= chosen.count("new") <= 240


@pytest.mark.parametrize("machine", ["vm0", "vm1", "vm3", "web-17", "ü"])
def test_a_machines_place_says_which_shares_it_is_in(machine: str) -> None:
    at = place(NAME, machine)
    for percent in (1, 10, 33, 50, 99):
        has = variant(document({"fractional": [["new", percent], ["old", 100 - percent]]}), machine)
        assert (has == "new") == (at < percent)


# A file that changes, is damaged, or is gone.

DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: path.write_text(json.dumps(document())[:-3]),
    "empty": lambda path: path.write_text(""),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[]"),
    "no flags": lambda path: path.write_text("{}"),
    "flags are a list": lambda path: path.write_text('{"flags": []}'),
    "a flag is a text": lambda path: path.write_text('{"flags": {"a": "b"}}'),
    "no variants": lambda path: write(path, document(variants={})),
    "a state that is none": lambda path: write(path, document(state="PERHAPS")),
    "a default that is none": lambda path: write(path, document(defaultVariant="other")),
    "a share for nobody": lambda path: write(path, document({"fractional": [["other", 1]]})),
    "a weight that is none": lambda path: write(path, document({"fractional": [["new", "1"]]})),
    "an unknown operation": lambda path: write(path, document({"perhaps": ["new"]})),
    "an unknown key": lambda path: write(path, document(colour="red")),
    "a rule that is a text": lambda path: write(path, document("new")),
    "the same flag twice": lambda path: path.write_text(
        '{"flags": {"a": {}, "a": ' + json.dumps(document()["flags"][NAME]) + "}}"
    ),
    "too large": lambda path: path.write_text(" " * (FILE_BYTES_MAX + 1)),
    "nested too deep": lambda path: path.write_text('{"flags":' + "[" * 100_000),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: path.rename(path.with_name("old")).parent.joinpath(path.name).mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_changes_nothing_and_the_log_says_so(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    always = document({"if": [True, "new"]})
    provider = FileProvider(str(write(path, always)))
    assert ask(provider) == "new"
    DAMAGES[damage](path)
    caplog.clear()
    assert [ask(provider), ask(provider)] == ["new", "new"]
    (told,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert str(path) in told.message
    assert "what it said before stands" in told.message
    assert provider.damage == told.message


def test_a_file_that_is_mended_is_used_again(path: Path) -> None:
    provider = FileProvider(str(write(path, document({"if": [True, "new"]}))))
    assert ask(provider) == "new"
    write(path, "{")
    assert ask(provider) == "new"
    write(path, document())
    assert (ask(provider), provider.damage) == ("old", "")


def test_what_the_file_said_last_survives_a_restart(path: Path, tmp_path: Path) -> None:
    keep = str(tmp_path / "state" / "flags.json")
    assert ask(FileProvider(str(write(path, document({"if": [True, "new"]}))), keep)) == "new"
    write(path, "{")
    again = FileProvider(str(path), keep)
    assert ask(again) == "new"
    assert keep in again.damage


def test_without_a_sound_file_no_flag_is_set(path: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("{")
    provider = FileProvider(str(write(path, "{")), str(tmp_path / "kept"))
    with pytest.raises(OpenFeatureError):
        ask(provider)
    assert provider.flags() == {}
    assert "no flag is set" in provider.damage


def test_other_types_of_flag_are_read_too(path: Path) -> None:
    kinds = {"b": True, "i": 3, "f": 1.5, "o": {"x": 1}}
    flags = {
        name: {"state": "ENABLED", "variants": {"v": value}, "defaultVariant": "v"}
        for name, value in kinds.items()
    }
    provider = FileProvider(str(write(path, {"flags": flags})))
    assert provider.resolve_boolean_details("b", False).value is True
    assert provider.resolve_integer_details("i", 0).value == 3
    assert provider.resolve_float_details("f", 0.0).value == 1.5
    assert provider.resolve_object_details("o", {}).value == {"x": 1}
    assert provider.get_metadata().name == "novacron-file"


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(json_like, json_like)
def test_whatever_a_flag_holds_it_is_sound_or_refused_with_a_value_error(
    targeting: Any, more: Any
) -> None:
    found = document()
    found["flags"][NAME]["targeting"] = targeting
    if isinstance(more, dict):
        found["flags"][NAME] |= more
    with contextlib.suppress(ValueError):
        check_flags(found)
        assert engine(found) is not None


# Changing the percentage.


@pytest.mark.parametrize(
    ("rule", "percent", "becomes"),
    [
        (None, 10, {"fractional": [["new", 10], ["old", 90]]}),
        (SHARE, 50, {"fractional": [["new", 50], ["old", 50]]}),
        (SHARE, 0.5, {"fractional": [["new", 500], ["old", 99_500]]}),
        (SHARE, 0, {"fractional": [["new", 0], ["old", 100]]}),
        (
            {"fractional": [["old", 90], ["new", 10]]},
            30,
            {"fractional": [["old", 70], ["new", 30]]},
        ),
        (
            {"if": [{"==": [{"var": "tenant"}, "x"]}, SHARE]},
            25,
            {"if": [{"==": [{"var": "tenant"}, "x"]}, {"fractional": [["new", 25], ["old", 75]]}]},
        ),
        (
            {"fractional": [{"var": "tenant"}, ["new", 10], ["old", 90]]},
            20,
            {"fractional": [{"var": "tenant"}, ["new", 20], ["old", 80]]},
        ),
    ],
)
def test_a_percentage_is_changed_where_it_stands(
    path: Path, rule: Any, percent: float, becomes: Any
) -> None:
    write(path, document(rule) | {"metadata": {"owner": "us"}})
    path.chmod(0o640)
    assert set_percentage(path, NAME, percent) == {"new": percent, "old": 100 - percent}
    found = read_json(path)
    assert found["flags"][NAME]["targeting"] == becomes
    assert found["metadata"] == {"owner": "us"}
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("rule", "arguments", "error", "says"),
    [
        (SHARE, ("other", 10), NotFound, "other"),
        (SHARE, (NAME, 10, "newer"), NotFound, "newer"),
        (SHARE, (NAME, 10, "old"), ConfigError, "the rest"),
        (SHARE, (NAME, 101), ConfigError, "percentage"),
        (SHARE, (NAME, float("nan")), ConfigError, "percentage"),
        ({"if": [True, "new"]}, (NAME, 10), ConfigError, "share"),
        ({"if": [True, SHARE, SHARE]}, (NAME, 10), ConfigError, "share"),
        ({"fractional": [["new", 10], ["old", 60], ["old", 30]]}, (NAME, 10), ConfigError, "share"),
    ],
)
def test_a_percentage_that_cannot_be_set_is_refused_and_the_file_stays(
    path: Path, rule: Any, arguments: Any, error: type[Exception], says: str
) -> None:
    before = write(path, document(rule)).read_bytes()
    with pytest.raises(error, match=says):
        set_percentage(path, *arguments)
    assert path.read_bytes() == before


def test_a_flag_with_several_variants_wants_to_know_which(path: Path) -> None:
    write(path, document(variants={"old": "", "new": "acme", "newer": "zstd"}))
    with pytest.raises(ConfigError, match="newer") as refused:
        set_percentage(path, NAME, 10)
    assert "--variant" in refused.value.hint
    assert set_percentage(path, NAME, 10, "newer") == {"newer": 10, "old": 90}


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (None, {"old": 100.0}),
        (SHARE, {"new": 10.0, "old": 90.0}),
        ({"if": [True, SHARE]}, {}),
        ({"fractional": [["new", 0], ["old", 0]]}, {}),
    ],
)
def test_percentages_are_told_where_a_flag_is_nothing_but_a_share(rule: Any, told: Any) -> None:
    assert percentages(document(rule)["flags"][NAME]) == told


def test_the_example_is_sound_and_does_what_the_guide_says() -> None:
    found = read_json(Path(__file__).parents[3] / "examples" / "flags.json")
    check_flags(found)
    core = engine(found)
    names = [f"vm{number}" for number in range(200)]

    def those_with(**attributes: str) -> int:
        contexts = [EvaluationContext(name, attributes) for name in names]
        values = [core.resolve_string_value(NAME, "", one).value for one in contexts]
        return values.count("zstd")

    assert those_with(tenant="bank", site="hel") == 0
    assert those_with(tenant="shop", site="oslo") == 0
    assert 10 <= those_with(tenant="shop", site="hel") <= 30
