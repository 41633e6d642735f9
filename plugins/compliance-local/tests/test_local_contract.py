"""The laws that every provider of this domain keeps."""

from __future__ import annotations

from novacron_compliance_local import LocalLog
from novacron_testkit.contracts import ComplianceContract


class TestLocalLog(ComplianceContract):
    provider = LocalLog
