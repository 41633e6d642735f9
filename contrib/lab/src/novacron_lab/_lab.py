"""A lab that is up: its sites, its figures, its counters."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv6Address
from types import TracebackType
from typing import Any, Final, Self

from attrs import evolve, fields_dict, frozen
from novacron import ConfigError, Conflict, NotFound

from novacron_lab import _cable, _state, _system
from novacron_lab._emulator import Emulator, outage_line, set_lines, start_lines
from novacron_lab._spec import (
    MTU_MIN,
    LabPath,
    LinkSpec,
    Site,
    check_lab_name,
    check_sites,
    paths_of,
)
from novacron_lab._state import LabState

# Reads of a device may be a little late: its queue must hold what comes meanwhile.
_DEVICE_QUEUE_PACKETS: Final = 10_000
_MTU_MAX: Final = 65_535
# Emulators that outlive this process. While it lives it is their parent and has to see them end.
_KEPT: Final[list[subprocess.Popen[str]]] = []


@frozen(kw_only=True)
class DirectionStats:
    """Counters of one direction since the lab came up; packets of the wire, bytes with IP headers.

    Attributes:
        at_s: When they were read, on a clock of the link's own.
        down: There is an outage now.
        in_packets, in_bytes: That a site sent.
        forwarded_packets, forwarded_bytes: That reached the other one.
        lost_packets, lost_bytes: By chance, alone or in bursts.
        taildrop_packets, taildrop_bytes: Because the queue was full.
        outage_packets, outage_bytes: Because the link was down.
        queue_packets, queue_bytes: Waiting for the transmitter now.
        queue_max_bytes: The longest that the queue was.
        flight_packets, flight_bytes: Sent and not arrived.
        writes: How many system calls delivered what was forwarded.
        write_errors: Of those that failed (the device was down).
        late_mean_s, late_max_s: By how much the machine's scheduler was late in delivering.
        realtime: The emulator runs before ordinary processes.
    """

    at_s: float = 0.0
    down: bool = False
    in_packets: int = 0
    in_bytes: int = 0
    forwarded_packets: int = 0
    forwarded_bytes: int = 0
    lost_packets: int = 0
    lost_bytes: int = 0
    taildrop_packets: int = 0
    taildrop_bytes: int = 0
    outage_packets: int = 0
    outage_bytes: int = 0
    queue_packets: int = 0
    queue_bytes: int = 0
    queue_max_bytes: int = 0
    flight_packets: int = 0
    flight_bytes: int = 0
    writes: int = 0
    write_errors: int = 0
    late_mean_s: float = 0.0
    late_max_s: float = 0.0
    realtime: bool = False


class Lab:
    """Sites and the links between them. Make one by `up`, or take hold of one by `open`."""

    def __init__(self, state: LabState, child: subprocess.Popen[str] | None = None) -> None:
        self._given = state
        self._child = child

    # ---------------------------------------------------------------- up and down

    @classmethod
    def up(
        cls,
        name: str = "lab",
        sites: Sequence[str] = ("a", "b"),
        links: LinkSpec | Mapping[tuple[str, str], LinkSpec | Sequence[LinkSpec]] = LinkSpec(),  # noqa: B008
        *,
        mtu: int = 1500,
        seed: int = 1,
        congestion_control: str | None = None,
        tcp_buffer_bytes: int | None = None,
        offload: bool = True,
        keep: bool = False,
    ) -> Lab:
        """Bring a lab up.

        Args:
            name: Of the lab; labs of different names do not see each other.
            sites: Their names; each is a namespace.
            links: One for all pairs, or by pair. ``("a", "b")`` holds for the way back as well
                unless ``("b", "a")`` is there. A sequence joins a pair several times over, each
                time by addresses of its own.
            mtu: Bytes of an IP packet.
            seed: Of all that is left to chance: the n-th packet of a direction has the same fate
                in each run.
            congestion_control: Of TCP in the namespaces; it is added to what this host allows.
            tcp_buffer_bytes: The most that a socket's send and receive buffers grow to.
            offload: Let TCP hand over super-packets; the link still acts on packets of ``mtu``.
            keep: The lab outlives this process; `Lab.open(name).down()` ends it.
        Raises: ConfigError for what cannot be made, Conflict if the lab is up already.
        """
        check_lab_name(name)
        check_sites(sites)
        if not MTU_MIN <= mtu <= _MTU_MAX:
            raise ConfigError(f"the MTU is {mtu}, not from {MTU_MIN} to {_MTU_MAX}")
        if not 0 <= seed <= 1_000_000_000:
            raise ConfigError(f"the seed is {seed}, not from 0 to 1000000000")
        _system.require_host()
        sysctls = _sysctls(congestion_control, tcp_buffer_bytes)
        paths = tuple(map(_with_engine, paths_of(sites, links)))
        state = LabState(name=name, sites=tuple(_sites(name, sites, paths)), paths=paths, mtu=mtu)
        with _state.locked():
            _make_way(state)
            _state.write(state)
            try:
                return cls._build(state, sysctls, seed=seed, offload=offload, keep=keep)
            except BaseException:
                _take_down(_state.read(name))
                raise

    @classmethod
    def _build(
        cls, state: LabState, sysctls: dict[str, str], *, seed: int, offload: bool, keep: bool
    ) -> Lab:
        for namespace in state.namespaces.values():
            _system.ip("netns", "add", namespace)
            _system.set_sysctls(namespace, sysctls)
        emulated = [path for path in state.paths if path.there.engine == "emulator"]
        for path in state.paths:
            if path not in emulated:
                _cable.lay(path, state.namespaces, state.mtu)
        child = None
        if emulated:
            folder = _state.folder_of(state.name)
            lines = start_lines(emulated, state.namespaces, seed, offload, folder)
            emulator, child = Emulator.start(folder, lines, owned=not keep)
            state = evolve(state, process=emulator.process)
            _state.write(state)
            if keep:
                _KEPT.append(child)
        for site in state.sites:
            _system.ip_lines(site.namespace, _device_lines(state, site))
        return cls(state, child)

    @classmethod
    def open(cls, name: str = "lab") -> Lab:
        """Take hold of a lab that is up. Raises NotFound."""
        check_lab_name(name)
        return cls(_state.read(name))

    @staticmethod
    def names() -> list[str]:
        """Of all labs on this machine."""
        return _state.names()

    def down(self, *, end_processes: bool = False) -> tuple[int, ...]:
        """End the emulator and remove the namespaces; nothing happens if that was done.

        Args:
            end_processes: Ask what still runs in the sites to end (SIGTERM). What is left alone
                keeps its site, without a name and without links.
        Returns: The processes that ran in the sites.
        """
        with _state.locked():
            try:
                return _take_down(_state.read(self.name), end_processes=end_processes)
            except NotFound:
                return ()
            finally:
                if self._child is not None:
                    if self._child.stdin is not None:
                        self._child.stdin.close()
                    self._child.wait(10)
                    self._child = None
                _KEPT[:] = [child for child in _KEPT if child.poll() is None]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    # ------------------------------------------------------------------- looking

    @property
    def name(self) -> str:
        return self._given.name

    @property
    def state(self) -> LabState:
        """As its folder has it now. Raises NotFound if it was taken down."""
        return _state.read(self.name)

    @property
    def sites(self) -> tuple[Site, ...]:
        return self._given.sites

    def site(self, name: str) -> Site:
        for site in self.sites:
            if site.name == name:
                return site
        raise NotFound(
            f"the lab {self.name!r} has no site {name!r:.40}",
            hint=f"it has {', '.join(site.name for site in self.sites)}",
        )

    def command(self, site: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs another one in a site."""
        return _system.inside(self.site(site).namespace, argv)

    def alive(self) -> bool:
        """Whether its namespaces are there and its emulator runs."""
        return is_alive(self._given)

    def processes(self) -> tuple[int, ...]:
        """What runs in its sites."""
        return _inside(self._given)

    def stats(self) -> dict[str, DirectionStats]:
        """By direction: ``a>b``, and ``a>b/1`` for a second path."""
        state = self.state
        answer = _emulator(state).ask("stats") if state.process else {}
        wires, at_s = answer.get("wires", {}), answer.get("elapsed_s", 0.0)
        found = {}
        for path in state.paths:
            for source, _, _link in path.directions():
                wire = path.wire(source)
                if wire in wires:
                    found[wire] = DirectionStats(at_s=at_s, **wires[wire])
                else:
                    values = _cable.counters(path, source, state.namespaces)
                    found[wire] = DirectionStats(at_s=time.monotonic(), **values)
        return found

    # ------------------------------------------------------------------ changing

    def outage(
        self, a: str, b: str, seconds: float, *, after_s: float = 0.0, path: int | None = None
    ) -> None:
        """Cut the link between two sites, both ways, on all paths or one.

        Args:
            a, b: The sites.
            seconds: How long.
            after_s: From when on, seconds from now.
            path: Its number; None: all of them.
        Raises: ConfigError, NotFound.
        """
        if not 0 < seconds <= 1e6 or not 0 <= after_s <= 1e6:
            raise ConfigError(
                f"an outage of {seconds:g} s after {after_s:g} s",
                hint="more than 0 and up to 1,000,000 seconds",
            )
        state = self.state
        for chosen in self._paths(state, a, b, path):
            _cable.refuse_outage(chosen)
            for source, _, _link in chosen.directions():
                _emulator(state).ask(outage_line(chosen.wire(source), after_s, seconds))

    def set_link(
        self, a: str, b: str, *, path: int | None = None, back: bool = True, **figures: Any
    ) -> None:
        """Change figures of a link while it is used.

        Args:
            a, b: From and to.
            path: Its number; None: all of them.
            back: The way back gets them as well.
            **figures: As in `LinkSpec`: ``rate_bit_per_s=10e6``.
        Raises: ConfigError, NotFound.
        """
        known = fields_dict(LinkSpec).keys() - {"engine", "outages"}
        for key in figures.keys() - known:
            raise ConfigError(
                f"{key!r} is no figure of a link that can be set", hint=f"it has {sorted(known)}"
            )
        state = self.state
        changed = {}
        for chosen in self._paths(state, a, b, path):
            if chosen.there.engine == "veth":
                raise ConfigError(
                    f"the link from {a} to {b} is a bare cable without figures",
                    hint='bring the lab up with engine "auto"',
                )
            # A queue stays as long as it is when the rate in front of it changes.
            there, other = (
                evolve(
                    link,
                    **{"queue_bytes": link.queue_for(chosen.round_trip_s), **figures}
                    if back or source == a
                    else {},
                )
                for source, _, link in chosen.directions()
            )
            changed[chosen] = evolve(chosen, there=there, back=other)
        for fresh in changed.values():
            if fresh.there.engine == "netem":
                _cable.shape(fresh, state.namespaces, state.mtu)
            else:
                for line in set_lines(fresh, _state.folder_of(state.name)):
                    _emulator(state).ask(line)
        _state.write(evolve(state, paths=tuple(changed.get(p, p) for p in state.paths)))

    def _paths(self, state: LabState, a: str, b: str, number: int | None) -> Iterable[LabPath]:
        self.site(a), self.site(b)
        found = [
            path
            for path in state.paths
            if {path.a, path.b} == {a, b} and number in (None, path.number)
        ]
        if not found:
            raise NotFound(f"{a} and {b} have no path {'' if number is None else number}".rstrip())
        return found


