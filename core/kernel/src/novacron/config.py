"""Typed configuration: profile, then ``novacron.toml``, then environment, then flags.

Each plugin's section has an attrs class; an unknown key is refused and names the nearest known
one. ``NOVACRON_NODE__NAME=alpha`` in the environment is ``name`` in ``[node]``: two underscores
part the levels, and the value is read as TOML where it is TOML, else as text.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Final, TypeVar

import attrs
import cattrs
from attrs import field, frozen, validators
from novacron_dwcp.link import OLDEST, VERSION, WINDOW_BYTES_MAX
from novacron_dwcp.modes import MODES

from novacron.errors import ConfigError
from novacron.hookspecs import DOMAINS
from novacron.loader import PluginManager

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
RESUME_FOR_MAX_S: Final = 7 * 86400.0
ENVIRONMENT_PREFIX: Final = "NOVACRON_"
CONFIG_FILE: Final = "novacron.toml"
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
T = TypeVar("T")


def _default_state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "novacron"


def _default_name() -> str:
    short = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower().split(".")[0]).strip("-")
    return short[:63] or "node"


@frozen(kw_only=True)
class NodeSettings:
    """The section ``[node]``.

    Attributes:
        name: This node's name, as its certificate and its peers call it.
        state_dir: What must survive: machines, journal, ownership, identity.
        listen: Where other nodes reach this one, in the words of the transport provider.
        mode: ``datacenter``, ``hybrid`` or ``internet``: which providers answer.
        detect_mode: Whether a migration goes over to the mode that its link is found to call for.
        profile: The profile in use, empty for the one called ``standard`` if there is one.
        resume_for_s: How long a broken link, or a peer that is down, is waited for before a move
            is given up.
        window_bytes: State that may be on its way to the destination without having been taken,
            the most that either side holds of it. Too small starves a long fast link (rate x round
            trip is needed). It does not lengthen the pause: what waits to be sent is held short.
        protocol: The newest version of the protocol to speak. Two nodes agree on what both speak;
            a new version can be held back by this until a whole fleet has it.
        strict_plugins: Refuse to start if any plugin fails to load.
        trace_hooks: Log and time each hook call.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
    """

    name: str = field(factory=_default_name)
    state_dir: Path = field(factory=_default_state_dir)
    listen: str = "127.0.0.1:7400"
    mode: str = "internet"
    detect_mode: bool = True
    profile: str = ""
    resume_for_s: float = 600.0
    window_bytes: int = 64 << 20
    protocol: int = field(default=VERSION, validator=validators.in_(range(OLDEST, VERSION + 1)))
    strict_plugins: bool = False
    trace_hooks: bool = False
    log_level: str = "info"


@frozen(kw_only=True)
class PeerSettings:
    """A section ``[peers.<name>]``: another node.

    Attributes:
        address: Where it listens, in the words of the transport provider.
    """

    address: str


@frozen(kw_only=True)
class Profile:
    """A named plugin set with settings.

    Attributes:
        description: One line for ``novacron profile list``.
        plugins: The plugins to load, those with the commands that are wanted among them; None for
            all that are installed.
        modes: The provider of each domain, by mode.
        settings: Sections, overridden by those of the file.
    """

    description: str = ""
    plugins: list[str] | None = None
    modes: dict[str, dict[str, str]] = field(factory=dict)
    settings: dict[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class Config:
    """All of a node's configuration, checked.

    Attributes:
        sections: The settings of each provider and plugin, by section (``"transport.x"``).
        providers: The provider that answers in each domain, by mode; machine drivers are not
            chosen: all that are installed are there.
        path: The file that was read, None if there was none.
    """

    node: NodeSettings
    peers: Mapping[str, PeerSettings]
    profile: str
    profiles: Mapping[str, Profile]
    sections: Mapping[str, Any]
    providers: Mapping[str, Mapping[str, str]]
    path: Path | None = None

    def chosen(self, domain: str, mode: str | None = None) -> str:
        """The provider's name. Raises ConfigError, naming the choices, if none was chosen."""
        mode = mode or self.node.mode
        name = self.providers.get(mode, {}).get(domain)
        if name is None:
            raise ConfigError(
                f"no {domain} provider is chosen for the mode {mode!r}",
                hint=f'say [modes.{mode}] {domain} = "…" in {CONFIG_FILE}; '
                "`novacron plugins list` shows what is installed",
            )
        return name


