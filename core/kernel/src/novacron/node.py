"""The node: hosts machines, speaks to its peers, and takes operations from whoever asks."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import asdict, define, field, frozen
from novacron_dwcp import handover as ho
from novacron_dwcp import messages as msg
from novacron_dwcp.accept import Acceptor
from novacron_dwcp.convergence import Wish
from novacron_dwcp.driver import Link
from novacron_dwcp.link import EXAMINES, Greeting
from novacron_dwcp.memory import keep_freed_memory
from novacron_dwcp.modes import MODES, ModeDetector

from novacron import planning
from novacron.again import persist
from novacron.channels import PeerChannels
from novacron.codecs import Codecs
from novacron.config import NAME, Config, structure
from novacron.errors import (
    Cancelled,
    ConfigError,
    Conflict,
    MigrationFailed,
    NotFound,
    NovacronError,
    TransportError,
    Untrusted,
)
from novacron.hookspecs.compliance import MigrationPlan, OperationRequest
from novacron.hookspecs.consensus import Ownership, OwnershipRegister
from novacron.hookspecs.machine import MachineSpec, MoveLimits, Obstacle
from novacron.hookspecs.node import NodeFacts, Service
from novacron.hookspecs.placement import NodeReport
from novacron.hookspecs.security import SecureStream
from novacron.hookspecs.transport import Listener, Stream, Transport
from novacron.hosted import Entry, Hosted
from novacron.loader import PluginManager
from novacron.operations import Operation, Operations, new_id, now, refused
from novacron.session import DestinationSession, Record, Session, SourceSession
from novacron.sharing import Sharing

log = logging.getLogger("novacron.node")

PROBE_TIMEOUT_S: Final = 5.0
# A driver may start a process to see what its host can do.
EXAMINE_TIMEOUT_S: Final = 30.0


@frozen(kw_only=True)
class CreateParameters:
    driver: str
    memory_bytes: int = 64 << 20
    settings: dict[str, Any] = field(factory=dict)
    tenant: str = ""
    start: bool = True


@frozen(kw_only=True)
class AdjustParameters:
    """``rate_bytes_per_s``: the most to send from now on, 0 for no limit."""

    rate_bytes_per_s: int | None = None
    mode: str = ""


@frozen(kw_only=True)
class NoParameters:
    pass


@frozen(kw_only=True)
class DeleteParameters:
    force: bool = False


PARAMETERS: Final[Mapping[str, type]] = {
    "create": CreateParameters,
    "migrate": planning.MigrateParameters,
    "delete": DeleteParameters,
    **dict.fromkeys(("start", "stop", "pause", "resume"), NoParameters),
}


@define(eq=False)
class Node:
    """One NovaCron process on a host that runs machines.

    Args:
        config: Checked.
        manager: The plugins.

    Attributes:
        rates: Bytes per second on the wire that the last move to each peer reached.
    """

    config: Config
    manager: PluginManager
    facts: NodeFacts = field(init=False)
    channels: PeerChannels = field(init=False)
    operations: Operations = field(init=False)
    register: OwnershipRegister = field(init=False)
    hosted: Hosted = field(init=False)
    rates: dict[str, float] = field(factory=dict, init=False)
    sessions: dict[str, Session] = field(factory=dict, init=False)
    sharing: Sharing = field(init=False)
    started: str = field(default="", init=False)
    listen_address: str = field(default="", init=False)
    _providers: dict[tuple[str, str], Any] = field(factory=dict, init=False)
    _making: threading.RLock = field(factory=threading.RLock, init=False)
    _services: list[Service] = field(factory=list, init=False)
    _listener: Listener | None = field(default=None, init=False)
    _acceptor: Acceptor[Stream] | None = field(default=None, init=False)
    _tasks: dict[str, asyncio.Task[None]] = field(factory=dict, init=False)
    _offered_sessions: set[str] = field(factory=set, init=False)
    _answers: set[asyncio.Task[None]] = field(factory=set, init=False)
    _lock_file: int = field(default=-1, init=False)
    _stopping: asyncio.Event = field(factory=asyncio.Event, init=False)
    _loop: asyncio.AbstractEventLoop = field(init=False)

    def __attrs_post_init__(self) -> None:
        node = self.config.node
        self.sharing = Sharing(self)
        self.channels = PeerChannels(lambda peer, address: self._dialler(peer, "", address)[1]())
        self.facts = NodeFacts(
            name=node.name,
            state_dir=node.state_dir,
            settings=self.config.sections,
            channels=self.channels,
        )

    @property
    def sessions_folder(self) -> Path:
        return self.config.node.state_dir / "sessions"

    def provider(self, domain: str, name: str = "") -> Any:
        """The provider that answers in a domain in this node's mode, or the named one.

        Raises: ConfigError if none is chosen or installed.
        """
        name = name or self.config.chosen(domain)
        with self._making:  # links are dialled in threads
            return self._provider(domain, name)

    def _provider(self, domain: str, name: str) -> Any:
        if (domain, name) not in self._providers:
            classes = self.manager.providers(domain)
            if name not in classes:
                raise ConfigError(
                    f"no installed plugin offers the {domain} provider {name!r}",
                    hint=f"installed: {', '.join(classes) or 'none'}",
                )
            settings = self.config.sections[f"{domain}.{name}"]
            self._providers[domain, name] = classes[name](settings, self.facts)
        return self._providers[domain, name]

    # Life.

    async def start(self) -> None:
        """Adopt machines, recover sessions, listen, start the services.

        Raises: NovacronError that says what is missing; nothing is left running then but the
        machines that ran before.
        """
        self._loop = asyncio.get_running_loop()
        keep_freed_memory()
        state_dir = self.config.node.state_dir
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock(state_dir / "node.lock")
        try:
            self.sessions_folder.mkdir(mode=0o700, exist_ok=True)
            self.register = self.provider("consensus")
            self.operations = Operations(
                folder=state_dir / "operations",
                facts=self.facts,
                manager=self.manager,
                log=self.provider("compliance"),
            )
            self.operations.load()
            self.hosted = Hosted(
                state_dir / "machines", lambda name: self.provider("machine", name)
            )
            records = [Record.read(path) for path in sorted(self.sessions_folder.glob("*.json"))]
            await self.hosted.load({record.terms["session"] for record in records})
            identity = self.provider("security").identity()
            if identity.node != self.config.node.name:
                raise Untrusted(
                    f"the identity of this node is {identity.node!r}, and its name "
                    f"{self.config.node.name!r}",
                    hint="enrol it by its name, or correct [node] name",
                )
            self._listener = self.provider("transport").listen(self.config.node.listen)
            self.listen_address = self._listener.address
            for record in records:
                await self._recover(record)
            self._acceptor = Acceptor(
                self._listener.accept,
                self._secure,
                self._dialled_link,
                self._dialled_channel,
                self.config.node.protocol,
            )
            self._acceptor.start()
            self.manager.notify("novacron_on_node_start", node=self)
            for name, service in self.manager.providers("service").items():
                settings = self.config.sections[f"service.{name}"]
                if getattr(settings, "enabled", True):
                    self._services.append(service(settings, self))
                    await self._services[-1].start()
        except BaseException:
            await self.stop()
            raise
        self.started = now()

    def _take_lock(self, path: Path) -> None:
        self._lock_file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"a node runs on {path.parent} already",
                hint="`novacron node stop` ends it; or give this one another [node] state_dir",
            ) from None

    def request_stop(self) -> None:
        """Make `run` return; from the event loop."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `request_stop`."""
        await self._stopping.wait()

    async def stop(self) -> None:
        """Stop serving. The machines go on, and so do sessions when the node is back."""
        for service in reversed(self._services):
            await service.stop()
        self._services.clear()
        self.manager.notify("novacron_on_node_stop", node=self)
        if self._listener is not None:
            self._listener.close()
        self.channels.close()
        await self.sharing.stop()
        tasks = [*self._tasks.values(), *self._answers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        links = list(self._acceptor) if self._acceptor else []
        links += [session.link for session in self.sessions.values() if session.link]
        for link in links:
            link.close()
        if hasattr(self, "operations"):
            await self.operations.stop()
            await self.operations.log.close()
            await self.register.close()
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    # What services ask.

    def status(self) -> dict[str, Any]:
        node = self.config.node
        return {
            "node": node.name,
            "mode": node.mode,
            "profile": self.config.profile,
            "providers": dict(self.config.providers[node.mode]),
            "listen": self.listen_address,
            "state_dir": str(node.state_dir),
            "started": self.started,
            "machines": len(list(self.hosted)),
            "sessions": len(self.sessions),
            "plugins": sorted(self.manager.plugins),
            "failures": [str(failure) for failure in self.manager.failures],
        }

    async def machines(self) -> list[dict[str, Any]]:
        return [await self._describe(entry) for entry in self.hosted]

    async def machine(self, name: str) -> dict[str, Any]:
        """Raises NotFound."""
        return await self._describe(self.hosted.get(name))

    async def _describe(self, entry: Entry) -> dict[str, Any]:
        record = await self.register.read(entry.spec.name)
        session = self._session_of(entry.spec.name)
        try:
            state = (await entry.machine.state()).value
        except NovacronError as error:  # one that does not answer must not hide the others
            log.warning("the state of %s is unknown: %s", entry.spec.name, error)
            state = "unknown"
        return {
            **asdict(entry.spec),
            "state": state,
            "owner": record.owner if record else "",
            "epoch": record.epoch if record else 0,
            "note": f"{session.role} of session {session.terms.session}: {session.core.phase}"
            if session
            else "",
            "facts": dict(entry.machine.describe()),
        }

    def console(self, name: str) -> Path:
        return self.hosted.get(name).machine.console()

    def console_log(self, name: str) -> Path:
        return self.hosted.get(name).machine.console_log()

    async def peers(self) -> list[dict[str, Any]]:
        async def look(name: str, address: str) -> dict[str, Any]:
            line: dict[str, Any] = {"name": name, "address": address, "reachable": False}
            try:
                report = await self.probe(name)
            except NovacronError as error:
                return line | {"error": str(error)}
            return line | asdict(report) | {"reachable": True}

        found = self.config.peers.items()
        return await asyncio.gather(*(look(name, peer.address) for name, peer in found))

    async def adjust(self, operation_id: str, wish: Mapping[str, Any]) -> Operation:
        """Change a migration under way.

        Raises: NotFound, ConfigError; Conflict if it is not copying. Nothing is changed then.
        """
        operation = self.operations.get(operation_id)
        change = structure(AdjustParameters, wish, "the change")
        if change.mode not in ("", *MODES):
            raise ConfigError(
                f"there is no mode {change.mode!r}", hint=f"known: {', '.join(MODES)}"
            )
        for session in self.sessions.values():
            if isinstance(session, SourceSession) and session.operation == operation_id:
                break
        else:
            raise Conflict(f"{operation_id} is no migration under way")
        if session.pump is None or session.link is None:
            raise Conflict(f"{operation_id} does not copy yet", hint="try again in a moment")
        if change.mode:
            session.detector = None  # who says it wants it to stay
            await session.switch(change.mode, "as asked")
        if change.rate_bytes_per_s is not None:
            session.rate_bytes_per_s = change.rate_bytes_per_s or None
            session.limit()
            operation.report(limit_bytes_per_s=change.rate_bytes_per_s)
        return operation

    # Operations.

    async def submit(self, request: OperationRequest, *, key: str = "") -> Operation:
        """Begin a change of the world.

        Raises: ConfigError, NotFound, Conflict, Refused; nothing was begun then.
        """
        kinds = self.manager.providers("operation")
        kind = self.provider("operation", request.kind) if request.kind in kinds else None
        parameters_class = PARAMETERS.get(request.kind) if kind is None else kind.Parameters
        if parameters_class is None:
            known = ", ".join((*PARAMETERS, *kinds))
            raise ConfigError(f"there is no operation {request.kind!r}", hint=f"known: {known}")
        if not NAME.fullmatch(request.machine):
            raise ConfigError(f"{request.machine!r} is no machine name", hint=f"use {NAME.pattern}")
        if (same := self.operations.with_key(key, request)) is not None:
            return same
        parameters: Any = structure(
            parameters_class, request.parameters, f"the {request.kind} operation"
        )
        if kind is not None:
            if request.machine != self.facts.name:
                raise ConfigError(
                    f"{request.kind} concerns a node, and this is not {request.machine!r}",
                    hint=f"name {self.facts.name!r} as the machine",
                )
        elif request.kind == "create":
            self._check_new(request.machine, parameters)
        elif self._session_of(request.machine) is not None:
            raise Conflict(
                f"{request.machine} is in a migration", hint="see `novacron operation list`"
            )
        else:
            self.hosted.get(request.machine)

        async def work(operation: Operation) -> dict[str, Any] | None:
            if kind is not None:
                done: dict[str, Any] = await kind.run(self, operation, parameters)
                return done
            if request.kind == "create":
                return await self._create(request.machine, parameters)
            entry = self.hosted.get(request.machine)
            async with entry.lock:
                if request.kind == "migrate":
                    return await persist(
                        operation,
                        lambda: self._migrate(operation, entry, parameters),
                        self.config.node.resume_for_s,
                    )
                return await self._change(request, entry, parameters)

        return await self.operations.begin(request, work, key=key)

    def _check_new(self, name: str, parameters: CreateParameters) -> None:
        if self.hosted.find(name) is not None:
            raise Conflict(f"there is a machine {name!r} here already", hint="choose another name")
        self.provider("machine", parameters.driver).check(self._spec(name, parameters))

    def _spec(self, name: str, parameters: CreateParameters) -> MachineSpec:
        return MachineSpec(
            name=name,
            driver=parameters.driver,
            memory_bytes=parameters.memory_bytes,
            settings=parameters.settings,
            tenant=parameters.tenant,
        )

    async def _create(self, name: str, parameters: CreateParameters) -> dict[str, Any]:
        before = await self.register.read(name)
        if before is not None and before.owner != self.facts.name:
            raise Conflict(
                f"{name!r} belongs to {before.owner} (epoch {before.epoch})",
                hint="choose another name, or delete it there",
            )
        epoch = before.epoch if before else 0
        machine = await self.hosted.admit(self._spec(name, parameters))
        record = Ownership(machine=name, owner=self.facts.name, epoch=epoch + 1)
        try:
            await self.register.advance(record, expected_epoch=epoch)
            if parameters.start:
                await machine.start()
        except BaseException:
            await self.hosted.remove(name)
            raise
        return {"machine": name, "state": (await machine.state()).value}

    async def _owned(self, name: str) -> Ownership:
        record = await self.register.read(name)
        if record is None or record.owner != self.facts.name:
            owner = f"belongs to {record.owner}" if record else "has no owner"
            raise Conflict(
                f"{name} {owner}, so this node must not run it",
                hint="`novacron machine delete --force` removes what is left of it here",
            )
        return record

    async def _change(
        self, request: OperationRequest, entry: Entry, parameters: Any
    ) -> dict[str, Any]:
        name, machine = entry.spec.name, entry.machine
        if request.kind == "delete" and parameters.force:
            record = await self.register.read(name)
        else:
            record = await self._owned(name)
        if request.kind == "delete":
            await self.hosted.remove(name)
            if record is not None and record.owner == self.facts.name:
                await self.register.forget(name, epoch=record.epoch)
            return {"machine": name, "state": "deleted"}
        await getattr(machine, request.kind)()
        return {"machine": name, "state": (await machine.state()).value}

    # Migration, as the source.

    def _session_of(self, machine: str) -> Session | None:
        """The session that binds a machine; one that only tells the peer to clean up does not."""
        for session in self.sessions.values():
            over = session.core.phase is ho.Phase.ROLLBACK and session.outcome.done()
            if session.terms.machine == machine and not over:
                return session
        return None

    async def plan(self, machine: str, parameters: Mapping[str, Any]) -> MigrationPlan:
        """What a move would do and what stands in its way; see `novacron.planning.plan`."""
        return await planning.plan(self, machine, parameters)

    async def _migrate(
        self, operation: Operation, entry: Entry, wish: planning.MigrateParameters
    ) -> dict[str, Any]:
        operation.enter("plan")
        parameters = operation.request.parameters
        plan = await self.plan(entry.spec.name, parameters)
        planning.refuse(plan)
        record = await self._owned(entry.spec.name)
        state = await entry.machine.state()
        terms = ho.Terms(
            session=new_id("mig"),
            machine=entry.spec.name,
            source=self.facts.name,
            target=plan.target,
            epoch=record.epoch,
            runs=state == "running",
        )
        offer, codecs = await self._offer(terms, entry, plan)
        limits = MoveLimits(
            max_downtime_ms=plan.max_downtime_ms, slow_guest=wish.slow_guest, storage=plan.storage
        )
        detects = self.config.node.detect_mode and not wish.mode
        session = SourceSession(
            node=self,
            core=ho.Source(terms, offer=offer),
            machine=entry.machine,
            limits=limits,
            wish=Wish(
                max_downtime_ms=plan.max_downtime_ms,
                max_time_s=wish.max_time_s,
                max_bytes=wish.max_bytes,
            ),
            codecs=codecs,
            verify=wish.verify,
            mode=plan.mode,
            detector=ModeDetector(plan.mode) if detects else None,
            peer_codecs=frozenset(plan.target_codecs),
            # What an operator changed meanwhile holds for a further attempt too.
            rate_bytes_per_s=operation.progress.get("limit_bytes_per_s", wish.rate_bytes_per_s),
            used_bytes=planning.used_bytes(entry, plan.storage),
            priority=wish.priority,
            deadline_s=None if wish.deadline_s is None else time.monotonic() + wish.deadline_s,
            round_trip_ms=plan.round_trip_ms,
            providers=dict(plan.providers),
            operation=operation.id,
        )
        return await self._follow(operation, session, plan.mode)

    async def _offer(
        self, terms: ho.Terms, entry: Entry, plan: MigrationPlan
    ) -> tuple[msg.Offer, Codecs]:
        compression = plan.providers["compression"]
        offer = msg.Offer(
            **asdict(terms),
            driver=entry.spec.driver,
            memory_bytes=entry.spec.memory_bytes,
            settings=dict(entry.spec.settings),
            origin=planning.origin(entry, plan.storage),
            compression=compression,
            tenant=entry.spec.tenant,
        )
        codecs = Codecs.of(self, offer, "source", compression)
        await codecs.encoder(compression)
        return msg.with_codec_have(offer, await codecs.have()), codecs

    async def _follow(
        self, operation: Operation, session: SourceSession, mode: str
    ) -> dict[str, Any]:
        """Run a source session and make its outcome the operation's."""
        cancelled = False

        async def cancel() -> None:
            nonlocal cancelled
            cancelled = True
            session.post(ho.Failed("cancelled by the operator"))

        def enter(phase: str) -> None:
            operation.on_cancel(cancel if session.core.phase in ho.UNCOMMITTED else None)
            operation.enter(phase)

        operation.on_cancel(cancel)
        session.report, session.enter = operation.report, enter
        session.say = lambda text: operation.tell("message", {"text": text})
        operation.progress |= {"session": session.terms.session, "target": session.terms.target}
        self._run_source(session, mode)
        session.limit()
        try:
            return await session.result()
        except MigrationFailed as failed:
            if cancelled:
                truth = failed.truth
                raise Cancelled("the migration was cancelled", truth=truth) from failed
            raise

    def _run_source(self, session: SourceSession, mode: str = "") -> None:
        terms = session.terms
        session.link = self._dialling_link(
            terms.session,
            terms.target,
            lambda message: self._loop.call_soon_threadsafe(session.post, message),
            on_reset=lambda: session.post(ho.LinkLost(f"{terms.target} was restarted")),
            on_broken=lambda reason: session.post(ho.LinkLost(reason)),
            mode=mode,
            providers=session.providers,
        )
        session.link.start()
        self._run_session(session)
        self.sharing.wake()

    def _run_session(self, session: Session) -> None:
        name = session.terms.session
        self.sessions[name] = session

        async def run() -> None:
            try:
                await session.run()
            except asyncio.CancelledError:
                raise
            # The boundary of a session: a fault of ours must not pass in silence.
            except Exception as fault:
                log.exception("session %s failed by a fault of ours", name)
                if not session.outcome.done():
                    session.outcome.set_exception(
                        MigrationFailed(f"{type(fault).__name__}: {fault}")
                    )
            del self.sessions[name]
            if session.link is not None and isinstance(session, SourceSession):
                session.link.close()

        self._tasks[name] = task = asyncio.create_task(run(), name=name)
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def _recover(self, record: Record) -> None:
        """Take up a session that an earlier run of the node left."""
        terms = ho.Terms(**record.terms)
        entry = self.hosted.find(terms.machine)
        machine = entry.machine if entry else None
        log.warning("session %s is taken up as %s", terms.session, record.role)
        if record.role == "destination":
            core = ho.Destination(terms, recovered=ho.Phase(record.phase), digest=record.digest)
            self._run_session(DestinationSession(node=self, core=core, machine=machine))
            return
        offer = msg.Offer(
            **asdict(terms), driver="", memory_bytes=0, settings={}, origin={}, compression=""
        )
        session = SourceSession(
            node=self,
            core=ho.Source(terms, offer=offer, recovered=True),
            machine=machine,
            operation=record.operation,
        )
        try:
            former = self.operations.get(record.operation)
        except NotFound:
            self._run_source(session)
            return
        first = [session]

        async def attempt(operation: Operation) -> dict[str, Any]:
            if first:
                return await self._follow(operation, first.pop(), "")
            wish = structure(
                planning.MigrateParameters, former.request.parameters, "the migrate operation"
            )
            return await self._migrate(operation, self.hosted.get(terms.machine), wish)

        patience_s = self.config.node.resume_for_s
        await self.operations.begin(
            former.request,
            lambda operation: persist(operation, lambda: attempt(operation), patience_s),
            resumed=former.id,
        )

    # Links.

    def _dialling_link(
        self,
        session: str,
        peer: str,
        on_message: Callable[[msg.Message], object],
        *,
        on_reset: Callable[[], None],
        on_broken: Callable[[str], None],
        mode: str = "",
        providers: Mapping[str, str] | None = None,
    ) -> Link:
        chosen = providers or {}
        transport, dial = self._dialler(peer, mode, transport_name=chosen.get("transport", ""))
        version = int(chosen.get("protocol", 0))

        def decode(payload: bytes) -> None:
            on_message(msg.decode(payload))

        return self._link(
            transport,
            session,
            decode,
            on_reset=on_reset,
            on_broken=on_broken,
            dial=dial,
            version=version,
        )

    def _dialler(
        self, peer: str, mode: str, address: str = "", transport_name: str = ""
    ) -> tuple[Transport, Callable[[], SecureStream]]:
        mode = mode or self.config.node.mode
        transport = self.provider(
            "transport", transport_name or self.config.chosen("transport", mode)
        )
        security = self.provider("security", self.config.chosen("security", mode))

        def dial() -> SecureStream:
            if not address and peer not in self.config.peers:
                raise TransportError(f"[peers] has no {peer!r}", hint=f"add [peers.{peer}]")
            where = address or self.config.peers[peer].address
            stream = transport.connect(where, PROBE_TIMEOUT_S)
            return self._admit(security.client(stream, peer))

        return transport, dial

    def redial(self, link: Link, peer: str, mode: str, transport_name: str) -> None:
        """Let a link go on over streams of a transport, and of a mode's security."""
        transport, dial = self._dialler(peer, mode, transport_name=transport_name)
        steering = getattr(transport, "steering", None)
        link.steering = steering() if steering is not None else None
        link.redial(dial)

    def _link(
        self,
        transport: Transport,
        session: str,
        on_message: Callable[[bytes], None],
        *,
        on_reset: Callable[[], None],
        on_broken: Callable[[str], None],
        dial: Callable[[], SecureStream] | None = None,
        version: int = 0,
    ) -> Link:
        node = self.config.node
        steering = getattr(transport, "steering", None)
        return Link(
            session,
            node.window_bytes,
            node.resume_for_s,
            on_message,
            on_reset,
            on_broken,
            dial,
            steering=steering() if steering is not None else None,
            version=min(version or node.protocol, node.protocol),
        )

    def _admit(self, stream: SecureStream) -> SecureStream:
        arguments = {"peer": stream.peer, "channel": stream.channel}
        if objections := self.manager.check("novacron_check_peer", **arguments):
            stream.close()
            raise Untrusted(str(refused(f"the peer {stream.peer.node!r}", objections)))
        return stream

    async def probe(self, peer: str) -> NodeReport:
        """Ask a peer what it can give, and measure the round trip. Raises as `ask`."""
        report, _ = await self.ask(peer)
        return report

    async def ask(
        self, peer: str, examine: msg.Examine | None = None
    ) -> tuple[NodeReport, list[Obstacle]]:
        """Ask a peer what it can give, and what would stand in the way of a machine's coming.

        Raises: NotFound if there is no such peer, TransportError or Untrusted if it cannot be
        reached.
        """
        if peer not in self.config.peers:
            known = ", ".join(self.config.peers) or "none"
            raise NotFound(f"there is no peer {peer!r}", hint=f"known: {known}; add [peers.{peer}]")
        answers: asyncio.Queue[msg.Message | str] = asyncio.Queue()

        def later(value: msg.Message | str) -> None:
            self._loop.call_soon_threadsafe(answers.put_nowait, value)

        async def answer(expected: type[Any]) -> Any:
            value = await answers.get()
            if not isinstance(value, expected):
                reason = value if isinstance(value, str) else "it answered something else"
                raise TransportError(f"{peer} cannot be asked: {reason}")
            return value

        link = self._dialling_link("", peer, later, on_reset=lambda: None, on_broken=later)
        link.timeout_s = 0.0  # the first failure is the answer
        link.start()
        try:
            async with asyncio.timeout(2 * PROBE_TIMEOUT_S) as limit:
                await asyncio.to_thread(link.wait_connected, PROBE_TIMEOUT_S)
                began = time.monotonic()
                asks = examine is not None and link.core.version >= EXAMINES
                if answers.empty():
                    link.send_message(msg.encode(msg.Probe(session="")))
                    if examine is not None and asks:
                        link.send_message(msg.encode(examine))
                report: msg.Report = await answer(msg.Report)
                round_trip_ms = round((time.monotonic() - began) * 1000, 2)
                limit.reschedule(self._loop.time() + EXAMINE_TIMEOUT_S)
                found = planning.from_target(await answer(msg.Examined)) if asks else []
        except TimeoutError:
            raise TransportError(f"{peer} does not answer", hint="is its node running?") from None
        finally:
            link.close()
        return (
            NodeReport(
                node=peer,
                free_memory_bytes=report.free_memory_bytes,
                drivers=tuple(report.drivers),
                codecs=tuple(report.codecs),
                round_trip_ms=round_trip_ms,
                rate_bytes_per_s=self.rates.get(peer),
                protocol=link.core.version,
            ),
            found,
        )

    # As the side that is dialled. The first two run in threads.

    def _secure(self, stream: Stream) -> tuple[SecureStream, str]:
        secured = self._admit(self.provider("security").server(stream))
        return secured, secured.peer.node

    def _dialled_channel(self, protocol: str, stream: Any, peer: str) -> None:
        self.channels.run(protocol, stream)

    def _dialled_link(self, hello: Greeting, peer: str) -> Link:
        link: Link

        def on_message(payload: bytes) -> None:
            message = msg.decode(payload)
            self._loop.call_soon_threadsafe(self._received, link, peer, message)

        def on_broken(reason: str) -> None:
            self._loop.call_soon_threadsafe(self._link_broken, link, reason)

        link = self._link(
            self.provider("transport"),
            hello.session,
            on_message,
            on_reset=lambda: None,
            on_broken=on_broken,
        )
        return link

    def _link_broken(self, link: Link, reason: str) -> None:
        session = self.sessions.get(link.session)
        if session is not None and session.link is link:
            session.post(ho.LinkLost(reason))
        else:
            link.close()

    def _received(self, link: Link, peer: str, message: msg.Message) -> None:
        session = self.sessions.get(message.session)
        if isinstance(session, DestinationSession):
            if session.terms.source == peer:
                session.link = link
                session.post(message)
            return
        if isinstance(message, msg.Offer):
            self._reply(link, self._offered(link, peer, message))
        elif isinstance(message, msg.Probe):
            drivers = list(self.manager.providers("machine"))
            memory = planning.free_memory_bytes()
            report = msg.Report(
                session="",
                node=self.facts.name,
                free_memory_bytes=memory,
                drivers=drivers,
                codecs=list(self.manager.providers("compression")),
            )
            link.send_message(msg.encode(report))
        elif isinstance(message, msg.Examine):
            self._reply(link, planning.examined(self, peer, message))
        else:
            self._reply(link, self._answer(message))

    def _reply(self, link: Link, answer: Coroutine[Any, Any, msg.Message | None]) -> None:
        async def run() -> None:
            try:
                message = await answer
            except (NovacronError, OSError) as error:
                log.error("session %s: no answer: %s", link.session, error)
                return
            if message is not None:
                link.send_message(msg.encode(message))

        task = asyncio.create_task(run())
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, message: msg.Message) -> msg.Message | None:
        record = None
        if isinstance(message, msg.Run):
            record = await self.register.read(message.machine)
        return ho.answer_without_session(message, self.facts.name, record)

    async def _offered(self, link: Link, peer: str, offer: msg.Offer) -> msg.Message | None:
        """Begin to receive a machine, or say why not."""

        def refuse(reason: str, hint: str = "") -> msg.Refuse:
            return msg.Refuse(session=offer.session, reason=reason, hint=hint)

        if offer.session in self._offered_sessions or offer.session in self.sessions:
            return None  # said again while the first one is still being looked at, or is accepted
        sound = NAME.fullmatch(offer.machine) and offer.epoch > 0 and NAME.fullmatch(offer.session)
        if offer.source != peer or offer.target != self.facts.name or not sound:
            return refuse(f"{peer} offers what it cannot have")
        self._offered_sessions.add(offer.session)
        try:
            return await self._consider(link, peer, offer, refuse)
        finally:
            self._offered_sessions.discard(offer.session)

    async def _consider(
        self, link: Link, peer: str, offer: msg.Offer, refuse: Callable[..., msg.Refuse]
    ) -> msg.Message | None:
        bound = self._session_of(offer.machine)
        if bound is not None:
            stale = bound.terms.session > offer.session or isinstance(bound, SourceSession)
            if stale or bound.core.phase in (ho.Phase.RUN, ho.Phase.ROLLBACK):
                return refuse(f"{offer.machine} is in session {bound.terms.session}", "retry soon")
            # Its owner has begun anew, so it has given the old session up.
            bound.post(msg.Abort(session=bound.terms.session, reason="superseded"))
            await asyncio.wait([bound.outcome])
            if (task := self._tasks.get(bound.terms.session)) is not None:
                await asyncio.wait([task], timeout=10)
        record = await self.register.read(offer.machine)
        if record is not None and (record.epoch > offer.epoch or record.owner == self.facts.name):
            return refuse(f"{record.owner} owns {offer.machine} by epoch {record.epoch}")
        if self.hosted.find(offer.machine) is not None:
            return refuse(
                f"{self.facts.name} has a machine {offer.machine!r} already", "rename one"
            )
        request = OperationRequest(
            kind="receive",
            machine=offer.machine,
            subject=f"node:{peer}",
            parameters={"source": peer},
        )
        asked = {"request": request, "node": self.facts}
        if objections := self.manager.check("novacron_check_operation", **asked):
            return refuse(str(refused(f"{offer.machine!r} at {self.facts.name}", objections)))
        terms = {key: getattr(offer, key) for key in ho.TERMS}
        session = DestinationSession(
            node=self, core=ho.Destination(ho.Terms(**terms)), machine=None, link=link, offer=offer
        )
        self._run_session(session)
        return None
