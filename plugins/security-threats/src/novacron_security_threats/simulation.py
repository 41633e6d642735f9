"""Seeded days of honest peers, and attacks among them: how soon the watch finds each kind, and how
often it suspects somebody honest.

Honest peers are not quiet: they mistype, their links break, they renew certificates daily, move
machines of very different sizes, take on new machines, and travel. Times of all that are drawn from
exponential, sizes from log-normal distributions.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from typing import Final

from attrs import define, frozen

from novacron_security_threats._events import (
    ABUSE,
    BRUTE_FORCE,
    EXFILTRATION,
    LATERAL,
    TOKEN_THEFT,
    Alert,
    Attempt,
    Event,
    Fault,
    Proof,
    Reach,
    Sent,
)
from novacron_security_threats._watch import Watch, WatchSettings

HOUR: Final = 3600.0
DAY: Final = 86400.0
Timed = tuple[float, Event]
_PLACES: Final = ((52.5, 13.4), (48.9, 2.4), (40.7, -74.0), (1.35, 103.8), (-33.9, 151.2))


def _times(rng: random.Random, per_s: float, begin: float, end: float) -> Iterator[float]:
    at = begin
    while (at := at + rng.expovariate(per_s)) < end:
        yield at


def honest(rng: random.Random, name: str, days: float) -> Iterator[Timed]:
    """What one honest peer does, in the order of time."""
    end = days * DAY
    home = rng.choice(_PLACES)
    machines = [f"{name}-vm{n}" for n in range(rng.randint(3, 30))]
    size = rng.uniform(18.5, 22.5)  # logarithm of the bytes of a usual move: 0.1 to 6 GB

    def talks() -> Iterator[Timed]:
        places = home
        away_until = 0.0
        for at in _times(rng, 6 / HOUR, 0, end):
            # It travels now and then, by plane: it is silent for the flight.
            if rng.random() < 0.0005 and at > away_until:
                places, away_until = rng.choice(_PLACES), at + 30 * HOUR
            if at > away_until - 6 * HOUR:
                yield at, Proof(identity=name, fingerprint=f"{name}-{int(at / DAY)}", place=places)

    def fails() -> Iterator[Timed]:
        # A few wrong attempts, then a right one; and a service with a stale secret now and then.
        for at in _times(rng, 1 / (4 * HOUR), 0, end):
            count = 1 if rng.random() < 0.8 else rng.randint(2, 4)
            for n in range(count):
                yield at + 6 * n, Attempt(identity=name, origin=f"{name}-host", accepted=False)
            yield at + 6 * count, Attempt(identity=name, origin=f"{name}-host")

    def works() -> Iterator[Timed]:
        for at in _times(rng, 8 / HOUR, 0, end):
            if rng.random() < 0.01:
                machines.append(f"{name}-vm{len(machines)}")
            yield at, Reach(identity=name, target=rng.choice(machines))

    def sends() -> Iterator[Timed]:
        for at in _times(rng, 1 / HOUR, 0, end):
            total = int(rng.lognormvariate(size, 0.8))
            for n in range(10):
                yield at + 3 * n, Sent(identity=name, bytes=total // 10)

    def breaks() -> Iterator[Timed]:
        for at in _times(rng, 1 / (8 * HOUR), 0, end):
            for n in range(rng.randint(1, 2)):
                yield at + n, Fault(identity=name, what="the stream ended within a frame")

    yield from heapq.merge(talks(), fails(), works(), sends(), breaks(), key=lambda one: one[0])


def guessing(rng: random.Random, victim: str, begin: float) -> Iterator[Timed]:
    """Guesses at one identity: 30 a minute."""
    for at in _times(rng, 0.5, begin, begin + HOUR):
        yield at, Attempt(identity=victim, origin="thief", accepted=False)


def spraying(rng: random.Random, victim: str, begin: float) -> Iterator[Timed]:
    """Few guesses at each of many identities, from one place: 20 a minute."""
    for n, at in enumerate(_times(rng, 1 / 3, begin, begin + HOUR)):
        yield at, Attempt(identity=f"{victim}-{n % 50}", origin="thief", accepted=False)


def slow_guessing(rng: random.Random, victim: str, begin: float) -> Iterator[Timed]:
    """Guesses at one identity, 8 a minute: below what the test was made for."""
    for at in _times(rng, 8 / 60, begin, begin + 3 * HOUR):
        yield at, Attempt(identity=victim, origin="thief", accepted=False)


def stolen_token(rng: random.Random, victim: str, begin: float) -> Iterator[Timed]:
    """Yesterday's credential, used beside the owner's of today."""
    old = f"{victim}-{int(begin / DAY) - 1}"
    for at in _times(rng, 6 / HOUR, begin, begin + 6 * HOUR):
        yield at, Proof(identity=victim, fingerprint=old)


def impossible_travel(rng: random.Random, victim: str, begin: float) -> Iterator[Timed]:
    """The owner's own credential, used at the other end of the world."""
    for at in _times(rng, 6 / HOUR, begin, begin + 6 * HOUR):
        fingerprint = f"{victim}-{int(at / DAY)}"
        yield at, Proof(identity=victim, fingerprint=fingerprint, place=(-75.0, 0.0))


