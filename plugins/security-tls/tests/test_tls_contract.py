"""TLS keeps the laws of all security providers."""

from __future__ import annotations

from novacron_security_tls.contract import TestTls

__all__ = ["TestTls"]
