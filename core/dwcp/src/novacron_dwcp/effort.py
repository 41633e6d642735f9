"""How hard an encoder tries: as much as the link leaves time for. Without I/O."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Final

from attrs import define, field

from novacron_dwcp.values import Pressure

# What a byte costs at zstd's level 1 on a processor of 2020 (some 420 MB/s).
UNIT_S: Final = 2.4e-9

# Of the encoder's and the link's time together: below this share the link does not hold us up ...
_LINK_IDLE: Final = 0.05
# ... and below this it may be the processors that it waits for, rather than the network.
_LINK_CLOSE: Final = 0.25
# What a step up may use of the time that is spent waiting for the link: some is kept, so that the
# step down does not follow at once.
_LINK_USED: Final = 0.8
# A step down halves the cost at least.
_DOWN: Final = 0.5
# Seconds in a row that must ask for a trial; more after one that had to be taken back.
_PATIENCE_S: Final = 0.4
_PATIENCE_MAX_S: Final = 32.0
# How long a trial lasts.
_TRIAL_S: Final = 0.2
# Rates differ if they do by this share.
_NOISE: Final = 0.05
# Machines' memory shrinks to about a third; of the time that the link needs for that, an encoder
# may use this share without a doubt.
_SHRINKS: Final = 3.0
_CLEAR: Final = 0.35
# Below so many bytes per second, a byte that is not sent saves both hosts more of their processors
# (encryption, copies, packets) than a step of that cost, about zstd's level 1, takes for it.
# Measured on 2 cores at 200 Mbit/s and 80 ms, see ADR 008.
_SLOW: Final = 250e6
_CHEAPER: Final = 1.25
# A step that takes no more than this share of the time costs nothing that would be noticed: where
# next to all pages are found at the destination, and only the others are compressed.
_FREE: Final = 0.05
# How much one look counts: a thread that was kept waiting looks slow for a moment.
_LEARN: Final = 0.3
# What was done in less time than this says nothing.
_BUSY_S_MIN: Final = 0.05


@define
class _Tally:
    """What went through, in the time that was not spent waiting for the machine."""

    busy_s: float = 0.0
    raw_bytes: int = 0
    sent_bytes: int = 0

    def add(self, busy_s: float, raw_bytes: int, sent_bytes: int) -> None:
        self.busy_s += busy_s
        self.raw_bytes += raw_bytes
        self.sent_bytes += sent_bytes

    def raw_gain(self, before: _Tally) -> float:
        """How much faster the machine's bytes go."""
        then, now = before.raw_bytes * self.busy_s, self.raw_bytes * before.busy_s
        return now / then - 1 if then else 0.0

    def sent_gain(self, before: _Tally) -> float:
        """How much faster the link's bytes go."""
        then, now = before.sent_bytes * self.busy_s, self.sent_bytes * before.busy_s
        return now / then - 1 if then else 0.0


@define
class _Trial:
    """A step that has not proved itself: where it began, and what got through there."""

    begun_at: int
    before: _Tally
    since: _Tally = field(factory=_Tally)


