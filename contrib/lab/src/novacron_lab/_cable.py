"""Paths that the kernel carries itself: a pair of veth devices, shaped by netem or not at all.

netem does the delay, the jitter, the loss and the reordering, and its own rate; tbf would need a
queue of its own in front. Its limit counts packets, so a queue in bytes is turned into full ones.
"""

from __future__ import annotations

import json
from typing import Any

from novacron import ConfigError

from novacron_lab._spec import QUEUE_BYTES_MAX, LabPath, LinkSpec
from novacron_lab._system import ip, run


def suits_netem(link: LinkSpec) -> bool:
    """Whether netem can do all of this."""
    return link.trace is None and not link.outages


def netem_arguments(link: LinkSpec, round_trip_s: float, mtu: int) -> list[str]:
    """What follows ``tc qdisc add dev DEVICE root`` for a direction that leaves by the device."""
    said = ["netem"]
    queued = link.queue_for(round_trip_s)
    # Packets on their way wait in the same list: room for them as well.
    flying = link.mean_rate_bytes_per_s() * link.delay_s or float(QUEUE_BYTES_MAX)
    said += ["limit", str(max(1000, int((queued + flying) / mtu)))]
    # Reordered packets go at once and overtake; netem wants a delay for that.
    delay_s = link.delay_s or (link.late_s if link.reorder else 0.0)
    if delay_s or link.jitter_s:
        said += ["delay", f"{delay_s * 1e6:.0f}us"]
        if link.jitter_s:
            said += [f"{link.jitter_s * 1e6:.0f}us"]
    if link.bursts:
        bursts = link.bursts
        shares = (bursts.begin, bursts.end, bursts.loss, link.loss)
        said += ["loss", "gemodel", *(f"{100 * share:.6g}%" for share in shares)]
    elif link.loss:
        said += ["loss", "random", f"{100 * link.loss:.6g}%"]
    if link.reorder:
        said += ["reorder", f"{100 * link.reorder:.6g}%"]
    if link.rate_bit_per_s:
        said += ["rate", f"{link.rate_bit_per_s:.0f}bit"]
    return said


def lay(path: LabPath, namespaces: dict[str, str], mtu: int) -> None:
    """Make the devices of a path, and shape them."""
    ip(
        "link", "add", path.device(path.a), "netns", namespaces[path.a],
        "type", "veth", "peer", "name", path.device(path.b), "netns", namespaces[path.b],
    )  # fmt: skip
    shape(path, namespaces, mtu, "add")


def shape(path: LabPath, namespaces: dict[str, str], mtu: int, how: str = "change") -> None:
    for source, _, link in path.directions():
        if link.engine == "netem":
            words = netem_arguments(link, path.round_trip_s, mtu)
            device = path.device(source)
            run("tc", "-n", namespaces[source], "qdisc", how, "dev", device, "root", *words)


def counters(path: LabPath, source: str, namespaces: dict[str, str]) -> dict[str, Any]:
    """Of one direction: what the devices counted, and what netem dropped."""
    sink = path.b if source == path.a else path.a
    sent = _device(namespaces[source], path.device(source))["tx"]
    arrived = _device(namespaces[sink], path.device(sink))["rx"]
    found = {
        "down": False,
        "in_packets": sent["packets"],
        "in_bytes": sent["bytes"],
        "forwarded_packets": arrived["packets"],
        "forwarded_bytes": arrived["bytes"],
    }
    if path.there.engine == "netem":
        said = run("tc", "-n", namespaces[source], "-s", "-j", "qdisc", "show", "dev",
                   path.device(source), "root")  # fmt: skip
        queue = json.loads(said)[0]
        found["lost_packets"] = queue["drops"]
        found["in_packets"] += queue["drops"]
        found["queue_packets"], found["queue_bytes"] = queue["qlen"], queue["backlog"]
    return found


def _device(namespace: str, name: str) -> dict[str, dict[str, int]]:
    said = json.loads(ip("-n", namespace, "-s", "-j", "link", "show", "dev", name))
    found: dict[str, dict[str, int]] = said[0]["stats64"]
    return found


def refuse_outage(path: LabPath) -> None:
    if path.there.engine != "emulator":
        raise ConfigError(
            f"the link from {path.a} to {path.b} is of engine {path.there.engine}, "
            "which has no outages",
            hint='bring the lab up with engine "emulator"',
        )
