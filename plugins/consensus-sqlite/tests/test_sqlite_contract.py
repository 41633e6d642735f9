"""The laws that every provider of this domain keeps."""

from __future__ import annotations

from novacron_consensus_sqlite import SqliteRegister
from novacron_testkit.contracts import ConsensusContract


class TestSqliteRegister(ConsensusContract):
    provider = SqliteRegister
