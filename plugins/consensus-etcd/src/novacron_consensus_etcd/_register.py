"""The provider: one key per machine, changed only by a compare of its last revision."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec
from novacron import NodeFacts, Ownership, check_record, fenced

from novacron_consensus_etcd._errors import EtcdError
from novacron_consensus_etcd._settings import EtcdSettings

if TYPE_CHECKING:
    from novacron_consensus_etcd._client import KeyValue

log = logging.getLogger("novacron.consensus.etcd")

NAME_CHARS_MAX: Final = 255
# Rivals overtake each other at the most so often before one of them is told to look again.
ATTEMPTS: Final = 64
WATCH_AGAIN_S: Final = 0.2

# Whether a change may be made over the present record; False: it holds already. Raises Fenced.
_Allowed = Callable[[Ownership | None], bool]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key's value, as JSON, so that ``etcdctl get`` shows it to people."""

    machine: str
    owner: str
    epoch: int
    session: str


class EtcdRegister:
    """Ownership in etcd: each change is one transaction that compares the key's last revision.

    While it is in use, the key ``PREFIX/nodes/NAME`` says that this node lives; it hangs on a
    lease, so etcd removes it ``lease_s`` after the node was last heard of.

    What is read of a machine that has a record is final: no change that this node has given up, in
    this life or an earlier one, takes effect afterwards.
    """

    name: ClassVar[str] = "etcd"
    Settings: ClassVar[type] = EtcdSettings

    def __init__(self, settings: EtcdSettings, node: NodeFacts) -> None:
        # gRPC takes a moment to load, which commands need not wait for.
        from novacron_consensus_etcd._client import Client

        self._settings = settings
        self._node = node.name
        self._client = Client(settings)
        self._machines = f"{settings.prefix}/machines/".encode()
        self._nodes = f"{settings.prefix}/nodes/".encode()
        # Machines of which no change of ours is in doubt. In a new life none is known to be.
        self._settled: set[str] = set()
        self._lease = 0
        self._alive_until = 0.0
        self._presence: asyncio.Task[None] | None = None
        self._closed = False

    # The contract of a register.

    async def read(self, machine: str) -> Ownership | None:
        self._use()
        key = self._key(machine)
        found = await self._client.get(key)
        record = self._record(found)
        for _ in range(ATTEMPTS):
            if record is None or machine in self._settled:
                return record
            # Written as it is, it has a new revision, and a late change compares one that is gone.
            there = await self._client.swap(key, found.revision, found.value)
            if there is None:
                self._settled.add(machine)
            else:
                found, record = there, self._record(there)
        raise _overtaken(machine)

    async def advance(self, record: Ownership, *, expected_epoch: int | None) -> None:
        check_record(record, expected_epoch)
        self._use()
        value = msgspec.json.encode(
            _Record(record.machine, record.owner, record.epoch, record.session)
        )

        def allowed(present: Ownership | None) -> bool:
            if present == record:
                return False
            epoch = present.epoch if present else 0
            if (expected_epoch is not None and expected_epoch != epoch) or record.epoch <= epoch:
                raise fenced(
                    record.machine, present, f"to write epoch {record.epoch}", expected_epoch
                )
            return True

        await self._change(record.machine, value, allowed)

    async def owned_by(self, node: str) -> Sequence[Ownership]:
        self._use()
        found, _ = await self._client.list(self._machines)
        # All are decoded: a damaged one may be the one that says "not yours any more".
        records = [self._record(one) for one in found]
        theirs = [record for record in records if record is not None and record.owner == node]
        final = [await self.read(record.machine) for record in theirs]
        return [record for record in final if record is not None and record.owner == node]

    async def forget(self, machine: str, *, epoch: int) -> None:
        self._use()

        def allowed(present: Ownership | None) -> bool:
            if present is None:
                return False  # forgotten already: a call may be repeated after a doubt
            if present.epoch != epoch:
                raise fenced(machine, present, f"to forget epoch {epoch}")
            return True

        await self._change(machine, None, allowed)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._presence is not None:
            self._presence.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._presence
            if self._lease:
                # Others see at once that we are gone; if etcd is away, the lease runs out.
                with contextlib.suppress(EtcdError):
                    await self._client.revoke(self._lease)
        await self._client.close()

    # What etcd gives beyond it.

    async def changes(self) -> AsyncIterator[tuple[str, Ownership | None]]:
        """Every machine's record as it is, then each change as it comes (None: forgotten).

        After a break of the connection what holds by then is told; a record that came and went
        in between may be missed, the newest is not.
        """
        known: dict[str, Ownership | None] = {}
        while True:
            try:
                found, revision = await self._client.list(self._machines)
            except EtcdError as error:
                log.warning("changes of ownership are not seen for now: %s", error)
                await asyncio.sleep(WATCH_AGAIN_S)
                continue
            records = {self._machine(one): self._record(one) for one in found}
            gone = dict.fromkeys(set(known) - set(records))
            for machine, record in sorted((records | gone).items()):
                if machine not in known or known[machine] != record:
                    yield machine, record
            known = dict(records)
            async for one in self._client.watch(self._machines, revision + 1):
                machine, record = self._machine(one), self._record(one)
                known[machine] = record
                yield machine, record
            await asyncio.sleep(WATCH_AGAIN_S)

    async def nodes(self) -> Sequence[str]:
        """The nodes that have given a sign of life within their lease, by name."""
        self._use()
        found, _ = await self._client.list(self._nodes)
        return [one.key.removeprefix(self._nodes).decode(errors="replace") for one in found]

    @property
    def lease_left_s(self) -> float:
        """For how many seconds others still count this node as living, at the least."""
        return max(0.0, self._alive_until - time.monotonic())

    # Inside.

    def _use(self) -> None:
        if self._closed:
            raise RuntimeError("the register is closed")
        if self._presence is None:
            self._presence = asyncio.create_task(self._stay_present())

    async def _stay_present(self) -> None:
        key, told = self._nodes + self._node.encode(), ""
        while True:
            began = time.monotonic()  # the lease counts from some moment after this one
            try:
                if not self._lease or not await self._client.renew(self._lease):
                    self._lease = await self._client.grant(self._settings.lease_s)
                    present = await self._client.get(key)
                    await self._client.swap(key, present.revision, b"{}", lease=self._lease)
                self._alive_until, told = began + self._settings.lease_s, ""
            except EtcdError as error:
                if str(error) != told:  # once per cause, not once per attempt
                    log.warning("this node's lease was not renewed: %s", error)
                told = str(error)
            await asyncio.sleep(self._settings.lease_s / 3)

    async def _change(self, machine: str, value: bytes | None, allowed: _Allowed) -> None:
        """Write what ``allowed`` lets pass, against whatever rivals write meanwhile.

        A write in doubt is settled by reading: if it was made, `allowed` finds it holding, and if
        it arrives late, the revision that it compares is gone.
        """
        key = self._key(machine)
        present = await self._client.get(key)
        doubts = 0
        for _ in range(ATTEMPTS):
            if not allowed(self._record(present)):
                return
            try:
                there = await self._client.swap(key, present.revision, value)
            except EtcdError as error:
                self._settled.discard(machine)
                doubts += 1
                if not error.facts.get("elsewhere") or doubts > len(self._settings.endpoints):
                    raise
                there = await self._client.get(key)
            if there is None:
                self._settled.add(machine)
                return
            present = there
        raise _overtaken(machine)

    def _key(self, machine: str) -> bytes:
        if not machine.isprintable() or not 1 <= len(machine) <= NAME_CHARS_MAX:
            raise ValueError(f"{machine!r} is no machine's name")
        return self._machines + machine.encode()

    def _machine(self, found: KeyValue) -> str:
        return found.key.removeprefix(self._machines).decode(errors="replace")

    def _record(self, found: KeyValue) -> Ownership | None:
        if not found.value:
            return None
        key = found.key.decode(errors="replace")
        try:
            value = msgspec.json.decode(found.value, type=_Record)
            record = Ownership(
                machine=value.machine, owner=value.owner, epoch=value.epoch, session=value.session
            )
            check_record(record)
            if record.machine != self._machine(found):
                raise ValueError(f"it is the record of machine {record.machine!r}")
        except (msgspec.MsgspecError, ValueError) as error:
            raise EtcdError(
                f"what etcd holds at {key!r} is no record of this register: {error}",
                hint="see who wrote it (`etcdctl get`); put the right record there, or choose "
                "another prefix",
                key=key,
            ) from error
        return record


def _overtaken(machine: str) -> EtcdError:
    return EtcdError(
        f"the record of machine {machine!r} was overtaken {ATTEMPTS} times by others",
        hint="read it and try again",
        machine=machine,
    )
