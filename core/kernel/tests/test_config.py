"""Configuration: what wins over what, and errors that name section, key, value and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron import (
    API_VERSION,
    Config,
    ConfigError,
    PluginManager,
    PluginSource,
    hookimpl,
    structure,
)
from novacron import config as configuration


@frozen(kw_only=True)
class WireSettings:
    """A provider's settings of every kind.

    Attributes:
        rate: Union of text and number.
        retries: Whole number.
        wait_s: Number.
        eager: Flag.
        folder: Path.
        names: List of text.
    """

    rate: int | str = "fast"
    limit: float | None = None
    retries: int = 3
    wait_s: float = 1.5
    eager: bool = False
    folder: Path = Path("/var")
    names: list[str] = field(factory=list)


@frozen(kw_only=True)
class NoSettings:
    """Nothing."""


@frozen(kw_only=True)
class ExtraSettings:
    """A plugin's own section.

    Attributes:
        level: Of what it does.
    """

    level: int = 1


def provider(called: str, settings: type = NoSettings) -> type:
    return type("Provider", (), {"name": called, "Settings": settings})


def plugin(profiles: Mapping[str, Any] | None = None, *codecs: str) -> PluginManager:
    """A manager with the transports ``wire`` and ``pigeon``, one security, some codecs."""

    @hookimpl
    def novacron_register_transport() -> Any:
        return [provider("wire", WireSettings), provider("pigeon")]

    @hookimpl
    def novacron_register_security() -> Any:
        return [provider("seal")]

    @hookimpl
    def novacron_register_compression() -> Any:
        return [provider(name) for name in codecs]

    @hookimpl
    def novacron_register_profiles() -> Any:
        return profiles or {}

    hooks = {name: value for name, value in locals().items() if name.startswith("novacron_")}
    found = SimpleNamespace(NOVACRON_API=API_VERSION, **hooks)
    source = PluginSource(name="test", distribution="test", version="1", plugin=found)
    return PluginManager.load(sources=[source], strict=True)


MANAGER = plugin()


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NOVACRON_CONFIG",):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nothing-here"))
    monkeypatch.chdir(tmp_path)


def check(text: str, tmp_path: Path, manager: PluginManager = MANAGER) -> Config:
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    tables, found = configuration.read_sources(path)
    return configuration.check(tables, manager, found)


def refused(text: str, tmp_path: Path, manager: PluginManager = MANAGER) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        check(text, tmp_path, manager)
    assert str(error.value)
    return error.value


# What wins.


def test_an_empty_configuration_is_sound(tmp_path: Path) -> None:
    config = check("", tmp_path)
    assert config.node.mode == "internet"
    assert config.profile == ""
    assert config.sections["transport.wire"] == WireSettings()


def test_file_wins_over_profile_environment_over_file_and_flags_over_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = {"settings": {"transport": {"wire": {"retries": 10, "wait_s": 10.0, "eager": True}}}}
    manager = plugin({"standard": profile})
    path = tmp_path / "node.toml"
    path.write_text("[transport.wire]\nwait_s = 20.0\nlimit = 20.0\nrate = 20\n")
    monkeypatch.setenv("NOVACRON_TRANSPORT__WIRE__LIMIT", "30.0")
    monkeypatch.setenv("NOVACRON_TRANSPORT__WIRE__RATE", "30")
    flags = {"transport": {"wire": {"rate": 40}}}
    tables, found = configuration.read_sources(path, flags)
    config = configuration.check(tables, manager, found)
    assert config.profile == "standard"
    assert config.sections["transport.wire"] == WireSettings(
        retries=10, eager=True, wait_s=20.0, limit=30.0, rate=40
    )


def test_the_file_is_found_by_flag_then_environment_then_folder_then_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = tmp_path / "config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(user))
    assert configuration.find_file(None) is None
    (user / "novacron").mkdir(parents=True)
    (user / "novacron" / "novacron.toml").touch()
    assert configuration.find_file(None) == user / "novacron" / "novacron.toml"
    (tmp_path / "novacron.toml").touch()
    assert configuration.find_file(None) == Path("novacron.toml")
    monkeypatch.setenv("NOVACRON_CONFIG", "/named.toml")
    assert configuration.find_file(None) == Path("/named.toml")
    assert configuration.find_file(Path("flag.toml")) == Path("flag.toml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("true", True), ("[1, 2]", [1, 2]), ('"quoted"', "quoted"), ("plain", "plain"),
     ("10.0.0.1:7400", "10.0.0.1:7400"), ("", ""), ("a = b", "a = b")],
)  # fmt: skip
def test_a_variable_is_read_as_toml_where_it_is_toml_and_else_as_text(
    text: str, value: object
) -> None:
    tables = configuration.read_environment({"NOVACRON_NODE__NAME": text})
    assert tables == {"node": {"name": value}}


def test_variables_without_two_underscores_or_of_others_are_not_settings() -> None:
    found = configuration.read_environment({"NOVACRON_CONFIG": "x", "NODE__NAME": "x", "HOME": "x"})
    assert found == {}


def test_a_profile_in_the_file_replaces_the_one_that_a_plugin_brought(tmp_path: Path) -> None:
    manager = plugin({"standard": {"description": "of the plugin"}, "other": {}})
    config = check('[profiles.standard]\ndescription = "mine"\n', tmp_path, manager)
    assert config.profiles["standard"].description == "mine"
    assert sorted(config.profiles) == ["other", "standard"]


# Which provider answers.


def test_the_only_provider_of_a_domain_answers_in_all_modes(tmp_path: Path) -> None:
    config = check("", tmp_path)
    assert [config.chosen("security", mode) for mode in configuration.MODES] == ["seal"] * 3


def test_one_of_several_providers_must_be_chosen_and_the_error_says_how(tmp_path: Path) -> None:
    config = check("", tmp_path)
    with pytest.raises(ConfigError, match="no transport provider") as error:
        config.chosen("transport")
    assert '[modes.internet] transport = "…"' in error.value.hint


def test_a_mode_chooses_and_use_chooses_for_all_modes(tmp_path: Path) -> None:
    manager = plugin(None, "zip", "zap")
    text = '[modes.internet]\ntransport = "pigeon"\ncompression = "zip"\n'
    config = check(text + '[modes.datacenter]\ntransport = "wire"\n', tmp_path, manager)
    assert config.chosen("transport") == "pigeon"
    assert config.chosen("transport", "datacenter") == "wire"
    config = check(text + '[use]\ntransport = "wire"\n', tmp_path, manager)
    assert {config.chosen("transport", mode) for mode in configuration.MODES} == {"wire"}
    assert config.chosen("compression") == "zip"


def test_the_modes_of_the_profile_stand_under_those_of_the_file(tmp_path: Path) -> None:
    modes = {"internet": {"transport": "pigeon"}, "hybrid": {"transport": "pigeon"}}
    manager = plugin({"standard": {"modes": modes}})
    config = check('[modes.hybrid]\ntransport = "wire"\n', tmp_path, manager)
    assert config.chosen("transport", "internet") == "pigeon"
    assert config.chosen("transport", "hybrid") == "wire"


def test_the_mode_of_the_node_is_the_one_that_counts(tmp_path: Path) -> None:
    text = '[node]\nmode = "hybrid"\n[modes.hybrid]\ntransport = "wire"\n'
    assert check(text, tmp_path).chosen("transport") == "wire"


# Errors name what is wrong and the nearest right thing.


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("[nod]\n", "no section 'nod'", "'node'"),
        ("[node]\nnaem = 'a'\n", "[node] has no setting 'naem'", "'name'"),
        ("[node]\nmode = 'intranet'\n", "no mode 'intranet'", "'internet'"),
        ("[node]\nprofile = 'x'\n", "no profile 'x'", "none"),
        ("[modes.internets]\n", "no mode 'internets'", "'internet'"),
        ("[modes.internet]\ntransprot = 'wire'\n", "no domain 'transprot'", "'transport'"),
        ("[modes.internet]\ntransport = 'wir'\n", "the transport 'wir'", "'wire'"),
        ("[use]\ntransport = 'wir'\n", "the transport 'wir'", "'wire'"),
        ("[use]\nmachine = 'wasm'\n", "no domain 'machine'", ""),
        ("[transport.wier]\n", "the transport 'wier'", "'wire'"),
        ("[transport.wire]\nretrys = 1\n", "[transport.wire] has no setting 'retrys'", "'retries'"),
        ("[transport.wire]\nzzz = 1\n", "[transport.wire] has no setting 'zzz'", "retries"),
        ("[peers.b]\nadress = 'x'\n", "[peers.b] has no setting 'adress'", "'address'"),
        ("[profiles.p]\nmods = {}\n", "[profiles.p] has no setting 'mods'", "'modes'"),
        ("[node]\nname = 'no name'\n", "'no name' is no name", "use"),
        ("[node]\nname = ''\n", "'' is no name", "use"),
        ("[node]\nwindow_bytes = 5\n", "window_bytes 5", ""),
        ("[node]\nresume_for_s = 0\n", "resume_for_s 0.0", ""),
        ("[node]\nresume_for_s = -1\n", "resume_for_s -1.0", ""),
    ],
)
def test_what_is_unknown_or_impossible_is_named_with_what_to_do(
    text: str, says: str, hint: str, tmp_path: Path
) -> None:
    error = refused(text, tmp_path)
    assert says in str(error)
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("[node]\nname = 3\n", "[node].name", "3 is no text"),
        ("[node]\nstate_dir = 3\n", "[node].state_dir", "3 is no text"),
        ("[node]\nstrict_plugins = 'false'\n", "strict_plugins", "'false' is no true or false"),
        ("[node]\nstrict_plugins = 1\n", "strict_plugins", "1 is no true or false"),
        ("[node]\nwindow_bytes = 1.5\n", "window_bytes", "1.5 is no whole number"),
        ("[node]\nwindow_bytes = true\n", "window_bytes", "True is no whole number"),
        ("[node]\nresume_for_s = '5'\n", "resume_for_s", "'5' is no number"),
        ("[node]\nresume_for_s = true\n", "resume_for_s", "True is no number"),
        ("[peers.b]\naddress = 3\n", "[peers.b].address", "3 is no text"),
        ("[peers.b]\n", "[peers.b]", "'address' is missing"),
        ("[transport.wire]\nrate = 1.5\n", "rate", "1.5 is no whole number or text"),
        ("[transport.wire]\nrate = true\n", "rate", "True is no whole number or text"),
        ("[transport.wire]\nlimit = 'x'\n", "limit", "'x' is no number or nothing"),
        ("[transport.wire]\nnames = [1]\n", "names", "1 is no text"),
        ("[profiles.p]\nplugins = [1]\n", "[profiles.p].plugins", "1 is no text"),
    ],
)
def test_a_wrong_type_is_named_with_section_key_and_value(
    text: str, key: str, value: str, tmp_path: Path
) -> None:
    error = refused(text, tmp_path)
    assert key in str(error)
    assert value in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "node = 3\n", "peers = 3\n", "profiles = 3\n", "modes = 3\n", "use = 3\n",
        "peers = []\n", "modes = 'internet'\n", "use = 'x'\n", "transport = 3\n",
        "modes.internet = 3\n", "peers.b = 3\n", "profiles.p = 3\n", "transport.wire = 3\n",
        "[[node]]\n", "[[peers]]\n", "[[profiles]]\n", "[[modes]]\n", "[[use]]\n",
        "[[transport]]\n", "[[transport.wire]]\n", "[[modes.internet]]\n",
        "[use]\ntransport = 3\n", "[use]\ntransport = ['wire']\n", "[use]\ntransport = {}\n",
        "[modes.internet]\ntransport = 3\n",
        "[node]\nprofile = 'p'\n[profiles.p]\nsettings = {use = 3}\n",
        "[node]\nprofile = 'p'\n[profiles.p]\nsettings = {modes = 3}\n",
        "[node]\nprofile = 'p'\n[profiles.p]\nsettings = {peers = 3}\n",
        "[node]\nprofile = 'p'\n[profiles.p]\nmodes = {internet = 3}\n",
        "[node]\nresume_for_s = inf\n", "[node]\nresume_for_s = nan\n",
        "[node]\nwindow_bytes = 1000000000000000000000000\n",
        "[node]\nlog_level = 'loud'\n",
    ],
)  # fmt: skip
def test_tables_of_a_wrong_shape_and_values_out_of_bounds_are_refused(
    text: str, tmp_path: Path
) -> None:
    refused(text, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"[node", b"a = ", b"\xff\xfe", b"\x00", b"a = 1\na = 2", b"[a]\n[a]",
        b"a = 2030-99-99", b"a = " + b"9" * 5000, b"a = " + b"[" * 20_000,
        b"a = " + b"{b = " * 20_000,
    ],
    ids=range(10),
)  # fmt: skip
def test_a_file_that_is_not_sound_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml is not sound TOML"):
        configuration.read_sources(path)


def test_a_file_that_is_absent_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no configuration file .*absent\.toml"):
        configuration.read_sources(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        configuration.read_sources(tmp_path)


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 20_000], ids=["long number", "deep list"])
def test_a_variable_that_is_hostile_toml_is_text(text: str) -> None:
    tables = configuration.read_environment({"NOVACRON_NODE__NAME": text})
    assert tables == {"node": {"name": text}}


def test_a_variable_that_is_a_value_and_a_table_is_refused() -> None:
    environment = {"NOVACRON_NODE__NAME": "a", "NOVACRON_NODE__NAME__MORE": "b"}
    with pytest.raises(ConfigError, match="NOVACRON_NODE__NAME__MORE"):
        configuration.read_environment(environment)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 1 << 70), st.floats(), st.text(max_size=8)
)
TABLES = st.dictionaries(
    st.sampled_from(["node", "peers", "profiles", "modes", "use", "transport", "service", "x"]),
    st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            st.lists(inner, max_size=2),
            st.dictionaries(
                st.sampled_from(
                    ["internet", "wire", "b", "name", "mode", "settings", "transport", "address",
                     "profile", "modes", "node", "use", "standard", "resume_for_s"]
                ),
                inner,
                max_size=3,
            ),
        ),
        max_leaves=8,
    ),
    max_size=4,
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TABLES)
def test_whatever_the_file_holds_it_is_a_configuration_or_a_clear_error(
    tables: dict[str, Any],
) -> None:
    try:
        config = configuration.check(tables, MANAGER)
    except ConfigError:
        return
    assert isinstance(config, Config)


# Values.


def test_values_become_what_the_class_says(tmp_path: Path) -> None:
    text = (
        "[transport.wire]\nrate = 7\nlimit = 2.5\nretries = 4\nwait_s = 2\neager = true\n"
        'folder = "~/there"\nnames = ["a", "b"]\n'
    )
    assert check(text, tmp_path).sections["transport.wire"] == WireSettings(
        rate=7,
        limit=2.5,
        retries=4,
        wait_s=2.0,
        eager=True,
        folder=Path.home() / "there",
        names=["a", "b"],
    )


def test_peers_are_read_by_name(tmp_path: Path) -> None:
    config = check('[peers.b]\naddress = "b:7400"\n[peers.c]\naddress = "c:7400"\n', tmp_path)
    assert {name: peer.address for name, peer in config.peers.items()} == {
        "b": "b:7400",
        "c": "c:7400",
    }


def test_structure_is_for_plugins_too_and_names_where() -> None:
    assert structure(ExtraSettings, {"level": 4}, "[extra]") == ExtraSettings(level=4)
    with pytest.raises(ConfigError, match="extra") as error:
        structure(ExtraSettings, {"level": "4"}, "[extra]")
    assert error.value.facts["where"] == "[extra]"
    with pytest.raises(ConfigError, match="must be a table"):
        structure(ExtraSettings, 4, "[extra]")


def test_merge_is_level_by_level_and_changes_neither_of_its_arguments() -> None:
    base = {"a": {"x": 1, "y": {"z": 1}}, "b": 1}
    over = {"a": {"y": {"w": 2}}, "b": {"c": 2}}
    assert configuration.merge(base, over) == {"a": {"x": 1, "y": {"z": 1, "w": 2}}, "b": {"c": 2}}
    assert base == {"a": {"x": 1, "y": {"z": 1}}, "b": 1}
    assert over == {"a": {"y": {"w": 2}}, "b": {"c": 2}}