class Effort:
    """Climbs while the link is the bottleneck, and steps down when the encoder is.

    Both go several steps at once: a short copy on a fast link must be at its level within a second.
    Where the encoder clearly is what holds the copy up, it steps down at once. Else a step is a
    trial, because where the same processors encode and carry, the wait for the link does not show
    what a step takes from others: it is taken back unless it helps, and the next comes later.

    What is clear needs no trial: a link whose rate is known to be so low that a step takes a small
    part of the time that it needs for what comes out of it; or so little to compress that the step
    is not noticed. No step below that one is taken.

    Args:
        costs: Processor time per byte of each step, ascending, relative to one of cost 1.
        start: The step to begin with; the next lower one if it is not among them.
        unit_s: What a byte costs at cost 1, until that is measured.
        still: Steps that do next to nothing, so that their time tells nothing of the others.
    """

    def __init__(
        self,
        costs: Mapping[int, float],
        start: int,
        *,
        unit_s: float = UNIT_S,
        still: Collection[int] = (),
    ) -> None:
        self._costs = costs
        self._steps = list(costs)
        self._at = max((at for at, to in enumerate(self._steps) if to <= start), default=0)
        self._still = still
        self._unit_s = unit_s
        self._patience_s = _PATIENCE_S
        self._asked = _Tally()
        self._asked_up = False
        self._climbed = False
        # The step from which the last climb began: the right one is not below it.
        self._floor: int | None = None
        # Steps below this are out of the question for the link as it is.
        self._least = 0
        self._trial: _Trial | None = None

    @property
    def step(self) -> int:
        return self._steps[self._at]

    def adapt(
        self,
        pressure: Pressure,
        raw_bytes: int,
        sent_bytes: int,
        *,
        tried_s: float | None = None,
        tried_bytes: int | None = None,
    ) -> None:
        """Told where the time went since the last call, and what was encoded to how much.

        Args:
            tried_s: What of the encoder's time depends on the step, and on how many bytes it was
                spent; all of it if left out.
        """
        encode, link, read = pressure.encode_s, pressure.link_wait_s, pressure.read_wait_s
        busy = encode + link
        if not all(map(math.isfinite, (encode, link, read))) or min(encode, link, read) < 0:
            return
        if busy < _BUSY_S_MIN:
            return
        tried_s = encode if tried_s is None else tried_s
        tried_bytes = raw_bytes if tried_bytes is None else tried_bytes
        if self.step not in self._still and tried_bytes and tried_s:
            unit_s = tried_s / tried_bytes / self._costs[self.step]
            self._unit_s += (unit_s - self._unit_s) * _LEARN
        self._least = max(self._clear(pressure.rate_bytes_per_s), self._free(tried_bytes, busy))
        if self._at < self._least:
            self._move(self._least)
            return
        if link < busy * _LINK_IDLE and encode > read:
            self._step_down()
            return
        if self._trial is not None:
            self._trial.since.add(busy, raw_bytes, sent_bytes)
            self._judge(self._trial)
            return
        if link >= busy * _LINK_CLOSE:
            at = self._affordable(link * _LINK_USED, tried_bytes or raw_bytes)
        else:
            at = self._below() if encode > read else self._at
        if at == self._at or (at > self._at) != self._asked_up:
            self._asked = _Tally()
        if at == self._at:
            return
        self._asked_up = at > self._at
        self._asked.add(busy, raw_bytes, sent_bytes)
        if self._asked.busy_s >= self._patience_s:
            trial = _Trial(self._at, self._asked)
            self._floor = self._at if at > self._at else None
            self._move(at)
            self._trial = trial

    def _judge(self, trial: _Trial) -> None:
        if trial.since.busy_s < _TRIAL_S:
            return
        helps = trial.since.raw_gain(trial.before) > _NOISE
        # On a link that is full a better level may show no gain where the contents change for the
        # worse; but the link stays full.
        if self._climbed:
            helps = helps or trial.since.sent_gain(trial.before) > -_NOISE
        self._trial = None
        if not helps:
            self._lose_patience()
            self._move(trial.begun_at)
            self._climbed, self._floor = False, None

    def _step_down(self) -> None:
        if self._climbed:
            self._lose_patience()
        if self._floor is not None and self._floor < self._at:
            self._move((self._floor + self._at) // 2)
            return
        self._floor = None
        self._move(self._below())

    def _below(self) -> int:
        enough = self._costs[self.step] * _DOWN
        steps = enumerate(self._steps[: self._at])
        return max((at for at, level in steps if self._costs[level] <= enough), default=0)

    def _affordable(self, spare_s: float, raw_bytes: int) -> int:
        """The highest step that takes no more than the spare time beyond what this one takes."""
        now = self._costs[self.step]
        unit_s = raw_bytes * self._unit_s
        best = self._at
        for at in range(self._at + 1, len(self._steps)):
            if unit_s * (self._costs[self._steps[at]] - now) < spare_s:
                best = at
        return best

    def _clear(self, rate_bytes_per_s: float) -> int:
        """The highest step that is clearly worth its time on a link of that rate."""
        if rate_bytes_per_s <= 0:
            return 0
        link_s = 1 / (rate_bytes_per_s * _SHRINKS)
        enough = _CLEAR * link_s / self._unit_s
        if rate_bytes_per_s < _SLOW:
            enough = max(enough, _CHEAPER)
        steps = enumerate(self._steps)
        return max((at for at, step in steps if self._costs[step] <= enough), default=0)

    def _free(self, tried_bytes: int, time_s: float) -> int:
        """The highest step that so many bytes take next to none of that time."""
        if not tried_bytes:
            return 0
        enough = _FREE * time_s / (tried_bytes * self._unit_s)
        steps = enumerate(self._steps)
        return max((at for at, step in steps if self._costs[step] <= enough), default=0)

    def _move(self, at: int) -> None:
        at = max(at, self._least)
        self._climbed = at > self._at
        self._at = at
        self._asked = _Tally()
        self._trial = None

    def _lose_patience(self) -> None:
        self._patience_s = min(self._patience_s * 2, _PATIENCE_MAX_S)
