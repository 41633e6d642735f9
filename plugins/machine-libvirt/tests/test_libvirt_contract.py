"""The laws of the machine domain."""

from __future__ import annotations

from novacron_machine_libvirt.contract import TestLibvirtMachine

__all__ = ["TestLibvirtMachine"]
