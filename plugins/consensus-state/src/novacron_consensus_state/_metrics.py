"""What a replica tells about itself: for people, and for Prometheus."""

from __future__ import annotations

from typing import Any

from novacron_consensus_state._messages import BRANCHES
from novacron_consensus_state._replica import Replica


def status(replica: Replica, now_ms: int) -> dict[str, Any]:
    """A replica at a moment, as plain data. Ages are None where a picture was never whole."""
    member, store = replica.member, replica.store
    peers = {}
    for name, peer in member.spread.peers.items():
        behind = sum(
            max(0, number - peer.known.get(origin, 0)) for origin, number in store.vector.items()
        )
        lacking = sum(
            max(0, number - store.vector.get(origin, 0)) for origin, number in peer.known.items()
        )
        peers[name] = {
            "region": member.topology.members[name],
            "heard_ms": None if peer.heard_ms is None else now_ms - peer.heard_ms,
            "round_trip_ms": round(peer.rtt_ms, 1),
            "age_ms": member.freshness.age_ms(name, now_ms),
            "events_it_lacks": behind,
            "events_we_lack": lacking,
        }
    return {
        "member": replica.member.name,
        "origin": replica.member.origin,
        "region": member.topology.region,
        "keys": len(store.entries),
        "events_kept": len(store.history),
        "events_kept_bytes": store.history.nbytes,
        "events_waiting": store.waiting.count,
        "catching_up_with": member.sync.session.peer if member.sync.session else "",
        "tree_syncs": member.sync.finished,
        "refused_messages": replica.refused_messages,
        "log_leader": member.strong.leader,
        "stable": member.spread.stable(),
        "vector": dict(store.vector),
        "peers": peers,
    }


def metrics(replica: Replica, now_ms: int) -> str:
    """The figures in Prometheus' text format. Ages are in seconds, +Inf where none is known."""
    member, store = replica.member, replica.store
    lines = [
        "# HELP novacron_state_staleness_seconds How old the picture of a member is at the most.",
        "# TYPE novacron_state_staleness_seconds gauge",
    ]
    for name in member.topology.others:
        region = member.topology.members[name]
        for key_range in range(BRANCHES):
            age = member.freshness.age_ms(name, now_ms, key_range)
            shown = "+Inf" if age is None else f"{age / 1000:g}"
            labels = f'member="{name}",region="{region}",range="{key_range}"'
            lines.append(f"novacron_state_staleness_seconds{{{labels}}} {shown}")
    figures = {
        "keys": (len(store.entries), "gauge", "Keys that hold something."),
        "events_kept": (len(store.history), "gauge", "Events that not all members have."),
        "events_waiting": (store.waiting.count, "gauge", "Events whose causes are missing."),
        "tree_syncs_total": (member.sync.finished, "counter", "Catching up by trees, to the end."),
        "refused_messages_total": (replica.refused_messages, "counter", "Unsound messages."),
    }
    for name, (value, kind, text) in figures.items():
        lines += [
            f"# HELP novacron_state_{name} {text}",
            f"# TYPE novacron_state_{name} {kind}",
            f"novacron_state_{name} {value}",
        ]
    return "\n".join(lines) + "\n"
