"""What is foreseen of moves, from what their links, this machine's last moves and they themselves
show. Without I/O: the hooks give it facts and the time."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import define, field
from novacron import MoveEstimate, MoveFacts, MoveNeed

from novacron_transport_pba import _calibration as calibration
from novacron_transport_pba._calibration import Interval
from novacron_transport_pba._forecast import LinkForecaster
from novacron_transport_pba._lessons import Lessons, LinkLesson, ScoredMove, sane
from novacron_transport_pba._links import Link
from novacron_transport_pba._pairs import End, Measured, PairModel
from novacron_transport_pba._shares import Need, allocate

_FAR: Final = 10  # Seconds ahead: moves are long.
# Before this machine, or any other through this codec, was moved: what guests give as a rule.
_BYTES_PER_USED: Final = 0.5
_WIRE_PER_STATE: Final = 0.4
# So much of the machine is how much what is assumed of its content counts against what is seen.
_ASSUMED_PART: Final = 0.02
_AGAIN_PART: Final = 0.05
_TAIL_S: Final = 0.5
_TAIL_ROUND_TRIPS: Final = 6.0
_PAUSE_MS: Final = 60.0
_PAUSE_ROUND_TRIPS: Final = 3.0
# A copy that is hardly faster than the guest writes is not foreseen beyond ten times its length.
_GAIN_LEAST: Final = 0.1
_TRAIL_MAX: Final = 256
_PLANS_MAX: Final = 64
_TRACKS_MAX: Final = 256
_QUARTERS: Final = (0.25, 0.5, 0.75)
_AWAY_MOST: Final = 0.1


@define
class _Seen:
    """What was foreseen at one moment of a move."""

    elapsed_s: float
    bare_s: float  # the time left without the tail, as the model has it
    left_s: Interval
    done: float


@define
class _Track:
    """A move that runs."""

    plan: MoveEstimate
    bare_plan: tuple[float | None, float | None, float]
    trail: list[_Seen] = field(factory=list)
    keep_every_s: float = 0.0

    def add(self, seen: _Seen) -> None:
        """Keep it; of a long move, every second, fourth, eighth."""
        if self.trail and seen.elapsed_s - self.trail[-1].elapsed_s < self.keep_every_s:
            return
        self.trail.append(seen)
        if len(self.trail) > _TRAIL_MAX:
            self.trail = self.trail[::2]
            self.keep_every_s = max(2 * self.keep_every_s, seen.elapsed_s / _TRAIL_MAX)


@define
class Mind:
    """All that one node has learnt."""

    lessons: Lessons = field(factory=Lessons)
    links: dict[str, Link] = field(factory=dict)
    _plans: OrderedDict[tuple[str, str], MoveEstimate] = field(factory=OrderedDict)
    _tracks: dict[str, _Track] = field(factory=dict)

    @classmethod
    def of(cls, lessons: Lessons) -> Mind:
        """Go on from lessons; a link whose state cannot be read begins anew."""
        made = cls(lessons)
        for target, lesson in lessons.links.items():
            try:
                link = Link(LinkForecaster.restored(lesson.snapshot))
            except ValueError:
                link = Link()
            link.round_trip_ms = lesson.round_trip_ms
            made.links[target] = link
        return made

    # ----- before and during a move

    def sample(self, move: MoveFacts, now_s: float) -> None:
        """Learn how a move goes now."""
        if not move.session:
            return
        link = self.links.get(move.target)
        if link is None:
            link = self.links[move.target] = Link()
        track = self._tracks.get(move.session)
        if track is None:
            if len(self._tracks) >= _TRACKS_MAX:
                self._tracks.pop(next(iter(self._tracks)))
            plan = self._plans.pop((move.machine.name, move.target), None)
            track = _Track(plan or self._plan(move), self._bare_plan(move))
            self._tracks[move.session] = track
        link.sample(move, now_s)
        if (running := self._running(move)) is not None:
            bare_s, left_s = running
            done = _done(move)
            track.add(_Seen(move.elapsed_s, bare_s, left_s, done))

    def estimate(self, move: MoveFacts) -> MoveEstimate | None:
        """What is foreseen of a move; None where the kernel's rule of thumb knows as much."""
        if move.session:
            return self._while(move)
        plan = self._plan(move)
        key = (move.machine.name, move.target)
        self._plans[key] = plan
        self._plans.move_to_end(key)
        while len(self._plans) > _PLANS_MAX:
            self._plans.popitem(last=False)
        return plan

    def _around(self, kind: str, middle: float) -> Interval:
        return calibration.around(kind, self.lessons.errors.get(kind, ()), middle)

    def _bare_plan(self, move: MoveFacts) -> tuple[float | None, float | None, float]:
        """Seconds, bytes and pause of a move to come, before the calibration."""
        lesson = self.lessons.known(move.machine.name, move.codec)
        per_used = lesson.bytes_per_used if lesson else _BYTES_PER_USED
        sent = move.used_bytes * per_used
        rate = self.rate(move)
        seconds = None
        if rate and sent:
            seconds = sent / rate + self._tail_s(move)
        return seconds, sent or None, self._pause_ms(move)

    def _plan(self, move: MoveFacts) -> MoveEstimate:
        seconds, sent, pause = self._bare_plan(move)
        lesson = self.lessons.known(move.machine.name, move.codec)
        own = self.lessons.machines.get(f"{move.machine.name}/{move.codec}")
        if own is not None and own.moves:
            source = f"the last {own.moves} moves of {move.machine.name}"
        elif lesson is not None:
            source = f"{lesson.moves} other machines through {move.codec}"
        else:
            source = "what machines give as a rule"
        return MoveEstimate(
            bytes=None if sent is None else self._around("plan.bytes", sent),
            seconds=None if seconds is None else self._around("plan.seconds", seconds),
            pause_ms=self._around("plan.pause", pause),
            confidence=calibration.CONFIDENCE,
            reason=f"{source}, and {self._whence(move)}",
        )

    def rate(self, move: MoveFacts) -> float | None:
        """Bytes per second on the wire that a new move to this target will have."""
        link = self.links.get(move.target)
        forecast = link.forecast(_FAR) if link is not None else None
        rate = forecast.point if forecast is not None else move.rate_bytes_per_s
        if not rate:
            rate = self._as_others(move)
        if rate and move.limit_bytes_per_s:
            rate = min(rate, move.limit_bytes_per_s)
        return rate or None

    def _whence(self, move: MoveFacts) -> str:
        link = self.links.get(move.target)
        if link is not None and link.forecast(_FAR) is not None:
            return f"{link.forecaster.samples} seconds of this link"
        if move.rate_bytes_per_s:
            return "the last rate of this link"
        return "links of like round trips" if self._as_others(move) else "no rate known yet"

    def _as_others(self, move: MoveFacts) -> float | None:
        """The rate of links that are like one that was never used."""
        model = PairModel()
        here = End("here")
        for target, lesson in self.lessons.links.items():
            if lesson.rate_bytes_per_s > 0 and target != move.target:
                model.add(
                    Measured(
                        source=here,
                        target=End(target),
                        round_trip_ms=lesson.round_trip_ms,
                        rate=lesson.rate_bytes_per_s,
                    )
                )
        found = model.predict(here, End(move.target), move.round_trip_ms)
        return found[0] if found else None

    def _tail_s(self, move: MoveFacts) -> float:
        own = self.lessons.machines.get(f"{move.machine.name}/{move.codec}")
        if own is not None and own.moves:
            return own.tail_s
        return _TAIL_S + _TAIL_ROUND_TRIPS * (move.round_trip_ms or 0.0) / 1000

    def _pause_ms(self, move: MoveFacts) -> float:
        own = self.lessons.machines.get(f"{move.machine.name}/{move.codec}")
        if own is not None and own.moves and own.pause_ms > 0:
            return own.pause_ms
        return _PAUSE_MS + _PAUSE_ROUND_TRIPS * (move.round_trip_ms or 0.0)

    def _ratio(self, move: MoveFacts) -> float:
        """Bytes on the wire per byte of state: as seen so far, and at first as assumed."""
        lesson = self.lessons.known(move.machine.name, move.codec)
        assumed = lesson.wire_per_state if lesson and lesson.wire_per_state else _WIRE_PER_STATE
        prior = _ASSUMED_PART * max(move.used_bytes, 1)
        return (move.wire_bytes + prior * assumed) / (move.done_bytes + prior)

    def _running(self, move: MoveFacts) -> tuple[float, Interval] | None:
        """Seconds left: without the tail, and with everything and its bounds."""
        if move.elapsed_s <= 0 or move.done_bytes <= 0:
            return None
        mean = move.done_bytes / move.elapsed_s
        link = self.links.get(move.target)
        carried = link.mean() if link is not None else None
        pace = mean
        if link is not None and carried:
            wire = carried * link.share(move.session)
            if move.limit_bytes_per_s:
                wire = min(wire, move.limit_bytes_per_s)
            # The link's rate is right where the link is what holds the move back, the pace so far
            # where it is something else; between them neither is far off.
            pace = math.sqrt(mean * max(wire / self._ratio(move), 0.05 * mean))
        gain = max(pace - move.dirty_bytes_per_s, _GAIN_LEAST * pace)
        bare = self._to_read(move) / gain
        left = self._around(calibration.eta_kind(_done(move)), bare + self._tail_s(move))
        return bare, left

    def _to_read(self, move: MoveFacts) -> float:
        """What is left, with what the guest will have written until the first pass is over; how
        fast it writes is known only then."""
        if move.dirty_bytes_per_s:
            return float(move.remaining_bytes)
        own = self.lessons.machines.get(f"{move.machine.name}/{move.codec}")
        part = own.again_part if own is not None and own.moves else _AGAIN_PART
        again = part * move.used_bytes - max(0, move.done_bytes - move.used_bytes)
        return move.remaining_bytes + max(0.0, again)

    def _while(self, move: MoveFacts) -> MoveEstimate | None:
        running = self._running(move)
        if running is None:
            return None
        bare, left = running
        ratio = self._ratio(move)
        written = move.remaining_bytes + bare * move.dirty_bytes_per_s
        low, _, high = calibration.bounds(
            calibration.eta_kind(_done(move)),
            self.lessons.errors.get(calibration.eta_kind(_done(move)), ()),
        )
        rest = ratio * written
        return MoveEstimate(
            bytes=(
                move.wire_bytes + rest * low,
                move.wire_bytes + rest,
                move.wire_bytes + rest * high,
            ),
            seconds=left,
            pause_ms=self._around("plan.pause", self._pause_ms(move)),
            confidence=calibration.CONFIDENCE,
            reason="the copy so far and the forecast of its link",
        )

    # ----- after a move

    def end(self, move: MoveFacts, moved: bool, downtime_ms: float, at_s: float) -> bool:
        """Score what was foreseen and learn. Returns: whether there is anything new to keep."""
        track = self._tracks.pop(move.session, None)
        link = self.links.get(move.target)
        if link is not None:
            link.forget(move.session)
        if not moved or track is None or move.elapsed_s <= 0:
            return False
        self._score(move, track, downtime_ms, at_s)
        lesson = self.lessons.machine(move.machine.name, move.codec)
        tails = [
            move.elapsed_s - seen.elapsed_s - seen.bare_s
            for seen in track.trail
            if 0.5 <= seen.elapsed_s / move.elapsed_s <= 0.8
        ]
        lesson.learn(
            bytes_per_used=sane(move.wire_bytes / max(move.used_bytes, 1)),
            wire_per_state=sane(move.wire_bytes / max(move.done_bytes, 1)),
            again_part=sane(min(max(move.done_bytes / max(move.used_bytes, 1) - 1, 0.0), 10.0)),
            tail_s=sane(min(max(sorted(tails)[len(tails) // 2] if tails else 0.0, 0.0), 60.0)),
            pause_ms=sane(downtime_ms),
        )
        self.keep(move)
        return True

    def _score(self, move: MoveFacts, track: _Track, downtime_ms: float, at_s: float) -> None:
        seconds, sent, pause = track.bare_plan
        total = move.elapsed_s
        for kind, foreseen, actual in (
            ("plan.seconds", seconds, total),
            ("plan.bytes", sent, float(move.wire_bytes)),
            ("plan.pause", pause, downtime_ms),
        ):
            if foreseen is not None:
                self.lessons.error(kind, calibration.error_of(foreseen, actual))
        etas: dict[str, tuple[float, float, float, float]] = {}
        tail = self._tail_s(move)
        for seen in _at_quarters(track.trail, total):
            left = total - seen.elapsed_s
            kind = calibration.eta_kind(seen.done)
            self.lessons.error(kind, calibration.error_of(seen.bare_s + tail, left))
        for quarter in _QUARTERS:
            at = _nearest(track.trail, quarter * total)
            if at is not None and abs(at.elapsed_s / total - quarter) < _AWAY_MOST:
                low, middle, high = map(sane, at.left_s)
                etas[f"{quarter * 100:.0f}"] = (low, middle, high, sane(total - at.elapsed_s))
        self.lessons.moves.append(
            ScoredMove(
                machine=move.machine.name[:256],
                target=move.target[:256],
                codec=move.codec[:256],
                at_s=sane(at_s),
                seconds=sane(total),
                bytes=sane(move.wire_bytes),
                pause_ms=sane(downtime_ms),
                plan_seconds=_sane(track.plan.seconds),
                plan_bytes=_sane(track.plan.bytes),
                plan_pause_ms=_sane(track.plan.pause_ms),
                etas=etas,
            )
        )

    def keep(self, move: MoveFacts) -> None:
        """Put the link's state among the lessons."""
        link = self.links.get(move.target)
        self.lessons.links.pop(move.target, None)
        self.lessons.links[move.target] = LinkLesson(
            snapshot=link.forecaster.snapshot() if link is not None else b"",
            rate_bytes_per_s=sane(move.wire_bytes / max(move.elapsed_s, 1e-3)),
            round_trip_ms=None if move.round_trip_ms is None else sane(move.round_trip_ms),
        )

    # ----- several moves

    def rates(self, moves: Sequence[MoveNeed]) -> Mapping[str, int | None] | None:
        """Limits for moves that must yield to others; None where all are alike.

        Whoever comes first is not limited, so that the link is always full and can be measured.
        """
        found: dict[str, int | None] = {}
        targets: dict[str, list[MoveNeed]] = {}
        for move in moves:
            targets.setdefault(move.target, []).append(move)
        for target, together in targets.items():
            found |= self._shared(target, together)
        return found or None

    def _shared(self, target: str, moves: Sequence[MoveNeed]) -> dict[str, int | None]:
        alike = {(move.priority, move.deadline_s is None) for move in moves}
        free: dict[str, int | None] = {move.session: None for move in moves}
        if len(moves) < 2 or (len(alike) == 1 and all(m.deadline_s is None for m in moves)):
            return free
        now = sum(move.rate_bytes_per_s for move in moves)
        link = self.links.get(target)
        forecast = link.forecast(1) if link is not None else None
        capacity = max(now, forecast.point if forecast is not None else 0.0)
        if capacity <= 0:
            return free
        needs = [
            Need(
                name=move.session,
                priority=move.priority,
                remaining=self._still_to_send(move),
                deadline_s=move.deadline_s,
                limit=move.limit_bytes_per_s or math.inf,
            )
            for move in moves
        ]
        shares = allocate(needs, capacity)
        first = min(
            moves,
            key=lambda move: (
                -move.priority if move.deadline_s is None else -math.inf,
                move.deadline_s or 0.0,
                move.session,
            ),
        )
        return {
            move.session: None if move is first else max(1, int(shares[move.session]))
            for move in moves
        }

    def _still_to_send(self, move: MoveNeed) -> float:
        lesson = next(
            (
                lesson
                for name, lesson in self.lessons.machines.items()
                if name.rpartition("/")[0] == move.machine and lesson.wire_per_state
            ),
            None,
        )
        ratio = lesson.wire_per_state if lesson is not None else _WIRE_PER_STATE
        written = move.dirty_bytes_per_s * (move.deadline_s or 0.0)
        return ratio * (move.remaining_bytes + max(0.0, written))


def _nearest(trail: Sequence[_Seen], elapsed_s: float) -> _Seen | None:
    return min(trail, key=lambda seen: abs(seen.elapsed_s - elapsed_s), default=None)


def _done(move: MoveFacts) -> float:
    """The part of the copy that is behind it."""
    return move.done_bytes / max(move.done_bytes + move.remaining_bytes, 1)


def _at_quarters(trail: Sequence[_Seen], total_s: float) -> list[_Seen]:
    """One moment in each quarter of the work that was done, as calibration keeps them apart."""
    found: dict[str, _Seen] = {}
    for seen in trail:
        if seen.elapsed_s < total_s:
            found.setdefault(calibration.eta_kind(seen.done), seen)
    return list(found.values())


def _sane(interval: Interval | None) -> Interval | None:
    if interval is None:
        return None
    low, middle, high = interval
    return (sane(low), sane(middle), sane(high))