# -------------------------------------------------------------------------- parts


def _sites(lab: str, names: Sequence[str], paths: Sequence[LabPath]) -> Iterator[Site]:
    count = 1 + max(path.number for path in paths)
    for number, name in enumerate(names, 1):
        yield Site(
            name=name,
            number=number,
            namespace=f"lab-{lab}-{name}",
            addresses=tuple(f"10.77.{path}.{number}" for path in range(count)),
            addresses6=tuple(
                str(IPv6Address(f"fd77:6e6f:7661:{path:x}::{number:x}")) for path in range(count)
            ),
        )


def _device_lines(state: LabState, site: Site) -> Iterator[str]:
    """What ip is to do in a site: addresses, and a route to each peer by the device that leads to
    it alone."""
    yield "link set dev lo up"
    sites = {other.name: other for other in state.sites}
    for path in state.paths:
        if site.name not in (path.a, path.b):
            continue
        peer = sites[path.b if site.name == path.a else path.a]
        device, n = path.device(site.name), path.number
        yield f"link set dev {device} mtu {state.mtu} txqueuelen {_DEVICE_QUEUE_PACKETS}"
        if path.there.engine == "emulator":
            # Nobody is to be found on the other side of a TUN device: no solicitations.
            yield f"link set dev {device} addrgenmode none"
        yield f"link set dev {device} up"
        yield f"address add {site.addresses[n]} peer {peer.addresses[n]} dev {device}"
        yield f"address add {site.addresses6[n]} peer {peer.addresses6[n]} dev {device} nodad"


