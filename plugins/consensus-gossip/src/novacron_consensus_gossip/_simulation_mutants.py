"""Bugs planted on purpose in the core; the simulation has to find each of them.

``known`` is a seed that finds it, where that is not the first one. A change of the core or of the
simulation may move it; then all seeds are tried again, and the run takes longer.
"""

from __future__ import annotations

from typing import Final

from novacron_testkit.mutants import Mutant

_PACKAGE: Final = "novacron_consensus_gossip"


def _mutant(name: str, module: str, before: str, after: str, *, known: int | None = None) -> Mutant:
    return Mutant(
        name, f"{_PACKAGE}.{module}", before, after, core=f"{_PACKAGE}._core", known=known
    )


MUTANTS: Final[tuple[Mutant, ...]] = (
    # Who wins.
    _mutant(
        "a refutation does not outrank the doubt",
        "_membership",
        "self.incarnation = above + 1",
        "self.incarnation = above",
    ),
    _mutant(
        "an old life outranks a doubt of the same incarnation",
        "_membership",
        "elif claim.incarnation <= known.incarnation:",
        "elif claim.incarnation < known.incarnation:",
    ),
    _mutant(
        "an outdated doubt is believed",
        "_membership",
        "if known is None or claim.incarnation < known.incarnation:",
        "if known is None:",
    ),
    _mutant(
        "a doubted member does not refute",
        "_membership",
        'self._desk.counts["refuted"] += 1\n        self.raise_incarnation(claim.incarnation)',
        'self._desk.counts["refuted"] += 1',
    ),
    _mutant(
        "a leaving member refutes its own goodbye",
        "_membership",
        "if claim.incarnation < self.incarnation or self._desk.leaving:",
        "if claim.incarnation < self.incarnation:",
        known=2,
    ),
    _mutant(
        "the incarnation is not kept for the next life",
        "_membership",
        "desk.do(Save((encode_saved(self._saved()),), replaces=True))",
        "pass",
    ),
    _mutant(
        "a restarted member begins with the incarnation that it had",
        "_core",
        "(saved.incarnation + 1 if saved else 0)",
        "(saved.incarnation if saved else 0)",
        known=2,
    ),
    _mutant(
        "two processes of one name never give in",
        "_membership",
        "if self._duels > DUELS_MAX and claim.life > self.life:",
        "if False:",
        known=13,
    ),
    # Suspicion.
    _mutant(
        "who is dead in another table is dead at once",
        "_membership",
        "elif state is State.SUSPECT or (state is State.DEAD and compared):",
        "elif state is State.SUSPECT:",
        known=3,
    ),
    _mutant(
        "a suspicion goes on after the refutation",
        "_membership",
        "        self._clear(claim.name)\n        desk.timers.cancel",
        "        desk.timers.cancel",
    ),
    _mutant(
        "a suspicion never becomes a belief",
        "_membership",
        "self._believe(known, claim, State.DEAD)",
        "pass",
        known=1,
    ),
    _mutant("a confirmation counts for nothing", "_health", "self.by.add(by)", "pass", known=1),
    _mutant(
        "a suspicion is as short as it gets from the beginning",
        "_health",
        "return self.began_ms + max(self._least, int(length))",
        "return self.began_ms + self._least",
        known=5,
    ),
    _mutant(
        "a suspicion may end before the shortest time",
        "_health",
        "return self.began_ms + max(self._least, int(length))",
        "return self.began_ms + int(length) // 4",
    ),
    _mutant(
        "a refutation comes without a doubt being told to the doubted",
        "_membership",
        "desk.tell(Doubt(name, claim.incarnation, State.SUSPECT, claim.by))",
        "pass",
        known=16,
    ),
    _mutant(
        "a failure is not told",
        "_membership",
        "desk.tell(Doubt(claim.name, claim.incarnation, state, claim.by))",
        "pass",
        known=2,
    ),
    _mutant(
        "the dead are never forgotten",
        "_membership",
        'desk.timers.set("forget", claim.name, desk.now + desk.timing.forget_ms)',
        "pass",
        known=7,
    ),
    _mutant(
        "more members are taken than may be",
        "_membership",
        "if len(desk.members) >= desk.timing.members_max:",
        "if False:",
        known=14,
    ),
    # Probes.
    _mutant(
        "nobody else is asked to try",
        "_detector",
        "desk.send(other.address, message)",
        "pass",
    ),
    _mutant(
        "who was asked to try keeps the answer to itself",
        "_detector",
        "self._desk.send(relayed.to, Ack(who, relayed.number))",
        "pass",
    ),
    _mutant(
        "who was asked to try does not say that it failed",
        "_detector",
        "self._desk.send(relayed.to, Nack(self._desk.me.name, relayed.number))",
        "pass",
        known=1,
    ),
    _mutant(
        "an answered probe is kept",
        "_detector",
        "            del self.probes[number]\n            timers",
        "            timers",
    ),
    _mutant(
        "some are not probed for long",
        "_members",
        "self._at = (self._at + self._stride) % self._places",
        "self._at %= self._places",
    ),
    _mutant(
        "an ill node does not slow down", "_health", "return self.score + 1", "return 1", known=5
    ),
    _mutant(
        "an ill node does not notice",
        "_detector",
        "self._health.change(silent if probe.asked else 1)",
        "pass",
        known=5,
    ),
    _mutant(
        "who slept blames those it did not hear",
        "_detector",
        "self.probes.clear()\n        self.relayed.clear()",
        "self.relayed.clear()\n        return",
        known=21,
    ),
    _mutant(
        "who slept for a month tells what it knew",
        "_core",
        "if late > desk.timing.forget_ms // 2:",
        "if False:",
        known=7,
    ),
    # Comparing and telling.
    _mutant(
        "lost members are never tried again",
        "_sync",
        "                self.ask(lost)\n                return",
        "                return",
        known=3,
    ),
    _mutant(
        "a comparison is not answered",
        "_sync",
        "self._share(message.address, differing, reply=True)",
        "pass",
    ),
    _mutant(
        "news is told for ever",
        "_news",
        "if sent + 1 >= limit:",
        "if False:",
    ),
    # Broadcasts.
    _mutant(
        "a broadcast is delivered as often as it comes",
        "_tree",
        "if message.id in self._seen:",
        "if False:",
        known=8,
    ),
    _mutant(
        "nobody is pruned",
        "_tree",
        "self._send(sender, Prune(self._desk.me.name))",
        "pass",
        known=23,
    ),
    _mutant(
        "what was announced and does not come is not asked for",
        "_tree",
        "self._send(source, Graft(desk.me.name, number))",
        "pass",
        known=10,
    ),
    _mutant(
        "a broadcast is not given to those who ask",
        "_tree",
        "message = self._kept.get(number)",
        "message = None",
        known=10,
    ),
    _mutant(
        "nothing is announced to lazy neighbours",
        "_tree",
        "self._send(name, Announce(self._desk.me.name, (message.id,)))",
        "pass",
        known=23,
    ),
    _mutant(
        "one who was cut off hears nothing of what it missed",
        "_tree",
        "return tuple(list(self._kept)[-ANNOUNCED_MAX:])",
        "return ()",
        known=10,
    ),
    _mutant(
        "broadcasts are kept without bounds",
        "_tree",
        "if not old and self._kept_bytes <= timing.keep_bytes:",
        "if not old:",
        known=11,
    ),
)
