"""What a node believes of the others, and what it does when others doubt it.

A claim wins by its incarnation, then by its state (alive < suspected < dead < left). This order is
total and all nodes keep the highest claim that they heard, so they come to agree whatever the order
in which claims arrive. Only the member itself raises its incarnation: that is how it refutes.
"""

from __future__ import annotations

from novacron_consensus_gossip._desk import Desk
from novacron_consensus_gossip._effects import Changed, Save
from novacron_consensus_gossip._health import Health, Suspicion
from novacron_consensus_gossip._values import Member, State
from novacron_consensus_gossip._wire import (
    INCARNATION_MAX,
    Alive,
    Claim,
    Doubt,
    Saved,
    encode_saved,
)

# Who has been outbid so often by a process that uses its name is not talking to its own past.
DUELS_MAX = 3


class Membership:
    """See the module.

    Attributes:
        incarnation: The node's own.
        life: A number that no other process of its name has.
        suspicions: By member.
    """

    def __init__(self, desk: Desk, health: Health, *, incarnation: int, life: int) -> None:
        self._desk = desk
        self._health = health
        self.incarnation = incarnation
        self.life = life
        self.tags = dict(desk.me.tags)
        self.suspicions: dict[str, Suspicion] = {}
        self._duels = 0

    def me(self) -> Alive:
        """What the node says of itself."""
        me = self._desk.me
        return Alive(me.name, self.incarnation, me.address, self.life, self.tags)

    def announce(self) -> None:
        """Say it, from now on at the present incarnation, which is kept for the next life."""
        desk = self._desk
        me = desk.me
        desk.do(Save((encode_saved(self._saved()),), replaces=True))
        desk.hold(
            Member(
                me.name, me.address, self.incarnation, State.ALIVE, self.life, self.tags, desk.now
            )
        )
        desk.tell(self.me())

    def _saved(self) -> Saved:
        desk = self._desk
        some = desk.members.pick(desk.rng, 32, desk.is_other)
        return Saved(desk.me.name, self.incarnation, tuple(one.address for one in some))

    def raise_incarnation(self, above: int) -> None:
        """Outrank a claim about this node."""
        if above >= INCARNATION_MAX:
            self._desk.note("incarnation", f"somebody claims incarnation {above}; it is ignored")
            return
        self.incarnation = above + 1
        self.announce()

    # Claims of others.

    def hear(self, claim: Claim, *, compared: bool = False) -> None:
        """Take notice of a claim.

        Args:
            compared: It came by comparing tables, not as news: who is dead there may have refuted
                long ago, so that it is suspected first and gets its time.
        """
        if type(claim) is Alive:
            if claim.name == self._desk.me.name:
                self._hear_of_me(claim)
            else:
                self._hear_alive(claim)
        elif type(claim) is Doubt:
            if claim.name == self._desk.me.name:
                self._hear_doubt_of_me(claim)
            else:
                self._hear_doubt(claim, compared)

    def _hear_of_me(self, claim: Alive) -> None:
        if claim.life == self.life or claim.incarnation < self.incarnation or self._desk.leaving:
            return
        # An earlier life of this node, or somebody who uses its name. The past does not fight back.
        if claim.incarnation > self.incarnation:
            self._duels += 1
        if self._duels > DUELS_MAX and claim.life > self.life:
            self._desk.closed = True
            self._desk.note(
                "name-taken",
                f"another node, at {claim.address}, is also called {claim.name!r}; this one takes "
                "no part any more: give it a name of its own and start it again",
            )
            return
        self.raise_incarnation(claim.incarnation)

    def _hear_doubt_of_me(self, claim: Doubt) -> None:
        if claim.incarnation < self.incarnation or self._desk.leaving:
            return
        self._health.change(1)  # perhaps it was right: something here is slow
        self._desk.counts["refuted"] += 1
        self.raise_incarnation(claim.incarnation)

    def _hear_alive(self, claim: Alive) -> None:
        desk = self._desk
        known = desk.members.get(claim.name)
        if known is None:
            if len(desk.members) >= desk.timing.members_max:
                desk.counts["members-refused"] += 1
                return
        elif claim.incarnation <= known.incarnation:
            return
        elif known.address != claim.address and known.state <= State.SUSPECT:
            desk.note("moved", f"{claim.name} is at {claim.address} now, not at {known.address}")
        self._clear(claim.name)
        desk.timers.cancel("forget", claim.name)
        desk.hold(
            Member(
                claim.name,
                claim.address,
                claim.incarnation,
                State.ALIVE,
                claim.life,
                claim.tags,
                desk.now,
            )
        )
        desk.tell(claim)

    def _hear_doubt(self, claim: Doubt, compared: bool) -> None:
        known = self._desk.members.get(claim.name)
        if known is None or claim.incarnation < known.incarnation:
            return
        state = State(claim.state)
        if state is State.LEFT and claim.by != claim.name:
            state = State.DEAD  # only it can know
        if known.state >= State.DEAD:
            if (claim.incarnation, state) > (known.incarnation, known.state):
                self._believe(known, claim, state)
        elif state is State.SUSPECT or (state is State.DEAD and compared):
            self._suspect(known, claim)
        else:
            self._believe(known, claim, state)

    # Suspicion.

    def suspect(self, member: Member) -> None:
        """It did not answer this node."""
        self.hear(Doubt(member.name, member.incarnation, State.SUSPECT, self._desk.me.name))

    def _suspect(self, known: Member, claim: Doubt) -> None:
        desk = self._desk
        name = claim.name
        running = self.suspicions.get(name)
        if running is not None and running.incarnation >= claim.incarnation:
            if not running.confirm(claim.by):
                return
        else:
            running = Suspicion(
                desk.timing, claim.incarnation, claim.by, desk.members.live, desk.now
            )
            self.suspicions[name] = running
            member = known.in_state(State.SUSPECT, claim.incarnation, desk.now)
            desk.hold(member)
            desk.suspected.append(member)
        desk.timers.set("suspicion", name, max(desk.now, running.ends_ms))
        look = running.look_ms
        if look is None:
            desk.timers.cancel("look", name)
        else:
            desk.timers.set("look", name, max(desk.now, look))
        desk.tell(Doubt(name, claim.incarnation, State.SUSPECT, claim.by))

    def time_is_up(self, name: str) -> None:
        """A suspected member did not refute."""
        running = self.suspicions.get(name)
        known = self._desk.members.get(name)
        if running is not None and known is not None:
            me = self._desk.me.name
            claim = Doubt(name, running.incarnation, State.DEAD, me)
            self._believe(known, claim, State.DEAD)

    def put_off(self, by_ms: int) -> None:
        """This node was away: what it did not hear meanwhile says nothing about others."""
        for running in self.suspicions.values():
            running.began_ms += by_ms
        self._desk.timers.shift("suspicion", by_ms)
        self._desk.timers.shift("look", by_ms)

    def _clear(self, name: str) -> None:
        if self.suspicions.pop(name, None) is not None:
            self._desk.timers.cancel("suspicion", name)
            self._desk.timers.cancel("look", name)

    # The dead.

    def _believe(self, known: Member, claim: Doubt, state: State) -> None:
        desk = self._desk
        self._clear(claim.name)
        desk.hold(known.in_state(state, claim.incarnation, desk.now))
        desk.timers.set("forget", claim.name, desk.now + desk.timing.forget_ms)
        desk.tell(Doubt(claim.name, claim.incarnation, state, claim.by))

    def forget(self, name: str) -> None:
        """It has been gone for long enough."""
        desk = self._desk
        member = desk.members.get(name)
        if member is not None and member.state >= State.DEAD:
            desk.members.remove(name)
            desk.news.drop(name)
            desk.changed.append((member, None))
            desk.do(Changed(member, None))

    # Leaving.

    def leave(self) -> Doubt:
        """Say goodbye; from now on nothing is refuted. Returns what is to be told."""
        desk = self._desk
        me = desk.me.name
        desk.leaving = True
        claim = Doubt(me, self.incarnation, State.LEFT, me)
        known = desk.members.get(me)
        if known is not None:
            desk.hold(known.in_state(State.LEFT, self.incarnation, desk.now))
        desk.tell(claim)
        return claim

    def claims(self, members: list[Member]) -> list[Claim]:
        """What this node holds of some members, as it is told to others."""
        told: list[Claim] = []
        for one in members:
            if one.state <= State.SUSPECT:
                told.append(Alive(one.name, one.incarnation, one.address, one.life, dict(one.tags)))
            if one.state is not State.ALIVE:
                # Passing a suspicion on is no confirmation: who came to it first stays its accuser,
                # and nobody is named as one where that is not known.
                running = self.suspicions.get(one.name)
                by = one.name if running is None else running.first
                told.append(Doubt(one.name, one.incarnation, one.state, by))
        return told
