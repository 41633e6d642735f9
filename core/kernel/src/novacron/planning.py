"""What a move would do, and all that stands in its way, before a byte of the machine leaves."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
from attrs import frozen
from novacron_dwcp import messages as msg
from novacron_dwcp.convergence import LAST_SET_MS_MIN, ROUND_TRIPS, promised_ms
from novacron_dwcp.link import EXAMINES, OLDEST
from novacron_dwcp.modes import MODES

from novacron.config import NAME, structure
from novacron.errors import ConfigError, Conflict, NovacronError, Refused, TransportError, Untrusted
from novacron.hookspecs.compliance import MigrationPlan, OperationRequest
from novacron.hookspecs.machine import MachineSpec, MoveWish, Obstacle
from novacron.hookspecs.move import MoveContext, MoveEstimate, MoveFacts
from novacron.hookspecs.placement import NodeReport

if TYPE_CHECKING:
    from novacron.hosted import Entry
    from novacron.node import Node

log = logging.getLogger("novacron.planning")


@frozen(kw_only=True)
class MigrateParameters:
    """``max_downtime_ms``: 0 is what the project promises for the link's round trip.
    ``slow_guest``: a guest that writes too fast may be slowed down.

    ``verify``: ``stream`` compares a digest of all that was sent; ``memory`` also one of the
    paused machine's whole memory on both sides, which lengthens the pause.

    ``storage``: see `MoveWish`. ``priority``: higher goes first where moves share a link;
    ``deadline_s``: when it should be over, from now; it is not given up then."""

    target: str
    max_downtime_ms: int = 0
    max_time_s: float | None = None
    max_bytes: int | None = None
    slow_guest: bool = False
    rate_bytes_per_s: int | None = None
    mode: str = ""
    verify: Literal["stream", "memory"] = "stream"
    storage: Literal["", "copy", "shared"] = ""
    priority: int = 0
    deadline_s: float | None = None


# So much smaller pages become on the wire at the least, where a codec is of any use.
LITTLE_GAIN: Final = 4

# A move that meets one of these may be tried again; what nobody could ask about is not refused.
_LINK: Final = {error.code: error for error in (TransportError, Untrusted)}


def refuse(plan: MigrationPlan) -> None:
    """Raise Refused, with every obstacle that blocks and its cure, if there is one.

    Raises: TransportError or Untrusted instead if the target could not be asked.
    """
    blocking = [obstacle for obstacle in plan.obstacles if obstacle.blocks]
    for obstacle in blocking:
        if (error := _LINK.get(obstacle.code.removeprefix("link."))) is not None:
            raise error(obstacle.what, hint=obstacle.cure)
    if blocking:
        raise Refused(
            f"{plan.machine.name} cannot move to {plan.target}: "
            + "; ".join(obstacle.what for obstacle in blocking),
            hint="; ".join(dict.fromkeys(o.cure for o in blocking if o.cure)),
            truth="nothing was changed",
            obstacles=[attrs.asdict(obstacle) for obstacle in blocking],
        )


async def plan(node: Node, machine: str, parameters: Mapping[str, Any]) -> MigrationPlan:
    """What a move would do, with every check asked; no byte of the machine leaves.

    Raises: NotFound, ConfigError, Conflict if the question itself makes no sense; Refused if no
    node would do where none was named. That the target cannot be asked is an obstacle.
    """
    entry = node.hosted.get(machine)
    wish = structure(MigrateParameters, parameters, "the migrate operation")
    mode = wish.mode or node.config.node.mode
    if mode not in MODES:
        raise ConfigError(f"there is no mode {mode!r}", hint=f"known: {', '.join(MODES)}")
    target = await _choose_target(node, entry.spec) if wish.target == "auto" else wish.target
    if target == node.facts.name:
        raise Conflict(f"{machine} is on {target} already", hint="name another node")
    asked = MoveWish(storage=wish.storage, max_downtime_ms=wish.max_downtime_ms)
    # In this order: what a driver finds out here is part of what its fellow there is told.
    obstacles = await _leaving(node, entry, asked)
    report = NodeReport(node=target, free_memory_bytes=0, drivers=(), round_trip_ms=0.0)
    try:
        report, found = await node.ask(target, question(entry, asked))
        obstacles += [*found, *_too_far(asked, report.round_trip_ms)]
        obstacles += _too_slow(wish, dirty_bytes_per_s(entry), report.rate_bytes_per_s)
        obstacles += _too_old(report, wish.storage)
    except (TransportError, Untrusted) as error:
        cure = error.hint or "see that its node runs and can be reached"
        code = f"link.{error.code}"
        obstacles.append(Obstacle(code=code, what=str(error), cure=cure, side="link"))
    reached = bool(report.drivers)
    newest = report.protocol or node.config.node.protocol
    providers = choose_providers(node, entry.spec, target, mode, report.codecs, newest)
    codec = providers["compression"]
    if report.codecs and codec not in report.codecs:
        obstacles.append(
            _missing(f"{target} has no compression provider {codec!r}", f"compression-{codec}")
        )
    made = MigrationPlan(
        machine=entry.spec,
        source=node.facts.name,
        target=target,
        mode=mode,
        providers=providers,
        max_downtime_ms=wish.max_downtime_ms or promised_ms(report.round_trip_ms),
        rate_bytes_per_s=wish.rate_bytes_per_s,
        estimate=_estimate(node, entry, target, mode, codec, report, wish),
        round_trip_ms=report.round_trip_ms if reached else None,
        target_codecs=tuple(report.codecs),
        storage=wish.storage,
        obstacles=tuple(obstacles),
    )
    objections = node.manager.check("novacron_check_migration", plan=made, node=node.facts)
    refused = [_refusal(o.plugin, o.refusal.reason, o.refusal.hint) for o in objections]
    return attrs.evolve(made, obstacles=(*made.obstacles, *refused))


def _too_old(report: NodeReport, storage: str) -> list[Obstacle]:
    if report.protocol >= EXAMINES:
        return []
    what = f"{report.node} speaks version {report.protocol} of the protocol only: "
    what += "disks cannot go there" if storage else "it cannot be asked what stands in the way"
    cure = f"upgrade NovaCron on {report.node}"
    return [Obstacle(code="protocol.too-old", what=what, cure=cure, blocks=bool(storage))]


def question(entry: Entry, wish: MoveWish) -> msg.Examine:
    """What the target is asked of a machine that may come."""
    spec = entry.spec
    return msg.Examine(
        session="",
        machine=spec.name,
        driver=spec.driver,
        memory_bytes=spec.memory_bytes,
        settings=dict(spec.settings),
        origin=origin(entry, wish.storage),
        tenant=spec.tenant,
    )


def origin(entry: Entry, storage: str) -> dict[str, Any]:
    """What the target's driver is shown of a machine."""
    return {**entry.machine.describe(), **({"storage": storage} if storage else {})}


