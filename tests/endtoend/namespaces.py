"""Two network namespaces joined by a virtual cable, for tests that want two hosts."""

from __future__ import annotations

import os
import shutil
import subprocess
from types import TracebackType

import pytest


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


class TwoHosts:
    """Namespaces of this test's own, gone when it ends. Skips aloud where they cannot be made."""

    addresses = {"a": "10.81.7.1", "b": "10.81.7.2"}

    def __init__(self) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("network namespaces need root and iproute2: run as root")
        self.names = {side: f"nova-{os.getpid()}-{side}" for side in "ab"}
        self.prefixes = {side: ("ip", "netns", "exec", name) for side, name in self.names.items()}

    def __enter__(self) -> TwoHosts:
        devices = {side: f"nv{os.getpid()}{side}" for side in "ab"}
        for name in self.names.values():
            ip("netns", "add", name)
        ip(
            "link", "add", devices["a"], "netns", self.names["a"],
            "type", "veth", "peer", "name", devices["b"], "netns", self.names["b"],
        )  # fmt: skip
        for side, name in self.names.items():
            ip("-n", name, "address", "add", f"{self.addresses[side]}/24", "dev", devices[side])
            ip("-n", name, "link", "set", devices[side], "up")
            ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self.names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=20)