def _sysctls(congestion_control: str | None, buffer_bytes: int | None) -> dict[str, str]:
    # A fresh lab must not remember the paths of the one before it.
    settings = {"net.ipv4.tcp_no_metrics_save": "1"}
    if congestion_control is not None:
        if not congestion_control.replace("_", "").isalnum():
            raise ConfigError(f"{congestion_control!r:.40} is no name of a congestion control")
        _system.allow_congestion_control(congestion_control)
        settings["net.ipv4.tcp_congestion_control"] = congestion_control
    if buffer_bytes is not None:
        if not 64 << 10 <= buffer_bytes <= 1 << 30:
            raise ConfigError(f"a TCP buffer of {buffer_bytes} bytes is not from 64 KiB to 1 GiB")
        settings["net.ipv4.tcp_rmem"] = f"4096 131072 {buffer_bytes}"
        settings["net.ipv4.tcp_wmem"] = f"4096 16384 {buffer_bytes}"
    return settings


def _with_engine(path: LabPath) -> LabPath:
    """Decide what "auto" means for a path."""
    chosen = path.there.engine
    possible = _cable.suits_netem(path.there) and _cable.suits_netem(path.back)
    if chosen == "netem" and not possible:
        raise ConfigError(
            f"the link from {path.a} to {path.b} has outages or a trace, which netem cannot do",
            hint='take engine "emulator", or "auto"',
        )
    if chosen == "auto":
        chosen = "netem" if possible and _system.has_netem() else "emulator"
    return evolve(
        path, there=evolve(path.there, engine=chosen), back=evolve(path.back, engine=chosen)
    )


