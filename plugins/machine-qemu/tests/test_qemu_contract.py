"""The laws of the machine domain."""

from __future__ import annotations

from novacron_machine_qemu.contract import TestQemuMachine

__all__ = ["TestQemuMachine"]