def estimate(node: Node, facts: MoveFacts) -> MoveEstimate:
    """What a plugin foresees of a move, or else the kernel's rule of thumb.

    Bytes are bounded by experience: a fifth of the memory that is in use (it compresses) and 1.3
    times all of it (pages that are written while it moves go again).
    """
    chosen = node.manager.choose("novacron_choose_estimate", move=facts, node=node.facts)
    if isinstance(chosen, MoveEstimate):
        return chosen
    used, rate = facts.used_bytes, facts.rate_bytes_per_s
    if facts.elapsed_s and facts.done_bytes:
        gain = facts.done_bytes / facts.elapsed_s - facts.dirty_bytes_per_s
        left = facts.remaining_bytes / gain if gain > 0 else None
        seconds = None if left is None else (left / 2, left, left * 2)
        return MoveEstimate(seconds=seconds, reason="the copy so far")
    low, high = used / 5, used * 1.3
    sent = (low, (low + high) / 2, high)
    if rate is not None and facts.limit_bytes_per_s:
        rate = min(rate, facts.limit_bytes_per_s)
    return MoveEstimate(
        bytes=sent,
        seconds=(sent[0] / rate, sent[1] / rate, sent[2] / rate) if rate else None,
        reason="a fifth to 1.3 times of the memory in use, at the last move's rate",
    )


def _estimate(
    node: Node,
    entry: Entry,
    target: str,
    mode: str,
    codec: str,
    report: NodeReport,
    wish: MigrateParameters,
) -> MoveEstimate:
    facts = MoveFacts(
        machine=entry.spec,
        target=target,
        mode=mode,
        codec=codec,
        used_bytes=used_bytes(entry, wish.storage),
        dirty_bytes_per_s=dirty_bytes_per_s(entry),
        round_trip_ms=report.round_trip_ms,
        rate_bytes_per_s=report.rate_bytes_per_s,
        limit_bytes_per_s=wish.rate_bytes_per_s,
    )
    return estimate(node, facts)


