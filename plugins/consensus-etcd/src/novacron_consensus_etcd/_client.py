"""What of etcd's API a register needs, over gRPC with TLS and several endpoints.

The messages and stubs are aetcd's. Its `Client` is not used: it knows one endpoint and no TLS.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import grpc  # type: ignore[import-untyped]
from aetcd import rpc  # type: ignore[import-untyped]
from attrs import define, frozen

from novacron_consensus_etcd._errors import EtcdError
from novacron_consensus_etcd._settings import EtcdSettings, address_of

T = TypeVar("T")

# A page of a listing; a key with a record is below 2 KiB.
PAGE_KEYS: Final = 1000
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)
# etcd answers at once, in place of waiting, if the member that is asked knows no leader.
_METADATA: Final = (("hasleader", "true"),)
_ELSEWHERE: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


@frozen(kw_only=True)
class KeyValue:
    """A key as etcd holds it; ``revision`` is the one of its last change, 0 for an absent key."""

    key: bytes
    value: bytes
    revision: int


@define(eq=False)
class _Connection:
    """A channel to one endpoint. Closing it cancels calls, so its last user does that."""

    channel: Any
    address: str
    users: int = 0


class Client:
    """A connection to whichever endpoint answers. All methods run on one event loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._addresses = [address_of(endpoint) for endpoint in settings.endpoints]
        self._present = 0
        self._connection: _Connection | None = None

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.channel.close()

    # Calls.

    async def get(self, key: bytes) -> KeyValue:
        """A key as the whole cluster has it now (a linearizable read)."""
        return _first(key, (await self._range(rpc.RangeRequest(key=key))).kvs)

    async def list(self, prefix: bytes) -> tuple[list[KeyValue], int]:
        """All keys below a prefix by name, all of one revision, and that revision."""
        found: list[KeyValue] = []
        start, revision, more = prefix, 0, True
        while more:
            request = rpc.RangeRequest(
                key=start, range_end=_after(prefix), limit=PAGE_KEYS, revision=revision
            )
            response = await self._range(request)
            revision = revision or response.header.revision
            found += [_of(one) for one in response.kvs]
            more = response.more and bool(response.kvs)
            start = found[-1].key + b"\0" if found else prefix
        return found, revision

    async def _range(self, request: Any) -> Any:
        return await self._repeated(lambda c, s: rpc.KVStub(c).Range(request, **_within(s)))

    async def swap(
        self, key: bytes, revision: int, value: bytes | None, *, lease: int = 0
    ) -> KeyValue | None:
        """Write a key (None removes it) if its last change is still the one of ``revision``.

        Returns: None if it was written, else what is there.
        Raises: EtcdError; its ``truth`` says that the write is in doubt, if it is. It is not tried
        again elsewhere, because only the caller knows what a repeated one means.
        """
        compare = rpc.Compare(
            key=key, target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=revision
        )
        if value is None:
            change = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
        else:
            put = rpc.PutRequest(key=key, value=value, lease=lease)
            change = rpc.RequestOp(request_put=put)
        look = rpc.RequestOp(request_range=rpc.RangeRequest(key=key))
        request = rpc.TxnRequest(compare=[compare], success=[change], failure=[look])
        response = await self._once(
            lambda c, s: rpc.KVStub(c).Txn(request, **_within(s)), self._settings.timeout_s
        )
        if response.succeeded:
            return None
        return _first(key, response.responses[0].response_range.kvs)

    async def grant(self, seconds: int) -> int:
        """A new lease's number."""
        request = rpc.LeaseGrantRequest(TTL=seconds)
        response = await self._repeated(
            lambda c, s: rpc.LeaseStub(c).LeaseGrant(request, **_within(s))
        )
        return int(response.ID)

    async def renew(self, lease: int) -> int:
        """The seconds that the lease has from now on; 0 if it had run out."""

        async def keep(channel: Any, seconds: float) -> Any:
            request = iter([rpc.LeaseKeepAliveRequest(ID=lease)])
            async for answer in rpc.LeaseStub(channel).LeaseKeepAlive(request, **_within(seconds)):
                return answer
            raise EtcdError("etcd ended the renewal of a lease without an answer")

        return int((await self._repeated(keep)).TTL)

    async def revoke(self, lease: int) -> None:
        request = rpc.LeaseRevokeRequest(ID=lease)
        await self._once(
            lambda c, s: rpc.LeaseStub(c).LeaseRevoke(request, **_within(s)),
            self._settings.timeout_s,
        )

    async def watch(self, prefix: bytes, revision: int) -> AsyncIterator[KeyValue]:
        """Changes below a prefix from a revision on; an empty value is a key that was removed.

        Ends, without an error, when the stream breaks or etcd has forgotten that revision: list
        anew, and watch from there.
        """
        create = rpc.WatchCreateRequest(
            key=prefix, range_end=_after(prefix), start_revision=revision, progress_notify=True
        )

        async def requests() -> AsyncIterator[Any]:
            yield rpc.WatchRequest(create_request=create)
            await asyncio.Event().wait()  # the stream is open as long as we do not end it

        connection = self._opened()
        connection.users += 1
        stream = rpc.WatchStub(connection.channel).Watch(requests(), metadata=_METADATA)
        try:
            async for response in stream:
                if response.canceled:
                    return
                for event in response.events:
                    removed = event.type == rpc.Event.DELETE
                    yield KeyValue(
                        key=event.kv.key,
                        value=b"" if removed else event.kv.value,
                        revision=event.kv.mod_revision,
                    )
        except grpc.aio.AioRpcError:
            self._turn_away(connection)
        finally:
            stream.cancel()
            await self._let_go(connection)

    # Endpoints.

    def _opened(self) -> _Connection:
        if self._connection is None:
            address = self._addresses[self._present]
            channel = grpc.aio.secure_channel(address, self._credentials(), options=_OPTIONS)
            self._connection = _Connection(channel, address)
        return self._connection

    def _credentials(self) -> Any:
        files = self._settings
        parts = []
        for label, name in (
            ("ca_file", files.ca_file),
            ("key_file", files.key_file),
            ("certificate_file", files.certificate_file),
        ):
            if not name:
                raise EtcdError(
                    f"[consensus.etcd] {label} is not set",
                    hint="name the PEM files of etcd's authority and of this node's client "
                    "certificate and key; etcd without TLS is not used",
                )
            try:
                parts.append(Path(name).expanduser().read_bytes())
            except OSError as error:
                raise EtcdError(
                    f"[consensus.etcd] {label}: {name} cannot be read: {error.strerror}",
                    hint="correct the path, or its owner and mode",
                ) from error
        root, key, certificate = parts
        return grpc.ssl_channel_credentials(root, key, certificate)

    def _turn_away(self, connection: _Connection) -> None:
        """Use the next endpoint from now on."""
        if self._connection is connection:
            self._connection = None
            self._present = (self._present + 1) % len(self._addresses)

    async def _let_go(self, connection: _Connection) -> None:
        connection.users -= 1
        if not connection.users and connection is not self._connection:
            await connection.channel.close()

    async def _once(self, call: Callable[[Any, float], Awaitable[T]], seconds: float) -> T:
        connection = self._opened()
        connection.users += 1
        try:
            return await call(connection.channel, seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() in _ELSEWHERE:
                self._turn_away(connection)
            self._fail(error, connection.address)
        finally:
            await self._let_go(connection)

    async def call(self, call: Callable[[Any, float], Awaitable[T]]) -> T:
        """Any other call of etcd's, by its channel and within so many seconds. Raises: EtcdError;
        it is not tried again elsewhere, but the next call is made there."""
        return await self._once(call, self._settings.timeout_s)

    async def _repeated(self, call: Callable[[Any, float], Awaitable[T]]) -> T:
        """A call that changes nothing, or does no harm if done twice: every endpoint is tried."""
        ends = time.monotonic() + self._settings.timeout_s
        for left in range(len(self._addresses), 0, -1):
            try:
                return await self._once(call, max(0.05, (ends - time.monotonic()) / left))
            except EtcdError as error:
                if left == 1 or not error.facts.get("elsewhere"):
                    raise
        raise AssertionError("there is always one endpoint")

    def _fail(self, error: Any, address: str) -> NoReturn:
        code, details = error.code(), error.details() or "no reason given"
        facts = {"endpoint": address, "grpc": code.name, "elsewhere": code in _ELSEWHERE}
        if code in _ELSEWHERE:
            raise EtcdError(
                f"etcd at {address} does not answer ({code.name.lower()}: {details})",
                hint="look at `etcdctl endpoint status --cluster`: a majority of its members must "
                f"run and be reached; configured: {', '.join(self._addresses)}",
                truth="whether a change that was under way was made is known after reading again",
                **facts,
            ) from error
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise EtcdError(
                f"etcd at {address} refuses this node: {details}",
                hint=f"let the client certificate's user read and write below "
                f"{self._settings.prefix} (etcdctl role grant-permission)",
                **facts,
            ) from error
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise EtcdError(
                f"etcd at {address} has no room: {details}",
                hint="compact and defragment it, then `etcdctl alarm disarm`; or raise "
                "--quota-backend-bytes",
                **facts,
            ) from error
        raise EtcdError(
            f"etcd at {address} failed ({code.name.lower()}): {details}",
            hint="look at its log",
            **facts,
        ) from error


def _within(seconds: float) -> dict[str, Any]:
    return {"timeout": seconds, "metadata": _METADATA}


def _of(found: Any) -> KeyValue:
    return KeyValue(key=found.key, value=found.value, revision=found.mod_revision)


def _first(key: bytes, found: Any) -> KeyValue:
    return _of(found[0]) if found else KeyValue(key=key, value=b"", revision=0)


def _after(prefix: bytes) -> bytes:
    """The first key that does not begin with a prefix, whose last byte is below 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
