"""Bugs planted in the core on purpose: each breaks one rule that a law depends on.

``known`` is a seed that finds it, where that is not the first one. A change of the core or of the
simulation may move it; then all seeds are tried again, and the run takes longer.
"""

from __future__ import annotations

from typing import Final

from novacron_testkit.mutants import Mutant

_PACKAGE: Final = "novacron_consensus_bft"


def _in(module: str, name: str, before: str, after: str, *, known: int | None = None) -> Mutant:
    return Mutant(
        name, f"{_PACKAGE}.{module}", before, after, core=f"{_PACKAGE}._core", known=known
    )


MUTANTS: Final = (
    # Votes.
    _in(
        "_voting",
        "votes in a view that it has given up",
        "if self.timed_out or held.digest not in self.chain.tree:",
        "if held.digest not in self.chain.tree:",
        known=2,
    ),
    _in(
        "_voting",
        "votes for what does not build on what it voted for",
        "return block.height == voted.height + 1 and block.parent == voted.digest",
        "return block.height > voted.height",
        known=8,
    ),
    _in(
        "_voting",
        "does not write its votes down",
        "            self._save(self.voted)\n",
        "",
        known=2,
    ),
    _in(
        "_voting",
        "does not write down that it gave a view up",
        "        self._save(rec.GaveUp(self.era.number, self.view, self.high))\n",
        "",
        known=4,
    ),
    _in(
        "_member",
        "speaks before what it wrote is durable",
        "            self._flush()\n            self._out.append(Send(to, encode(message)))",
        "            self._out.append(Send(to, encode(message)))",
        known=6,
    ),
    _in(
        "_core",
        "forgets its votes in a restart",
        "                    if record.era == self.era.number:\n"
        "                        self.voted, self.view",
        "                    if False:\n                        self.voted, self.view",
        known=2,
    ),
    # Certificates.
    _in(
        "_era",
        "takes too small a quorum",
        "self.quorum = len(members) - self.faulty",
        "self.quorum = len(members) - 2 * self.faulty",
    ),
    _in(
        "_era",
        "counts one member's signature as often as it comes",
        "            if place in places or not self.signed(place, statement, signature):\n"
        "                return False\n            places.add(place)",
        "            if not self.signed(place, statement, signature):\n"
        "                return False\n            places.add((place, len(places)))",
        known=6,
    ),
    _in(
        "_era",
        "counts signatures that are none",
        "if place in places or not self.signed(place, statement, signature):",
        "if place in places:",
        known=2,
    ),
    _in(
        "_era",
        "believes blocks that their leader has not signed",
        "return self.signed_by(self.leader(block.view), statement, signature)",
        "return True",
        known=4,
    ),
    _in(
        "_rules",
        "believes every certificate in a block",
        "    if not era.certifies(block.justify):",
        "    if False:",
        known=17,
    ),
    _in(
        "_rules",
        "believes every timeout certificate in a block",
        "if block.timeouts is not None and not era.gave_up(block.timeouts):",
        "if False:",
        known=7,
    ),
    _in(
        "_rules",
        "takes a first block that a quorum knew better than",
        "    if justify < timeouts.highest:",
        "    if False:",
        known=17,
    ),
    _in(
        "_rules",
        "takes a certificate for a block that is not built on",
        "if chain.ancestor(parent, justify.rank) != justify.digest:",
        "if False:",
        known=23,
    ),
    _in(
        "_voting",
        "believes certificates that come alone",
        "        if not self.era.certifies(certificate):\n"
        '            self._refuse(sender, "a certificate that is not sound")',
        '        if False:\n            self._refuse(sender, "a certificate that is not sound")',
        known=2,
    ),
    _in(
        "_voting",
        "commits after one phase",
        "            self._commit(first.digest, certificate)",
        "            self._commit(held.digest, certificate)",
    ),
    _in(
        "_voting",
        "commits over a change of view",
        "if first.height > 0 and first.view == held.block.view:",
        "if first.height > 0:",
    ),
    # Requests.
    _in(
        "_rules",
        "takes requests that nobody made",
        "        if not era.asked(request):",
        "        if False:",
        known=7,
    ),
    _in(
        "_ledger",
        "does again what was done",
        "        if verdict is not Verdict.DO:",
        "        if verdict is Verdict.REFUSE:",
        known=2,
    ),
    _in(
        "_ledger",
        "forgets in a snapshot what was done",
        "Numbers(state.rows)",
        "Numbers(msgspec.structs.replace(row, floor=0, above=()) for row in state.rows)",
        known=2,
    ),
    _in(
        "_core",
        "numbers its requests anew in the same epoch",
        "self.epoch = max(self.epoch, self.ledger.epoch_of(self.name)) + 1",
        "self.epoch = 1",
        known=5,
    ),
    _in(
        "_core",
        "serves reads from what it has",
        "            self._mark([ticket])\n",
        "            from novacron_agreement import Readable\n"
        "            self._out.append(Readable(ticket, self.ledger.index))\n",
        known=13,
    ),
    _in(
        "_pool",
        "lets one origin fill the pool",
        "share.bytes + len(request.command) <= self._share_bytes",
        "True",
        known=2,
    ),
    _in(
        "_voting",
        "keeps whatever comes early",
        "            if len(self._early) < 2 * self.settings.window:",
        "            if True:",
        known=7,
    ),
    # Members, states and proofs.
    _in(
        "_rules",
        "takes a change of members without approvals",
        "if block.change is not None and not era.approves(block.change):",
        "if False:",
        known=4,
    ),
    _in(
        "_member",
        "goes on in the old era after a change of members",
        "                self.ledger.change(change, held.digest)\n                break",
        "                self.ledger.change(change, held.digest)",
        known=15,
    ),
    _in(
        "_catchup",
        "takes blocks that are not certified",
        "        if not self.era.certifies(certificate):\n"
        '            self._refuse(sender, "blocks that are not certified")',
        '        if False:\n            self._refuse(sender, "blocks that are not certified")',
        known=2,
    ),
    _in(
        "_catchup",
        "takes a state that one member has signed",
        "if len(signers) < era.quorum or not sound",
        "if len(signers) < 1 or not sound",
        known=2,
    ),
    _in(
        "_catchup",
        "takes pieces of a state unseen",
        "        if sha256(message.data) != coming.header.chunks[message.chunk]:",
        "        if False:",
        known=39,
    ),
    _in(
        "_evidence",
        "convicts who says the same twice",
        "if before[0] == digest or (member, at[0]) in self._convicted:",
        "if (member, at[0]) in self._convicted:",
        known=2,
    ),
    # Going on.
    _in(
        "_core",
        "never gives a view up",
        "        if ends is not None and now_ms >= ends:",
        "        if False:",
    ),
    _in(
        "_core",
        "tells the next leader alone that it gave up",
        "            self._send_all(timeout)\n",
        "            self._send(self.era.leader(self.view + 1), timeout)\n",
        known=1,
    ),
    _in(
        "_core",
        "never says again what it asked for",
        "                self._send_all(message)\n",
        "                pass\n",
        known=5,
    ),
    _in(
        "_catchup",
        "does not answer who is behind",
        "                self._answer(sender, there)\n",
        "                pass\n",
        known=2,
    ),
)
