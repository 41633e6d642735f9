"""What a replica has seen: a version vector, and dots that name single events.

Every change is an *event*, numbered from 1 without gaps by the replica that makes it, its *origin*.
The pair (origin, number) is the event's dot. Because events are delivered in causal order, what a
replica has seen is one vector for all its keys; what a key holds is rows that carry the dots of the
events that wrote them. Together that is a dotted version vector set (Preguiça et al., "Dotted
Version Vectors", 2010; one vector for the whole node: Gonçalves et al., "Concise Server-Wide
Causality Management", DAIS 2015).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Vector = dict[str, int]
Dot = tuple[str, int]


def covers(vector: Mapping[str, int], dot: Dot) -> bool:
    """Whether the event has been seen."""
    return vector.get(dot[0], 0) >= dot[1]


def at_least(vector: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether everything that the other has seen has been seen."""
    return all(vector.get(origin, 0) >= number for origin, number in other.items())


def join_into(vector: Vector, other: Mapping[str, int]) -> None:
    """See what the other has seen, too."""
    for origin, number in other.items():
        if number > vector.get(origin, 0):
            vector[origin] = number


def lowest(vectors: Iterable[Mapping[str, int]]) -> Vector:
    """What all of them have seen; of nobody: nothing."""
    found: Vector | None = None
    for vector in vectors:
        if found is None:
            found = dict(vector)
            continue
        found = {
            origin: min(number, vector[origin])
            for origin, number in found.items()
            if origin in vector
        }
    return found or {}