def _refuse_wrong_type(value: Any, kind: type[T]) -> T:
    # cattrs would make True of "false" and 1 of 1.9; a wrong type is the writer's error.
    wrong = isinstance(value, bool) and kind is not bool
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)  # type: ignore[return-value]
    if wrong or not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {_KINDS[kind]}")
    return value


_KINDS: Final[Mapping[type, str]] = MappingProxyType(
    {int: "whole number", float: "number", bool: "true or false", str: "text"}
)


def _is_plain_union(kind: Any) -> bool:
    return isinstance(kind, UnionType) and set(kind.__args__) <= {*_KINDS, NoneType}


def _one_of(value: Any, kind: Any) -> Any:
    for possible in kind.__args__:
        if type(value) is possible:
            return value
    words = " or ".join(_KINDS.get(possible, "nothing") for possible in kind.__args__)
    raise TypeError(f"{value!r} is no {words}")


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook_func(_is_plain_union, _one_of)
    for kind in _KINDS:
        converter.register_structure_hook(kind, _refuse_wrong_type)
    converter.register_structure_hook(
        Path, lambda value, _: Path(_refuse_wrong_type(value, str)).expanduser()
    )
    return converter


_CONVERTER: Final = _converter()


def structure(cls: type[T], values: Any, where: str) -> T:
    """Make an attrs object of what a file or a request holds.

    Args:
        cls: An attrs class with typed attributes.
        values: A mapping of its attributes' names.
        where: What to call it in an error ("[node]", "the machine's settings").
    Raises: ConfigError that names the key, the value and, for an unknown key, the nearest one.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a table of settings, not {values!r}")
    known = [attribute.name for attribute in attrs.fields(cls) if attribute.init]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise _unknown(f"{where} has no setting", str(key), known)
    try:
        return _CONVERTER.structure(dict(values), cls)
    except (cattrs.BaseValidationError, cattrs.StructureHandlerNotFoundError) as error:
        reasons = "; ".join(cattrs.transform_error(error, path=where, format_exception=_reason))
        raise ConfigError(reasons, hint="correct the value", where=where) from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}", hint="correct the value", where=where) from error


def _reason(error: BaseException, kind: type | None) -> str:
    if isinstance(error, KeyError):
        return f"the setting {error.args[0]!r} is missing"
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return f"unknown: {', '.join(sorted(error.extra_fields))}"
    return str(error)


def _unknown(what: str, key: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
    return ConfigError(f"{what} {key!r}", hint=hint, key=key)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merged level by level; elsewhere ``over`` wins."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def read_file(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError that names file and line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration file {path}", hint="name it with --config"
        ) from None
    except (ValueError, RecursionError) as error:  # also numbers too long, nesting too deep
        raise ConfigError(f"{path} is not sound TOML: {error}", hint="correct that line") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings among the environment's variables, as tables."""
    tables: dict[str, Any] = {}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or "__" not in variable:
            continue
        *sections, key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            value = text
        table = tables
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{variable} is a setting within {section}, which is none itself")
        table[key] = value
    return tables


def find_file(given: Path | None) -> Path | None:
    """The configuration file: the given one, NOVACRON_CONFIG, ./novacron.toml, or the user's."""
    if given is not None:
        return given
    if named := os.environ.get("NOVACRON_CONFIG"):
        return Path(named)
    user = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "novacron"
    return next((path for path in (Path(CONFIG_FILE), user / CONFIG_FILE) if path.is_file()), None)


def read_sources(
    path: Path | None, flags: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Path | None]:
    """File, environment and flags merged, not yet checked; and the file that was read."""
    found = find_file(path)
    tables = read_file(found) if found else {}
    tables = merge(tables, read_environment(os.environ))
    return merge(tables, flags or {}), found


def profiles_of(tables: Mapping[str, Any], manager: PluginManager | None) -> dict[str, Profile]:
    """The profiles that plugins brought, overridden by those of the file."""
    raw: dict[str, Any] = {}
    if manager is not None:
        for plugin, offered, error in manager.call("novacron_register_profiles"):
            if error is not None:
                raise ConfigError(f"the profiles of plugin {plugin!r} failed: {error}") from error
            raw |= offered or {}
    raw |= _table(tables, "profiles")
    return {
        name: structure(Profile, values, f"[profiles.{name}]")
        for name, values in sorted(raw.items())
    }


def load_plugins(tables: Mapping[str, Any], *, strict: bool = False) -> PluginManager:
    """The plugins that the profile in use names, or all. ``tables`` come from `read_sources`."""
    node = structure(NodeSettings, tables.get("node", {}), "[node]")
    profile = profiles_of(tables, None).get(node.profile)
    return PluginManager.load(
        only=profile.plugins if profile else None,
        strict=strict or node.strict_plugins,
        trace=node.trace_hooks,
    )


