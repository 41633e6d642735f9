"""What the API needs of the node that hosts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from novacron import (
    MigrationPlan,
    NodeFacts,
    Operation,
    OperationRequest,
    Operations,
    PluginManager,
)


class Host(Protocol):
    """A node, as the API sees it."""

    @property
    def facts(self) -> NodeFacts: ...

    @property
    def manager(self) -> PluginManager: ...

    @property
    def operations(self) -> Operations: ...

    async def machines(self) -> Sequence[Mapping[str, Any]]: ...

    async def machine(self, name: str) -> Mapping[str, Any]: ...

    async def submit(self, request: OperationRequest, *, key: str = "") -> Operation: ...

    async def plan(self, machine: str, parameters: dict[str, Any]) -> MigrationPlan: ...

    async def adjust(self, operation_id: str, wish: dict[str, Any]) -> Operation: ...

    def console(self, name: str) -> Path: ...

    def console_log(self, name: str) -> Path: ...

    async def peers(self) -> Sequence[Mapping[str, Any]]: ...

    def status(self) -> Mapping[str, Any]: ...

    def request_stop(self) -> None: ...