def is_alive(state: LabState) -> bool:
    emulated = any(path.there.engine == "emulator" for path in state.paths)
    runs = state.process is not None and state.process.alive() if emulated else True
    return runs and set(state.namespaces.values()) <= _system.namespaces()


def _emulator(state: LabState) -> Emulator:
    if state.process is None:
        raise Conflict(f"the lab {state.name!r} has no emulator")
    return Emulator(_state.folder_of(state.name), state.process)


def _make_way(state: LabState) -> None:
    """Raises Conflict if the lab is up; clears away what is left of one that is not."""
    try:
        there = _state.read(state.name)
    except NotFound:
        there = None
    if there is not None:
        if is_alive(there):
            raise Conflict(
                f"the lab {state.name!r} is up",
                hint="take it down first, or give this one another name",
            )
        _take_down(there)
    taken = set(state.namespaces.values()) & _system.namespaces()
    if taken:
        raise Conflict(
            f"there are namespaces {', '.join(sorted(taken))} that no lab here knows",
            hint="another name for the lab, or `ip netns delete` if nobody needs them",
        )


def _inside(state: LabState) -> tuple[int, ...]:
    present = _system.namespaces()
    names = [name for name in state.namespaces.values() if name in present]
    return tuple(pid for name in names for pid in _system.processes(name))


def _take_down(state: LabState, *, end_processes: bool = False) -> tuple[int, ...]:
    present = _system.namespaces()
    inside = _inside(state)
    if end_processes:
        for pid in inside:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    if state.process is not None:
        state.process.end()
    for path in state.paths:
        # A process in a namespace keeps it, nameless; its cables shall not be kept.
        if path.there.engine != "emulator" and state.namespaces[path.a] in present:
            subprocess.run(
                ["ip", "-n", state.namespaces[path.a], "link", "delete", path.device(path.a)],
                capture_output=True,
                timeout=30,
            )
    for namespace in state.namespaces.values():
        if namespace in present:
            _system.ip("netns", "delete", namespace)
    _state.forget(state.name)
    return inside
