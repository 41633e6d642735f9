"""The ownership register in one durable SQLite file (provider ``sqlite``)."""

from __future__ import annotations

from collections.abc import Sequence

from novacron import OwnershipRegister, hookimpl

from novacron_consensus_sqlite._register import RegisterError, SqliteRegister, SqliteSettings

NOVACRON_API = 1

__all__ = ["NOVACRON_API", "RegisterError", "SqliteRegister", "SqliteSettings"]


@hookimpl
def novacron_register_consensus() -> Sequence[type[OwnershipRegister]]:
    return [SqliteRegister]
