"""The watch in a node: feeds it what the kernel tells, records what it suspects, and shuts out."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from attrs import define, field
from novacron import (
    Identity,
    Node,
    NodeFacts,
    NotFound,
    NovacronError,
    OperationEvent,
    OperationRequest,
    PluginManager,
    Refusal,
)

from novacron_security_threats._events import Alert, Attempt, Event, Fault, Proof, Reach, Sent
from novacron_security_threats._quarantine import Quarantined, Register, may_act, utc_now
from novacron_security_threats._settings import SECTION, ThreatsSettings
from novacron_security_threats._watch import Watch

log = logging.getLogger("novacron.threats")

# A request of which no operation came within this time was refused by somebody.
REFUSED_AFTER_S: Final = 5.0
WAITING_MAX: Final = 1024
RELEASE: Final = (
    "`novacron threats show NUMBER` says why; `novacron threats release IDENTITY` lifts it"
)


def settings_of(node: NodeFacts) -> ThreatsSettings:
    settings = node.settings.get(SECTION, ThreatsSettings())
    if not isinstance(settings, ThreatsSettings):
        # Raising refuses; a policy that cannot be read must not be one that allows.
        raise TypeError(f"[{SECTION}] holds {type(settings).__name__}, not ThreatsSettings")
    return settings


@define(eq=False)
class Guard:
    """The watch of one node. Its methods may be called from any thread.

    Args:
        node: Whose.
        manager: For ``novacron_on_threat``; None tells nobody.
        find_request: The request of an operation, by its id. Raises NotFound.
        requests: The requests of all operations that were begun.
        clock: Seconds that never go back.
    """

    node: NodeFacts
    manager: PluginManager | None = None
    find_request: Callable[[str], OperationRequest] | None = None
    requests: Callable[[], Iterable[OperationRequest]] = tuple
    clock: Callable[[], float] = time.monotonic
    register: Register = field(init=False)
    _written: Register = field(init=False)
    settings: ThreatsSettings = field(init=False)
    _watch: Watch = field(init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _waiting: OrderedDict[int, tuple[OperationRequest, float]] = field(
        factory=OrderedDict, init=False
    )
    _sent: OrderedDict[str, int] = field(factory=OrderedDict, init=False)
    _writer: ThreadPoolExecutor = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.settings = settings_of(self.node)
        # One for the hooks to read, one for the writer, which waits for the disk.
        self.register = Register(self.node.state_dir)
        self._written = Register(self.node.state_dir)
        self._watch = Watch(self.settings.watch)
        # Hooks on the event loop must not wait for a disk.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="novacron-threats")

    @classmethod
    def of(cls, node: Node) -> Guard:
        """The guard of a node that is about to serve."""
        return cls(
            node=node.facts,
            manager=node.manager,
            find_request=lambda operation: node.operations.get(operation).request,
            requests=lambda: [operation.request for operation in node.operations.list()],
        )

    def close(self) -> None:
        """Returns when everything is recorded."""
        self._writer.shutdown(wait=True)

    def settle(self) -> None:
        """Wait until what was suspected so far is recorded."""
        self._writer.submit(lambda: None).result()

    # What the kernel tells.

    def peer(self, peer: Identity) -> Refusal | None:
        """A peer proved who it is. Runs in a worker thread: what it leads to counts at once."""
        if (refusal := self.refuse(peer.node)) is not None:
            return refusal
        for alert in self.observe(Proof(identity=peer.node, fingerprint=peer.fingerprint)):
            log.debug("%s of %s", alert.detector, peer.node)
        self.settle()
        return self.refuse(peer.node)

    def operation(self, request: OperationRequest) -> Refusal | None:
        """Somebody asks for an operation. Runs on the event loop."""
        if (refusal := self.refuse(request.subject)) is not None:
            return refusal
        with self._lock:
            while len(self._waiting) >= WAITING_MAX:
                self._waiting.popitem(last=False)
            self._waiting[id(request)] = request, self.clock()
        if request.kind != "create":  # what it makes was nobody's before
            self.observe(Reach(identity=request.subject, target=request.machine))
        self._find_refused()
        return None

    def operation_event(self, event: OperationEvent) -> None:
        """Something happened to an operation. Runs on the event loop."""
        if self.find_request is None:
            return
        try:
            request = self.find_request(event.operation)
        except NotFound:
            return
        with self._lock:
            granted = self._waiting.pop(id(request), None) is not None
        if granted:
            self.observe(Attempt(identity=request.subject))
        if event.kind == "progress":
            self._progress(event, request)
        elif event.kind == "state":
            with self._lock:
                self._sent.pop(event.operation, None)
            self._ended(event, request)

    def _progress(self, event: OperationEvent, request: OperationRequest) -> None:
        total = event.data.get("wire_bytes")
        if not isinstance(total, int):
            return
        with self._lock:
            before = self._sent.pop(event.operation, 0)
            while len(self._sent) >= WAITING_MAX:
                self._sent.popitem(last=False)
            self._sent[event.operation] = total
        if total > before:
            self.observe(Sent(identity=request.subject, bytes=total - before))

    def _ended(self, event: OperationEvent, request: OperationRequest) -> None:
        error: Any = event.data.get("error")
        target = request.parameters.get("target")
        if isinstance(error, dict) and error.get("code") == "peer-protocol" and target:
            what = str(error.get("message", ""))
            self.observe(Fault(identity=str(target), what=what))

    def _find_refused(self) -> None:
        now = self.clock()
        late = []
        with self._lock:
            while self._waiting:
                key, (request, since) = next(iter(self._waiting.items()))
                if now - since < REFUSED_AFTER_S:
                    break
                del self._waiting[key]
                late.append(request)
        begun = {id(request) for request in self.requests()} if late else set()
        for request in late:
            self.observe(Attempt(identity=request.subject, accepted=id(request) in begun))

    # What follows from it.

    def refuse(self, identity: str) -> Refusal | None:
        """Whether an identity is shut out. Raises ConfigError if nobody can say: that refuses."""
        with self._lock:
            found = self.register.find(identity, utc_now())
        return None if found is None else _refusal(found)

    def observe(self, event: Event) -> tuple[Alert, ...]:
        """Give the watch an event; what it suspects is recorded by another thread."""
        with self._lock:
            alerts = self._watch.handle(event, self.clock())
        for alert in alerts:
            self._writer.submit(self._take, alert)
        return alerts

    def _take(self, alert: Alert) -> None:
        try:
            self._record(alert)
        except (OSError, NovacronError) as error:
            log.error("an alert could not be recorded: %s (%s)", error, "; ".join(alert.reasons))

    def _record(self, alert: Alert) -> None:
        now = utc_now()
        kept, fresh = self._written.record(alert, now)
        held_back = may_act(alert, self.settings, self._written.quarantined(now))
        if not held_back:
            self._written.quarantine(
                alert.identity,
                by=alert.detector,
                reason="; ".join(alert.reasons),
                now=now,
                hold_s=self.settings.hold_s,
                alert=kept.number,
            )
            self._written.mark(kept.number)
        if not fresh:
            return
        who = alert.identity or f"the origin {alert.origin}"
        log.warning(
            "%s by %s (score %.1f): %s; %s",
            alert.detector,
            who,
            alert.score,
            "; ".join(alert.reasons),
            f"not quarantined: {held_back}" if held_back else "quarantined",
        )
        if self.manager is not None:
            told = {"alert": alert, "quarantined": not held_back, "node": self.node}
            self.manager.notify("novacron_on_threat", **told)


def _refusal(found: Quarantined) -> Refusal:
    until = f"until {found.until:%Y-%m-%d %H:%M} UTC" if found.until else "until it is released"
    return Refusal(
        reason=f"{found.identity!r} is in quarantine {until} ({found.by}: {found.reason})",
        hint=RELEASE,
    )