def check(tables: Mapping[str, Any], manager: PluginManager, path: Path | None = None) -> Config:
    """Everything typed and checked against the plugins that are loaded.

    Raises: ConfigError at the first thing that is wrong, naming section, key and value.
    """
    node = structure(NodeSettings, tables.get("node", {}), "[node]")
    profiles = profiles_of(tables, manager)
    name = node.profile or ("standard" if "standard" in profiles else "")
    if name and name not in profiles:
        raise _unknown("there is no profile", name, list(profiles))
    profile = profiles.get(name, Profile())
    tables = merge(merge({"modes": profile.modes}, profile.settings), tables)
    node = structure(NodeSettings, tables.get("node", {}), "[node]")
    _check_node(node)
    classes = manager.settings_classes()
    _refuse_unknown_sections(tables, classes)
    peers = {
        peer: structure(PeerSettings, values, f"[peers.{peer}]")
        for peer, values in _table(tables, "peers").items()
    }
    sections: dict[str, Any] = {
        section: structure(cls, _section(tables, section), f"[{section}]")
        for section, cls in classes.items()
    }
    return Config(
        node=node,
        peers=peers,
        profile=name,
        profiles=profiles,
        sections=sections,
        providers=_choose(tables, manager),
        path=path,
    )


def _check_node(node: NodeSettings) -> None:
    if not NAME.fullmatch(node.name):
        raise ConfigError(f"[node] name {node.name!r} is no name", hint=f"use {NAME.pattern}")
    if node.mode not in MODES:
        raise _unknown("there is no mode", node.mode, list(MODES))
    if not 1 << 20 <= node.window_bytes <= WINDOW_BYTES_MAX:
        raise ConfigError(f"[node] window_bytes {node.window_bytes} is not from 1 MiB to 1 GiB")
    if not 0 < node.resume_for_s <= RESUME_FOR_MAX_S:
        raise ConfigError(
            f"[node] resume_for_s {node.resume_for_s} must be above 0 and at most a week"
        )
    if node.log_level not in LOG_LEVELS:
        raise _unknown("there is no log level", node.log_level, list(LOG_LEVELS))


def _table(tables: Mapping[str, Any], key: str, above: str = "") -> Mapping[str, Any]:
    table = tables.get(key, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"[{above}{key}] must be a table of settings, not {table!r}")
    return table


def _section(tables: Mapping[str, Any], section: str) -> Any:
    values: Any = tables
    for part in section.split("."):
        if not isinstance(values, Mapping):
            raise ConfigError(f"[{section}] must be a table of settings")
        values = values.get(part, {})
    return values


def _refuse_unknown_sections(tables: Mapping[str, Any], classes: Mapping[str, type]) -> None:
    own = ["node", "peers", "profiles", "modes", "use"]
    domains = [*DOMAINS, "service", "operation"]
    single = [section for section in classes if "." not in section]
    for top, values in tables.items():
        if top in domains:
            for below in values if isinstance(values, Mapping) else ():
                if f"{top}.{below}" not in classes:
                    known = [s.partition(".")[2] for s in classes if s.startswith(f"{top}.")]
                    raise _unknown(f"no installed plugin offers the {top}", below, known)
        elif top not in own and top not in single:
            raise _unknown("there is no section", top, [*own, *single, *domains])


def _choose(tables: Mapping[str, Any], manager: PluginManager) -> dict[str, dict[str, str]]:
    """Which provider answers per mode and domain: [use], then [modes.<mode>], then the only one."""
    modes = _table(tables, "modes")
    use = _table(tables, "use")
    for mode in modes:
        if mode not in MODES:
            raise _unknown("there is no mode", mode, list(MODES))
    chosen: dict[str, dict[str, str]] = {}
    for mode in MODES:
        wanted = merge(_table(modes, mode, "modes."), use)
        chosen[mode] = {}
        for domain in wanted:
            if domain not in DOMAINS or domain == "machine":
                raise _unknown(f"[modes.{mode}] has no domain", domain, list(DOMAINS[1:]))
        for domain in DOMAINS[1:]:
            installed = list(manager.providers(domain))
            name = wanted.get(domain, installed[0] if len(installed) == 1 else None)
            if name is None:
                continue
            if name not in installed:
                raise _unknown(f"no installed plugin offers the {domain}", str(name), installed)
            chosen[mode][domain] = name
    return chosen
