"""The OpenFeature provider that the settings name, and a client of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from novacron import ConfigError
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.exception import OpenFeatureError
from openfeature.provider import FeatureProvider
from openfeature.provider.no_op_provider import NoOpProvider

from novacron_flags_openfeature._settings import FILE_PROVIDER, FlagsSettings

KEPT_FLAGS: Final = "flags.json"
NEEDED: Final = ("resolve_string_details", "get_metadata")
_numbers = itertools.count()


def make_provider(settings: FlagsSettings, folder: Path, *, renew: bool = True) -> FeatureProvider:
    """The provider that the settings name.

    Args:
        folder: Where the provider that reads a file keeps what it said last.
        renew: Whether it writes there; the node does, the command line does not.
    Raises: ConfigError that says what is missing.
    """
    if settings.provider != FILE_PROVIDER:
        if settings.file:
            raise ConfigError(
                f"[service.flags] has a file and the provider {settings.provider!r}",
                hint="give the file to that provider by its arguments, or take one of them out",
            )
        return _make(settings.provider, settings.arguments)
    if not settings.file:
        raise ConfigError(
            "[service.flags] names no file",
            hint='say file = "/etc/novacron/flags.json", or name another provider',
        )
    if settings.arguments:
        raise ConfigError("[service.flags] arguments are for another provider than the file's")
    path, keep = Path(settings.file).expanduser(), folder / KEPT_FLAGS
    return _make(FILE_PROVIDER, {"path": str(path), "keep": str(keep), "renew": renew})


def _make(name: str, arguments: Mapping[str, Any]) -> FeatureProvider:
    where = f"[service.flags] provider {name!r}"
    module, _, attribute = name.partition(":")
    try:
        cls = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{where}: there is no module {error.name!r}", hint="install the package that has it"
        ) from error
    except AttributeError:
        raise ConfigError(
            f"{where}: {module} has no {attribute}", hint="see the package's documentation"
        ) from None
    # Somebody else's module and class: whatever they raise is told with their name.
    except Exception as error:
        raise ConfigError(
            f"{where} cannot be imported: {type(error).__name__}: {error}",
            hint="report it to the authors of that package",
        ) from error
    missing = [method for method in NEEDED if not callable(getattr(cls, method, None))]
    if missing or not isinstance(cls, type):
        raise ConfigError(
            f"{where} is no OpenFeature provider: it lacks {', '.join(missing) or 'a class'}",
            hint="name the class that one passes to openfeature.api.set_provider",
        )
    try:
        made: FeatureProvider = cls(**arguments)
    except Exception as error:
        raise ConfigError(
            f"{where} cannot be made from its arguments: {type(error).__name__}: {error}",
            hint="correct [service.flags.arguments]",
        ) from error
    return made


class Client:
    """What asks a provider. OpenFeature keeps providers by domain in one table of the process; each
    client has a domain of its own, so that nodes in one process do not meet there."""

    def __init__(self, provider: FeatureProvider) -> None:
        """Raises: ConfigError if the provider cannot begin."""
        self.provider = provider
        self._domain = f"novacron-{next(_numbers)}"
        try:
            api.set_provider_and_wait(provider, self._domain)
        except Exception as error:
            api.set_provider(NoOpProvider(), self._domain)
            told = error.error_message if isinstance(error, OpenFeatureError) else error
            raise ConfigError(
                f"the flags' provider cannot begin: {type(error).__name__}: {told}",
                hint="see [service.flags]",
            ) from error
        self.ask: OpenFeatureClient = api.get_client(self._domain)

    def close(self) -> None:
        """Let go of the provider; it is shut down in a thread."""
        api.set_provider(NoOpProvider(), self._domain)
