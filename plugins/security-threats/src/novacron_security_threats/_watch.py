"""The watch: online detectors over what a node sees. A core without I/O: an event and the time in,
alerts out; the same class runs in the node and in the simulation.

Guesses, new targets and breaches of protocol are judged by sequential tests (Page, Biometrika 41,
1954): each event adds what it says against honesty, time takes away what honest peers do as well,
and an alert comes when the sum passes a bound. So a burst is found after a handful of events, a
slow drip later, and honest faults that come now and then never add up. Memory is bounded: of so
many identities as are allowed, those that were silent longest are forgotten first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from attrs import define, field, frozen

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
    short,
)

EARTH_KM: Final = 6371.0
T = TypeVar("T")


@frozen(kw_only=True)
class WatchSettings:
    """What honest peers do, and how certain to be.

    Attributes:
        failures_per_min: Refused attempts that an honest identity or origin makes at most, on
            average.
        attack_failures_per_min: Those that an attack makes at least.
        faults_per_h: Breaches of protocol that an honest peer makes at most (a broken link).
        attack_faults_per_h: Those that an attack makes at least.
        new_targets_per_h: Machines and nodes that an identity acts on for the first time, when it
            is known already.
        attack_targets_per_h: Those that a thief makes who looks around.
        certainty: The sum of evidence at which an alert comes; 1 more is 2.7 times as certain.
        travel_km_per_h: The fastest that a credential travels honestly.
        rotation_s: A credential may be replaced by a newer one; the older one must not be used
            longer than so long after.
        volume_bucket_s: Bytes are counted in spans of this.
        volume_floor_bytes: Less than this in a span is never an alert.
        volume_deviations: How unusual a volume must be, in deviations of its logarithm.
        learn_s: An identity's habits are learned for so long before they count.
        identities: How many are remembered.
        targets: How many targets are remembered of each.
    """

    failures_per_min: float = 1.0
    attack_failures_per_min: float = 12.0
    faults_per_h: float = 2.0
    attack_faults_per_h: float = 60.0
    new_targets_per_h: float = 1.0
    attack_targets_per_h: float = 20.0
    certainty: float = 15.0
    travel_km_per_h: float = 1000.0
    rotation_s: float = 900.0
    volume_bucket_s: float = 300.0
    volume_floor_bytes: int = 1 << 30
    volume_deviations: float = 5.0
    learn_s: float = 86400.0
    identities: int = 4096
    targets: int = 512

    def __attrs_post_init__(self) -> None:
        for honest, attack in (
            ("failures_per_min", "attack_failures_per_min"),
            ("faults_per_h", "attack_faults_per_h"),
            ("new_targets_per_h", "attack_targets_per_h"),
        ):
            if not 0 < getattr(self, honest) < getattr(self, attack):
                raise ValueError(f"{attack} must be above {honest}, and that above 0")
        for name in ("certainty", "travel_km_per_h", "volume_bucket_s", "volume_deviations"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0")
        if self.identities < 1 or self.targets < 1:
            raise ValueError("identities and targets must be at least 1")


@define
class _Test:
    """A sequential test of one rate against a higher one, in events per second."""

    honest: float
    attack: float
    bound: float
    sum: float = 0.0
    last_s: float | None = None
    first_s: float = 0.0
    count: int = 0

    def event(self, now_s: float) -> float:
        """Take one event; the sum in units of the bound: an alert is due at 1."""
        if self.last_s is not None:
            waited = max(0.0, now_s - self.last_s)
            self.sum -= (self.attack - self.honest) * waited
        if self.sum <= 0:
            self.sum, self.count, self.first_s = 0.0, 0, now_s
        self.sum += math.log(self.attack / self.honest)
        self.count += 1
        self.last_s = now_s
        return self.sum / self.bound

    def reset(self) -> None:
        """Forget: after an alert the evidence for the next one is gathered anew."""
        self.sum, self.count = 0.0, 0


@define
class _Bounded(Generic[T]):
    """A table of at most so many; who was silent longest is forgotten first."""

    most: int
    make: Callable[[], T]
    _all: OrderedDict[str, T] = field(factory=OrderedDict, init=False)

    def get(self, key: str) -> T:
        if key in self._all:
            self._all.move_to_end(key)
            return self._all[key]
        if len(self._all) >= self.most:
            self._all.popitem(last=False)
        made = self._all[key] = self.make()
        return made

    def __len__(self) -> int:
        return len(self._all)


@define
class _Volume:
    """The usual volume per span: a running mean and spread of its logarithm."""

    began_s: float | None = None
    bytes: int = 0
    alerted: bool = False
    spans: int = 0
    mean: float = 0.0
    spread: float = 1.0


@define
class _Identity:
    """What is remembered of one identity."""

    first_s: float | None = None
    fingerprint: str = ""
    older: str = ""
    replaced_s: float = 0.0
    place: tuple[float, float] | None = None
    place_s: float = 0.0
    targets: OrderedDict[str, None] = field(factory=OrderedDict)
    volume: _Volume = field(factory=_Volume)


class Watch:
    """All detectors over the events of one node."""

    def __init__(self, settings: WatchSettings | None = None) -> None:
        self.settings = settings = settings or WatchSettings()
        minute, hour, bound = 60.0, 3600.0, settings.certainty
        most = settings.identities
        self._identities = _Bounded(most, _Identity)

        def tests(honest: float, attack: float, unit_s: float) -> _Bounded[_Test]:
            return _Bounded(most, lambda: _Test(honest / unit_s, attack / unit_s, bound))

        self._failures = tests(settings.failures_per_min, settings.attack_failures_per_min, minute)
        self._origins = tests(settings.failures_per_min, settings.attack_failures_per_min, minute)
        self._faults = tests(settings.faults_per_h, settings.attack_faults_per_h, hour)
        self._reaches = tests(settings.new_targets_per_h, settings.attack_targets_per_h, hour)

    def handle(self, event: Event, now_s: float) -> tuple[Alert, ...]:
        """Take an event. ``now_s`` never goes back; alerts come in the order of their weight."""
        match event:
            case Attempt():
                alerts = self._attempt(event, now_s)
            case Proof():
                alerts = self._proof(event, now_s)
            case Reach():
                alerts = self._reach(event, now_s)
            case Sent():
                alerts = self._sent(event, now_s)
            case Fault():
                alerts = self._fault(event, now_s)
        return tuple(sorted(alerts, key=lambda alert: -alert.score))

    def remembered(self) -> int:
        """How many identities and origins are remembered, for a bound to be checked."""
        tables = (self._identities, self._failures, self._origins, self._faults, self._reaches)
        return max(len(table) for table in tables)

    def _identity(self, name: str, now_s: float) -> _Identity:
        known = self._identities.get(short(name))
        if known.first_s is None:
            known.first_s = now_s
        return known

    def _attempt(self, event: Attempt, now_s: float) -> list[Alert]:
        if event.accepted:
            return []
        found = []
        for table, who, key in (
            (self._failures, "identity", short(event.identity)),
            (self._origins, "origin", short(event.origin)),
        ):
            if not key:
                continue
            test = table.get(key)
            score = test.event(now_s)
            if score < 1:
                continue
            span = now_s - test.first_s
            reason = (
                f"{test.count} refused attempts in {span:.0f} s; an honest {who} makes at most "
                f"{self.settings.failures_per_min:g} a minute"
            )
            found.append(
                Alert(
                    detector=BRUTE_FORCE,
                    identity=key if who == "identity" else "",
                    origin=key if who == "origin" else "",
                    score=score,
                    reasons=(reason,),
                    at_s=now_s,
                )
            )
            test.reset()
        return found

    def _proof(self, event: Proof, now_s: float) -> list[Alert]:
        known = self._identity(event.identity, now_s)
        reasons = []
        print_now = short(event.fingerprint)
        if not known.fingerprint:
            known.fingerprint = print_now
        elif print_now == known.older:
            # A credential that was replaced comes back: two hold the identity at once.
            late = now_s - known.replaced_s
            if late > self.settings.rotation_s:
                reasons.append(
                    f"its credential {print_now[:16]} is used again {late:.0f} s after "
                    f"{known.fingerprint[:16]} took its place"
                )
        elif print_now != known.fingerprint:
            since = now_s - known.replaced_s
            if known.older and since < self.settings.rotation_s:
                reasons.append(
                    f"a third credential ({print_now[:16]}) within {since:.0f} s of the last change"
                )
            known.older, known.fingerprint = known.fingerprint, print_now
            known.replaced_s = now_s
        reasons += self._travel(known, event, now_s)
        return [self._alert(TOKEN_THEFT, event.identity, 2.0, now_s, r) for r in reasons[:1]]

    def _travel(self, known: _Identity, event: Proof, now_s: float) -> list[str]:
        if event.place is None:
            return []
        reasons = []
        if known.place is not None:
            far = distance_km(known.place, event.place)
            hours = max(now_s - known.place_s, 1.0) / 3600
            # Places of networks are known to a few hundred kilometres at best.
            if far > 500 and far / hours > self.settings.travel_km_per_h:
                reasons.append(
                    f"used {far:.0f} km from its last place {hours * 60:.0f} minutes later, which "
                    f"is {far / hours:.0f} km/h"
                )
        known.place, known.place_s = event.place, now_s
        return reasons

    def _reach(self, event: Reach, now_s: float) -> list[Alert]:
        known = self._identity(event.identity, now_s)
        target = short(event.target)
        if target in known.targets:
            known.targets.move_to_end(target)
            return []
        if len(known.targets) >= self.settings.targets:
            known.targets.popitem(last=False)
        known.targets[target] = None
        if known.first_s is None or now_s - known.first_s < self.settings.learn_s:
            return []
        test = self._reaches.get(short(event.identity))
        score = test.event(now_s)
        if score < 1:
            return []
        reason = (
            f"{test.count} targets that it had never acted on, in {now_s - test.first_s:.0f} s, "
            f"the last one {target!r}; usual are {self.settings.new_targets_per_h:g} an hour"
        )
        test.reset()
        return [self._alert(LATERAL, event.identity, score, now_s, reason)]

    def _sent(self, event: Sent, now_s: float) -> list[Alert]:
        settings = self.settings
        known = self._identity(event.identity, now_s)
        volume = known.volume
        if volume.began_s is None:
            volume.began_s = now_s
        elif now_s - volume.began_s >= settings.volume_bucket_s:
            self._close_span(volume)
            volume.began_s = now_s
        volume.bytes += max(0, event.bytes)
        learned = known.first_s is not None and now_s - known.first_s >= settings.learn_s
        if volume.alerted or not learned or volume.bytes < settings.volume_floor_bytes:
            return []
        # Without habits an identity is measured by the floor: the first move is no theft.
        known_habits = volume.spans >= 3
        mean = volume.mean if known_habits else math.log1p(settings.volume_floor_bytes)
        spread = max(volume.spread, 0.35) if known_habits else 1.0
        score = (math.log1p(volume.bytes) - mean) / spread / settings.volume_deviations
        if score < 1:
            return []
        volume.alerted = True
        usual = f"usual are {math.expm1(mean) / 1e6:.0f} MB"
        reason = (
            f"{volume.bytes / 1e6:.0f} MB within {settings.volume_bucket_s:.0f} s; "
            f"{usual if known_habits else 'it has sent hardly anything before'}"
        )
        return [self._alert(EXFILTRATION, event.identity, min(score, 9.9), now_s, reason)]

    def _close_span(self, volume: _Volume) -> None:
        # What was alerted is not learned: a thief shall not teach what is usual.
        if volume.bytes and not volume.alerted:
            value = math.log1p(volume.bytes)
            if volume.spans == 0:
                volume.mean = value
            weight = max(0.05, 1 / (volume.spans + 1))
            apart = abs(value - volume.mean)
            volume.spread += weight * (1.25 * apart - volume.spread)
            volume.mean += weight * (value - volume.mean)
            volume.spans += 1
        volume.bytes, volume.alerted = 0, False

    def _fault(self, event: Fault, now_s: float) -> list[Alert]:
        test = self._faults.get(short(event.identity))
        score = test.event(now_s)
        if score < 1:
            return []
        reason = (
            f"{test.count} breaches of protocol in {now_s - test.first_s:.0f} s, the last one: "
            f"{short(event.what)}; an honest peer makes at most {self.settings.faults_per_h:g} an "
            "hour"
        )
        test.reset()
        return [self._alert(ABUSE, event.identity, score, now_s, reason)]

    def _alert(
        self, detector: str, identity: str, score: float, now_s: float, *reasons: str
    ) -> Alert:
        return Alert(
            detector=detector,
            identity=short(identity),
            origin="",
            score=score,
            reasons=reasons,
            at_s=now_s,
        )


def distance_km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Along the earth's surface, between two places in degrees."""
    lat1, lon1, lat2, lon2 = map(math.radians, (*one, *other))
    a = (
        math.sin((lat2 - lat1) / 2) ** 2
        + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    )
    return 2 * EARTH_KM * math.asin(math.sqrt(min(1.0, a)))