def used_bytes(entry: Entry, storage: str) -> int:
    """What there is to send: memory that is in use, and of the disks what they hold."""
    facts = entry.machine.describe()
    disks = int(facts.get("disk_bytes", 0)) if storage == "copy" else 0
    return int(facts.get("resident_bytes", entry.spec.memory_bytes)) + disks


def dirty_bytes_per_s(entry: Entry) -> int:
    """How fast the guest writes, as its driver has found out; 0 if it has not."""
    return int(entry.machine.describe().get("dirty_bytes_per_s", 0))


def choose_providers(
    node: Node, spec: MachineSpec, target: str, mode: str, codecs: Collection[str], newest: int
) -> dict[str, str]:
    """The configuration's choice in each domain, or what a plugin says instead.

    Args:
        codecs: What the target has; empty if that is unknown.
        newest: The newest version of the protocol that both sides speak.
    """
    providers = dict(node.config.providers[mode])
    move = MoveContext(
        machine=spec.name, tenant=spec.tenant, source=node.facts.name, target=target, mode=mode
    )
    providers["protocol"] = str(newest)
    have = {
        "compression": [
            name for name in node.manager.providers("compression") if name in codecs or not codecs
        ],
        "transport": list(node.manager.providers("transport")),
        "protocol": [str(version) for version in range(OLDEST, newest + 1)],
    }
    for domain, available in have.items():
        chosen = providers.get(domain, "")
        asked = {"domain": domain, "chosen": chosen, "available": available}
        answer = node.manager.choose(
            "novacron_choose_provider", **asked, move=move, node=node.facts
        )
        if answer in available:
            providers[domain] = answer
        elif answer is not None:
            log.error("%r is no %s provider that both sides have", answer, domain)
    return providers


async def _choose_target(node: Node, spec: MachineSpec) -> str:
    answers = await asyncio.gather(
        *(node.probe(peer) for peer in node.config.peers), return_exceptions=True
    )
    reports = [answer for answer in answers if isinstance(answer, NodeReport)]
    choice = node.provider("placement").choose(spec, reports)
    log.info("%s goes to %s: %s", spec.name, choice.node, choice.reason)
    return str(choice.node)