def looking_around(rng: random.Random, victim: str, begin: float) -> Iterator[Timed]:
    """One new target after the other: 30 an hour."""
    for n, at in enumerate(_times(rng, 30 / HOUR, begin, begin + 3 * HOUR)):
        yield at, Reach(identity=victim, target=f"others-vm{n}")


def carrying_away(rng: random.Random, victim: str, begin: float) -> Iterator[Timed]:
    """500 MB a second for ten minutes."""
    for n in range(600):
        yield begin + n, Sent(identity=victim, bytes=500_000_000)


def probing(rng: random.Random, victim: str, begin: float) -> Iterator[Timed]:
    """Malformed messages: 4 a minute."""
    for at in _times(rng, 4 / 60, begin, begin + HOUR):
        yield at, Fault(identity=victim, what="a frame of an unknown kind")


ATTACKS: Final[dict[str, tuple[str, Callable[[random.Random, str, float], Iterator[Timed]]]]] = {
    "guessing": (BRUTE_FORCE, guessing),
    "slow guessing": (BRUTE_FORCE, slow_guessing),
    "spraying": (BRUTE_FORCE, spraying),
    "stolen token": (TOKEN_THEFT, stolen_token),
    "impossible travel": (TOKEN_THEFT, impossible_travel),
    "lateral movement": (LATERAL, looking_around),
    "exfiltration": (EXFILTRATION, carrying_away),
    "protocol abuse": (ABUSE, probing),
}


@frozen
class Found:
    """One attack that was played.

    Attributes:
        delay_s: From its first event to the alert; None if there was none.
        events: How many of its events it took.
    """

    attack: str
    delay_s: float | None
    events: int


@define
class Outcome:
    """What a simulation gave.

    Attributes:
        false_alerts: Alerts on somebody honest, by detector.
        honest_days: Days of honest peers, together.
        events: How many the watch was given.
    """

    found: list[Found]
    false_alerts: dict[str, int]
    honest_days: float
    events: int


def simulate(
    seed: int,
    *,
    peers: int = 20,
    days: float = 4.0,
    attacks: tuple[str, ...] = tuple(ATTACKS),
    settings: WatchSettings | None = None,
) -> Outcome:
    """Play honest peers for days, and each attack once, at a time of chance in the last day."""
    rng = random.Random(f"threats-{seed}")
    watch = Watch(settings)
    streams: list[Iterator[tuple[float, int, Event, str]]] = []

    def tagged(stream: Iterator[Timed], number: int, attack: str) -> None:
        streams.append((at, number, event, attack) for at, event in stream)

    begins: dict[str, float] = {}
    victims: dict[str, str] = {}
    for number in range(peers):
        name = f"peer{number}"
        tagged(honest(random.Random(f"{seed}-{name}"), name, days), number, "")
    for number, attack in enumerate(attacks):
        victims[attack] = f"peer{rng.randrange(peers)}"
        # Far enough apart, and from the end, that one does not hide another's alert.
        begin = (days - 1) * DAY + rng.uniform(0, 0.6) * DAY
        play = ATTACKS[attack][1](rng, victims[attack], begin)
        tagged(iter(list(play)), peers + number, attack)
    found: dict[str, Found] = {}
    counts: dict[str, int] = dict.fromkeys(attacks, 0)
    false_alerts: dict[str, int] = {}
    attacked: dict[str, list[tuple[float, str]]] = {}
    events = 0
    for at, _, event, attack in heapq.merge(*streams, key=lambda one: (one[0], one[1])):
        events += 1
        if attack:
            begins.setdefault(attack, at)
            counts[attack] += 1
            if event.identity:
                attacked.setdefault(event.identity, []).append((at, ATTACKS[attack][0]))
        for alert in watch.handle(event, at):
            if attack and alert.detector == ATTACKS[attack][0]:
                found.setdefault(attack, Found(attack, at - begins[attack], counts[attack]))
            elif not _explained(alert, attacked, begins, victims):
                false_alerts[alert.detector] = false_alerts.get(alert.detector, 0) + 1
            else:
                # The owner's own event brought to light that a thief is there as well.
                for name, victim in victims.items():
                    kind = ATTACKS[name][0]
                    if name in begins and (victim, kind) == (alert.identity, alert.detector):
                        found.setdefault(name, Found(name, at - begins[name], counts[name]))
    listed = [found.get(name, Found(name, None, counts[name])) for name in attacks]
    return Outcome(listed, false_alerts, peers * days, events)


def _explained(
    alert: Alert,
    attacked: dict[str, list[tuple[float, str]]],
    begins: dict[str, float],
    victims: dict[str, str],
) -> bool:
    """Whether somebody attacks whom the alert names, in the way that it names: the owner's own
    events, between a thief's, bring such an alert as well."""
    if alert.origin == "thief":
        return True
    return any(
        kind == alert.detector and alert.at_s - at < DAY
        for at, kind in attacked.get(alert.identity, ())[-50:]
    )
