"""Bugs planted in what decides who runs a machine; the simulation of ownership finds them."""

from __future__ import annotations

from novacron_testkit.mutants import Mutant

_LEASES = "novacron_agreement.leases"
_REQUESTS = "novacron_agreement.requests"
_REGISTER = "novacron_testkit.ownership.register"
_HANDOVER = "novacron_dwcp.handover"

MUTANTS: tuple[Mutant, ...] = (
    # Leases.
    Mutant(
        "a lease counts from its answer",
        _LEASES,
        "(record, asked_ms), self._asked = self._asked, None",
        "(record, asked_ms), self._asked = (self._asked[0], now_ms), None",
        known=254,
    ),
    Mutant(
        "a lease is longer than the others wait",
        _LEASES,
        "self.until_ms = asked_ms + self.settings.lease_ms",
        "self.until_ms = asked_ms + 2 * self.settings.lease_ms",
        known=13,
    ),
    Mutant(
        "a lease that has run out still lets machines run",
        _LEASES,
        "return now_ms < self.until_ms",
        "return self.until_ms > 0",
        known=34,
    ),
    Mutant(
        "others wait half as long",
        _LEASES,
        "return math.ceil(self.lease_ms * (1 + self.drift) / (1 - self.drift)) + 1",
        "return self.lease_ms // 2",
        known=1,
    ),
    Mutant(
        "others break a lease without waiting",
        _LEASES,
        "or now_ms - seen.since_ms <= wait_ms",
        "",
    ),
    Mutant(
        "a break is written over whatever epoch",
        _LEASES,
        """seen.record.epoch + 1, f"{self.life}.break.{self._count}"
        )
        return Break(node, record, seen.record.epoch)""",
        """seen.record.epoch + 9, f"{self.life}.break.{self._count}"
        )
        return Break(node, record, None)""",
        known=10,
    ),
    Mutant(
        "a machine is taken though its owner is back",
        _LEASES,
        "return record, (broken.machine, broken.epoch)",
        "return record, None",
        known=123,
    ),
    Mutant(
        "a takeover can be written over by an old session",
        _LEASES,
        "TAKEOVER_STEP: Final = 3",
        "TAKEOVER_STEP: Final = 1",
        known=4,
    ),
    Mutant(
        "a broken lease needs no confirmation",
        _LEASES,
        "self.until_ms, self._confirmed, self._due_ms = 0, False, now_ms",
        "self.until_ms, self._due_ms = 0, now_ms",
        known=85,
    ),
    Mutant(
        "a lease in doubt needs no confirmation",
        _LEASES,
        """        self._confirmed = False
        return []""",
        "        return []",
        known=89,
    ),
    Mutant(
        "machines are guarded before they are confirmed",
        _LEASES,
        "return [*effects, Guard(self.until_ms if self.settings.takeover else None)]",
        "return [Guard(self.until_ms), *effects]",
        known=37,
    ),
    Mutant(
        "a lease in doubt is never asked for again",
        _LEASES,
        "self._asked, self._looking, self._epoch, self._due_ms = None, False, None, 0",
        "self._due_ms = 0",
    ),
    Mutant(
        "a broken lease is never renewed",
        _LEASES,
        "self.until_ms, self._confirmed, self._due_ms = 0, False, now_ms",
        "self.until_ms, self._confirmed, self._due_ms = 0, False, 10**9",
        known=1,
    ),
    # How a node asks the register.
    Mutant(
        "each request is a client of its own",
        _REQUESTS,
        "command = self._queue[0].make(self.client, number)",
        'command = self._queue[0].make(f"{self.client}/{number}", 1)',
        known=12,
    ),
    Mutant(
        "a question that was lost is not asked again",
        _REGISTER,
        "self._again_ms = now_ms + AGAIN_MS",
        "self._again_ms = now_ms + 10**9",
    ),
    Mutant(
        "an answer to another question is taken",
        _REQUESTS,
        "if self._under_way is None or self._under_way.number != number:",
        "if self._under_way is None:",
        known=9,
    ),
    Mutant(
        "a change in doubt counts as made",
        _REQUESTS,
        'self._queue.popleft().then(None, "")',
        'self._queue.popleft().then(Outcome(True, None), "")',
        known=13,
    ),
    Mutant(
        "a refused change counts as made",
        _REQUESTS,
        "request.then(None if outcome.error else outcome, outcome.error)",
        "request.then(Outcome(True, outcome.present), outcome.error)",
        known=10,
    ),
    # Hand-overs.
    Mutant(
        "a commit in doubt is rolled back",
        _HANDOVER,
        """            case Tick():
                return (ReadOwner(),)
            case OwnerIs(record) if record == self.terms.given():
                self._to(Phase.RUN)
                return self._say_run()
            case OwnerIs(record) if record is not None and record.owner""",
        """            case Tick():
                return self._roll_back("impatience")
            case OwnerIs(record) if record == self.terms.given():
                self._to(Phase.RUN)
                return self._say_run()
            case OwnerIs(record) if record is not None and record.owner""",
        known=4,
    ),
    Mutant(
        "a source that has given the machine away resumes it",
        _HANDOVER,
        """            case Tick() | Begin():
                return self._say_run()""",
        """            case Tick() | Begin():
                return (Resume(), *self._say_run())""",
        known=4,
    ),
    Mutant(
        "a destination waits for a source that lost the machine",
        _HANDOVER,
        """            case Gone() | Failed():
                return self._abandon(event.reason)
            case OwnerIs(record) if self._overtaken(record):
                return self._give_up()""",
        """            case Gone() | Failed():
                return self._abandon(event.reason)""",
        known=30,
    ),
    Mutant(
        "a source has no answer for a session that it has ended",
        _HANDOVER,
        "case msg.Accept() | msg.Verified():",
        "case msg.Aborted():",
        known=6137,
    ),
)