def free_memory_bytes() -> int:
    """What Linux could give without swapping (``MemAvailable`` of /proc/meminfo)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


# What stands in the way. Each side looks at itself.


async def _leaving(node: Node, entry: Entry, wish: MoveWish) -> list[Obstacle]:
    """What keeps a machine of this node from leaving."""
    name, found = entry.spec.name, []
    record = await node.register.read(name)
    if (session := node._session_of(name)) is not None:
        what = f"{name} is in a migration already ({session.terms.session})"
        cure = "wait for its end, or cancel it: `novacron operation list`"
        found.append(Obstacle(code="machine.moving", what=what, cure=cure))
    if record is None or record.owner != node.facts.name:
        owner = f"belongs to {record.owner}" if record else "has no owner"
        cure = "`novacron machine delete --force` removes what is left of it here"
        found.append(Obstacle(code="machine.not-owned", what=f"{name} {owner}", cure=cure))
    try:
        state = await entry.machine.state()
    except NovacronError as error:
        return [*found, _failed(entry.spec.driver, error)]
    if state not in ("running", "paused"):
        cure = f"`novacron machine start {name}` first"
        found.append(Obstacle(code="machine.not-running", what=f"{name} is {state}", cure=cure))
    examine = getattr(entry.machine, "examine", None)
    return found + ([] if examine is None else await _driver(entry.spec.driver, examine(wish)))


def _too_far(wish: MoveWish, round_trip_ms: float) -> list[Obstacle]:
    """That no pause can be as short as the operator wants it."""
    least = ROUND_TRIPS * round_trip_ms + LAST_SET_MS_MIN
    if not 0 < wish.max_downtime_ms < least:
        return []
    kept = promised_ms(round_trip_ms)
    return [
        Obstacle(
            code="link.too-far",
            what=f"a pause of {wish.max_downtime_ms} ms cannot be kept: the hand-over alone takes "
            f"{ROUND_TRIPS:g} round trips of {round_trip_ms:g} ms and {LAST_SET_MS_MIN} ms",
            cure=f"allow a longer pause: --max-downtime {kept}ms",
            side="link",
            facts={"option": "max_downtime_ms", "value": kept, "round_trip_ms": round_trip_ms},
        )
    ]


def _too_slow(wish: MigrateParameters, dirty: int, rate: float | None) -> list[Obstacle]:
    """That the guest may write faster than its link carries; only the copy itself can be sure."""
    limits = [bound for bound in (rate, wish.rate_bytes_per_s) if bound]
    if wish.slow_guest or not limits or dirty <= LITTLE_GAIN * min(limits):
        return []
    carries = min(limits)
    return [
        Obstacle(
            code="link.too-slow",
            what=f"the guest writes {dirty / 1e6:.1f} MB/s and the link carries "
            f"{carries / 1e6:.1f} MB/s: the copy may not come to an end",
            cure="let the guest be slowed down (--throttle), allow a longer pause "
            "(--max-downtime), or move it when it writes less",
            blocks=False,
            side="link",
            facts={
                "option": "slow_guest",
                "value": True,
                "dirty_bytes_per_s": dirty,
                "rate_bytes_per_s": round(carries),
            },
        )
    ]


async def examined(node: Node, peer: str, asked: msg.Examine) -> msg.Examined:
    """What stands in the way of a peer's machine coming to this node. Nothing is changed."""
    found: list[Obstacle] = []
    name, here = asked.machine, node.facts.name
    drivers = node.manager.providers("machine")
    spec = MachineSpec(
        name=name,
        driver=asked.driver,
        memory_bytes=asked.memory_bytes,
        settings=asked.settings,
        tenant=asked.tenant,
    )
    present = node.hosted.find(name)
    # One that is arriving is an earlier attempt of this very move, which a new one replaces.
    if not NAME.fullmatch(name) or (present is not None and not present.session):
        what = f"{here} has a machine {name!r} already, or that is no name"
        found.append(Obstacle(code="machine.exists", what=what, cure="rename or delete one"))
    free = free_memory_bytes()
    if free < spec.memory_bytes:
        found.append(
            Obstacle(
                code="memory.too-little",
                what=f"{here} has {free >> 20} MiB of memory free, and {name} needs "
                f"{spec.memory_bytes >> 20}",
                cure="free some there, name another node, or stop the machine and give it less",
                facts={"free_bytes": free, "needed_bytes": spec.memory_bytes},
            )
        )
    request = OperationRequest(
        kind="receive", machine=name, subject=f"node:{peer}", parameters={"source": peer}
    )
    for objection in node.manager.check(
        "novacron_check_operation", request=request, node=node.facts
    ):
        found.append(_refusal(objection.plugin, objection.refusal.reason, objection.refusal.hint))
    if spec.driver not in drivers:
        what = f"{here} has no machine driver {spec.driver!r}"
        found.append(_missing(what, f"machine-{spec.driver}"))
    else:
        examine = getattr(node.provider("machine", spec.driver), "examine", None)
        if examine is not None:
            found += await _driver(spec.driver, examine(spec, asked.origin))
    cut = msg.OBSTACLE_CHARACTERS_MAX
    return msg.Examined(
        session=asked.session,
        found=[
            msg.Found(
                code=obstacle.code[:cut],
                what=obstacle.what[:cut],
                cure=obstacle.cure[:cut],
                blocks=obstacle.blocks,
                facts=dict(obstacle.facts),
            )
            for obstacle in found[: msg.OBSTACLES_MAX]
        ],
    )


def from_target(answer: msg.Examined) -> list[Obstacle]:
    """What the target's node said, as its word."""
    return [
        Obstacle(
            code=found.code,
            what=found.what,
            cure=found.cure,
            blocks=found.blocks,
            side="target",
            facts=found.facts,
        )
        for found in answer.found
    ]


async def _driver(driver: str, examining: Awaitable[Sequence[Obstacle]]) -> list[Obstacle]:
    """What a driver finds; that it cannot look stands in the way too."""
    try:
        return list(await examining)
    except (NovacronError, OSError) as error:
        return [_failed(driver, error)]


def _failed(driver: str, error: NovacronError | OSError) -> Obstacle:
    cure = getattr(error, "hint", "") or "see the node's log"
    return Obstacle(code="driver.failed", what=f"the driver {driver!r}: {error}", cure=cure)


def _refusal(plugin: str, reason: str, hint: str) -> Obstacle:
    code = f"policy.{plugin}"
    return Obstacle(code=code, what=f"{reason} ({plugin})", cure=hint, facts={"plugin": plugin})


def _missing(what: str, plugin: str) -> Obstacle:
    cure = f"install novacron-{plugin} there"
    return Obstacle(code="plugin.missing", what=what, cure=cure, facts={"plugin": plugin})
