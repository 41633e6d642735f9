"""A member that lies: it keeps to the protocol until it says something else to somebody.

It runs real cores, two of them under one name and key ("twins": Bano et al., "Twins: BFT Systems
Made Robust", 2022), and what these say is held back, replayed, garbled, or exchanged for something
made to deceive: other blocks at the same place, certificates that are none, requests that nobody
made, states that nobody has. It can sign with its own key and with no other.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from novacron_consensus_bft import _wire as wire
from novacron_consensus_bft._signing import Signer

replace = msgspec.structs.replace
Said = tuple[str, bytes]


class Liar:
    """See the module.

    Args:
        name: Under which it takes part.
        share: How many of its messages are lies.
    """

    def __init__(self, name: str, signer: Signer, rng: random.Random, share: float) -> None:
        self.name = name
        self.signer = signer
        self.rng = rng
        self.share = share
        self.heard: deque[bytes] = deque(maxlen=60)
        self.requests: deque[wire.Request] = deque(maxlen=20)
        self.forks: dict[tuple[str, int, int, int], bytes] = {}
        self.headers: deque[wire.Header] = deque(maxlen=20)

    def hear(self, data: bytes) -> None:
        """Something came: it may be of use."""
        self.heard.append(data)
        message = wire.decode(data)
        if isinstance(message, wire.Ask):
            self.requests.append(message.request)
        elif isinstance(message, wire.Proposal):
            block = wire.decode_block(message.block)
            digest = wire.sha256(message.block)
            at = (block.era, block.view, block.height)
            self.headers.append(wire.Header(*at, digest, message.signature))
            self.requests.extend(block.requests)

    def say(self, core: Any, to: str, data: bytes) -> list[Said]:
        """What is really said when one of its cores wants to say something."""
        if self.share >= 1:
            return []  # it is mute
        message = wire.decode(data)
        share = self.share
        if isinstance(message, wire.Proposal):  # to lead is its best chance, most of all at first
            share = 0.9 if wire.decode_block(message.block).timeouts is not None else 0.5
        elif isinstance(message, wire.StateChunk):
            share = 0.9
        if self.rng.random() >= share:
            return [(to, data)]
        choice = self.rng.randrange(10)
        if isinstance(message, wire.StateChunk):
            choice = 9
        if choice == 0:
            return []
        if choice == 1 and self.heard:
            return [(to, data), (to, self.rng.choice(self.heard))]
        if choice == 2:
            garbled = bytearray(data)
            garbled[self.rng.randrange(len(garbled))] ^= 1 << self.rng.randrange(8)
            return [(to, bytes(garbled))]
        if choice == 3:
            return [*self.act(core), (to, data)]
        if isinstance(message, wire.Proposal):
            return [(to, self._other_block(core, to, message))]
        if isinstance(message, wire.Timeout):
            return [(to, self._timeout(core, message))]
        if isinstance(message, wire.StateChunk):
            return [(to, wire.encode(replace(message, data=message.data[:-1] + b"?")))]
        if isinstance(message, wire.Blocks):
            return [(to, self._other_blocks(core, message))]
        return [(to, data)]

    # Made up.

    def act(self, core: Any) -> list[Said]:
        """Something said of its own accord, to one or to all."""
        lies = (
            self._vote_for_everything, self._certificate, self._view_over, self._forged_request,
            self._double_request, self._far_timeout, self._approval, self._status,
            self._state, self._checkpoint, self._closing, self._garbage, self._flood,
            self._early_blocks, self._own_blocks,
        )  # fmt: skip
        made = [wire.encode(said) for said in self.rng.choice(lies)(core)]
        names = [m.name for m in core.era.members if m.name != self.name]
        if not names:
            return []
        to = names if self.rng.random() < 0.5 else [self.rng.choice(names)]
        return [(name, data) for name in to for data in made]

    def _fake(self, core: Any, view: int, height: int, digest: bytes) -> wire.Certificate:
        """A certificate that is none, in one of several ways."""
        place = core.era.places.get(self.name, 0)
        era = core.era.number
        mine = self.signer.sign(wire.to_vote(core.cluster, era, view, height, digest))
        quorum, count = core.era.quorum, len(core.era.members)
        votes: Sequence[tuple[int, bytes]] = self.rng.choice(
            (
                ((place, mine),) * quorum,
                tuple((one, mine) for one in range(quorum)),
                ((place, mine),),
                tuple((one, mine if one == place else bytes(16)) for one in range(count)),
                (),
            )
        )
        return wire.Certificate(era, view, height, digest, tuple(votes))

    def _fake_timeouts(self, core: Any, view: int) -> wire.TimeoutCertificate:
        place = core.era.places.get(self.name, 0)
        mine = self.signer.sign(wire.to_time_out(core.cluster, core.era.number, view, (0, 0)))
        rows = self.rng.choice(
            (
                ((place, 0, 0, mine),) * core.era.quorum,
                tuple((one, 0, 0, mine) for one in range(core.era.quorum)),
                (),
            )
        )
        return wire.TimeoutCertificate(core.era.number, view, rows)

    def _other_block(self, core: Any, to: str, message: wire.Proposal) -> bytes:
        """Another block at the same place, signed by its leader, which this one is."""
        block = wire.decode_block(message.block)
        at = (to, block.era, block.view, block.height)
        fork = self.forks.get((to, block.era, block.view, block.height - 1))
        if fork is not None and self.rng.random() < 0.7:
            # It goes on with what it told this one alone, upon what the others certified.
            block = replace(block, parent=fork)
            self.forks[at] = wire.sha256(wire.encode(block))
            return self._signed_block(core, block)
        block = self._changed_block(core, block)
        self.forks[at] = wire.sha256(wire.encode(block))
        return self._signed_block(core, block)

    def _changed_block(self, core: Any, block: wire.Block) -> wire.Block:
        chance = self.rng.randrange(13)
        if block.timeouts is not None and self.rng.random() < 0.5:
            chance = self.rng.choice((4, 8))
        if chance == 0:
            block = replace(block, requests=block.requests[:-1])
        elif chance == 1:
            block = replace(block, requests=(*block.requests, *self.requests, *block.requests))
        elif chance == 2:
            (forged,) = self._forged_request(core)
            block = replace(block, requests=(*block.requests, forged.request))
        elif chance == 3:
            fake = self._fake(core, block.view, max(0, block.height - 1), block.parent)
            block = replace(block, justify=fake)
        elif chance == 4 and block.timeouts is not None:
            block = replace(block, timeouts=self._fake_timeouts(core, block.view - 1))
        elif chance == 5:
            change = wire.Change(core.era.members[:-1] or core.era.members, ())
            if self.rng.random() < 0.5:
                change = replace(change, approvals=self._fake(core, 0, 0, bytes(32)).votes)
            block = replace(block, change=change)
        elif chance == 6:
            block = replace(block, height=block.height + self.rng.choice((-1, 1, 2)) or 1)
        elif chance == 7:
            block = replace(block, position=block.position + self.rng.choice((-1, 1)) or 1)
        elif chance in (8, 9):
            block = self._from_further_back(core, block)
        elif chance == 10 and self.headers:
            header = self.rng.choice(self.headers)
            fake = self._fake(core, header.view, header.height, header.digest)
            block = replace(block, justify=fake, parent=header.digest)
        elif chance == 11:
            block = replace(block, justify=core.era.root_certificate())
        else:
            block = replace(block, requests=tuple(self.requests))
        return block

    def _from_further_back(self, core: Any, block: wire.Block) -> wire.Block:
        """It builds on what is older than the newest certified block, and says why not so."""
        below = core.chain.get(block.parent)
        if below is None:
            return replace(block, justify=core.era.root_certificate(), parent=core.era.root)
        justify = below.block.justify
        return replace(
            block,
            parent=justify.digest,
            justify=justify,
            position=max(1, block.position - self.rng.choice((0, 1, 2))),
        )

    def _signed_block(self, core: Any, block: wire.Block) -> bytes:
        raw = wire.encode(block)
        at = (block.era, block.view, block.height)
        signature = self.signer.sign(wire.to_propose(core.cluster, *at, wire.sha256(raw)))
        return wire.encode(wire.Proposal(block.era, raw, signature))

    def _timeout(self, core: Any, message: wire.Timeout) -> bytes:
        high = message.high
        choice = self.rng.randrange(3)
        if choice == 0:
            high = core.era.root_certificate()
        elif choice == 1:
            high = self._fake(core, message.view, high.height + 1, bytes(32))
        statement = wire.to_time_out(core.cluster, message.era, message.view, high.rank)
        if choice == 2:  # it signed another rank than that of the certificate it shows
            statement = wire.to_time_out(core.cluster, message.era, message.view, (0, 0))
        return wire.encode(replace(message, high=high, signature=self.signer.sign(statement)))

    def _other_blocks(self, core: Any, message: wire.Blocks) -> bytes:
        """Blocks of its own making in place of those asked for, with a certificate that is none."""
        raw, signature = message.blocks[-1]
        block = replace(wire.decode_block(raw), requests=tuple(self.requests)[:2])
        raw = wire.encode(block)
        fake = self._fake(core, block.view, block.height, wire.sha256(raw))
        rows = (*message.blocks[:-1], (raw, signature))
        return wire.encode(replace(message, blocks=rows, certificate=fake))

    def _vote_for_everything(self, core: Any) -> list[Any]:
        made: list[Any] = []
        for header in list(self.headers)[-6:]:
            at = (header.era, header.view, header.height)
            signature = self.signer.sign(wire.to_vote(core.cluster, *at, header.digest))
            made.append(wire.Vote(*at, header.digest, signature))
        return made

    def _certificate(self, core: Any) -> list[Any]:
        era, high = core.era.number, core.high
        if self.headers and self.rng.random() < 0.7:
            header = self.rng.choice(self.headers)
            fake = self._fake(core, header.view, header.height, header.digest)
        else:
            fake = self._fake(core, high.view, high.height + 1, self.rng.randbytes(32))
        return [wire.Certified(era, fake)]

    def _view_over(self, core: Any) -> list[Any]:
        view = core.view + self.rng.choice((0, 1, 5))
        return [wire.Advance(core.era.number, self._fake_timeouts(core, view), core.high)]

    def _forged_request(self, core: Any) -> list[Any]:
        others = [m.name for m in core.era.members if m.name != self.name] or [self.name]
        victim = self.rng.choice(others)
        command = f"{victim}:forged {self.rng.random()}".encode()
        unsigned = wire.Request(victim, core.ledger.epoch_of(victim) or 1, 1, False, command, b"")
        number = self.rng.randint(1, 4)
        unsigned = replace(unsigned, number=number)
        signed = replace(unsigned, signature=self.signer.sign(wire.to_ask(core.cluster, unsigned)))
        return [wire.Ask(core.era.number, signed)]

    def _double_request(self, core: Any) -> list[Any]:
        """Several requests of its own with one number, or with numbers far ahead."""
        made: list[Any] = []
        number = self.rng.choice((1, 2, 200, 10_000))
        for _ in range(2):
            command = f"{self.name}:double {self.rng.random()}".encode()
            epoch = self.rng.choice((core.epoch, core.epoch + 1))
            unsigned = wire.Request(self.name, epoch, number, False, command, b"")
            signature = self.signer.sign(wire.to_ask(core.cluster, unsigned))
            made.append(wire.Ask(core.era.number, replace(unsigned, signature=signature)))
        return made

    def _far_timeout(self, core: Any) -> list[Any]:
        era, view = core.era.number, core.view + self.rng.choice((0, 1, 1000))
        signature = self.signer.sign(wire.to_time_out(core.cluster, era, view, core.high.rank))
        return [wire.Timeout(era, view, core.high, None, signature)]

    def _approval(self, core: Any) -> list[Any]:
        members = tuple(m for m in core.era.members if m.name == self.name) or core.era.members
        signature = self.signer.sign(wire.to_approve(core.cluster, core.era.number, members))
        return [wire.Approval(core.era.number, members, signature)]

    def _status(self, core: Any) -> list[Any]:
        position = self.rng.choice((0, core.chain.position + 100))
        era = core.era.number + self.rng.choice((0, 0, 1))
        return [wire.Status(era, 0, core.view, position, (core.view, 50))]

    def _state(self, core: Any) -> list[Any]:
        """A state of its own making, signed by itself in the place of each."""
        if not core.chain.committed:
            return []
        anchor = core.chain.committed[-1]
        index = core.ledger.index + 2
        ledger = type(core.ledger).decode(core.ledger.encode())
        ledger.index = index
        header = wire.StateHeader(
            core.era.number, index, anchor.digest, anchor.block.position, ledger.encode(), ()
        )
        raw = wire.encode(header)
        mine = self.signer.sign(
            wire.to_check(core.cluster, core.era.number, index, wire.sha256(raw))
        )
        votes = tuple((place, mine) for place in range(core.era.quorum))
        return [wire.StateHead(core.era.number, raw, votes, anchor.raw, anchor.signature)]

    def _checkpoint(self, core: Any) -> list[Any]:
        era, index = core.era.number, max(1, core.ledger.index + self.rng.choice((-1, 0, 1, 3)))
        digest = self.rng.randbytes(32)
        signature = self.signer.sign(wire.to_check(core.cluster, era, index, digest))
        return [wire.Checkpoint(era, index, digest, signature)]

    def _closing(self, core: Any) -> list[Any]:
        """An end of the era by which it alone is left."""
        members = tuple(m for m in core.era.members if m.name == self.name)
        if not members or not core.chain.committed:
            return []
        era = core.era.number
        first = replace(core.chain.committed[-1].block, change=wire.Change(members, ()))
        raw = wire.encode(first)
        inner = self._fake(core, first.view, first.height, wire.sha256(raw))
        last = replace(
            first, parent=inner.digest, height=first.height + 1, position=first.position + 1,
            justify=inner, change=None, requests=(), timeouts=None,
        )  # fmt: skip
        end = wire.encode(last)
        fake = self._fake(core, last.view, last.height, wire.sha256(end))
        return [wire.Closing(era, ((raw, b""), (end, b"")), fake)]

    def _garbage(self, core: Any) -> list[Any]:
        return [self.rng.randbytes(self.rng.randrange(40)), list(range(5)), {}]

    def _flood(self, core: Any) -> list[Any]:
        """Requests beyond what is its share."""
        made: list[Any] = []
        for number in range(1, 12):
            command = f"{self.name}:flood {number}".encode() + bytes(700)
            unsigned = wire.Request(self.name, core.epoch + 1, number, False, command, b"")
            signature = self.signer.sign(wire.to_ask(core.cluster, unsigned))
            made.append(wire.Ask(core.era.number, replace(unsigned, signature=signature)))
        return made

    def _own_blocks(self, core: Any) -> list[Any]:
        """A block on top of what is committed, with a certificate that is none."""
        chain, era = core.chain, core.era
        if chain.head == era.root:
            return []
        newest = chain.committed[-1].block
        block = wire.Block(
            era.number, core.view + 1, 1, newest.position + 1, chain.head,
            era.root_certificate(), None, tuple(self.requests)[:2], None,
        )  # fmt: skip
        raw = wire.encode(block)
        fake = self._fake(core, block.view, 1, wire.sha256(raw))
        return [wire.Blocks(era.number, ((raw, b""),), fake)]

    def _early_blocks(self, core: Any) -> list[Any]:
        """Blocks of its view that build on nothing that anybody has."""
        if core.era.leader(core.view) != self.name:
            return []
        made: list[Any] = []
        for height in range(2, 40):
            block = wire.Block(
                core.era.number, core.view, height, 7, bytes(32), core.high, None, (), None
            )
            made.append(wire.decode(self._signed_block(core, block)))
        return made
