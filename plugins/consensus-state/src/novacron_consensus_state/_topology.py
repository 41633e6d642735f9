"""Regions, and who hands what on to whom.

An event crosses the wide area once per other region: its maker sends it to its own region and to
one relay of each other region, and the relay hands it on to its neighbours. Who the relay is, each
node decides for itself: the first by name of those that are heard. If two nodes decide differently
for a moment, an event may arrive twice, or has to be asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping


class Topology:
    """The members as one of them sees them.

    Args:
        me: Its name.
        members: Region by name; ``me`` among them.
    """

    def __init__(self, me: str, members: Mapping[str, str]) -> None:
        if me not in members:
            raise ValueError(f"{me!r} is not among the members {', '.join(sorted(members))}")
        self.me = me
        self.members = dict(sorted(members.items()))
        self.region = members[me]
        self.regions = tuple(sorted(set(members.values())))
        self.others = tuple(name for name in self.members if name != me)
        self.neighbours = tuple(n for n in self.others if self.members[n] == self.region)
        self.majority = len(self.members) // 2 + 1

    def relay(self, region: str, heard: Callable[[str], bool]) -> str:
        """The first member of a region that is heard; the first of all if none is."""
        names = [name for name, its in self.members.items() if its == region]
        return next((n for n in names if n == self.me or heard(n)), names[0])

    def relays(self, heard: Callable[[str], bool]) -> list[str]:
        """The relays of the other regions."""
        return [self.relay(region, heard) for region in self.regions if region != self.region]

    def on(self, maker: str, heard: Callable[[str], bool]) -> list[str]:
        """Whom this node sends an event to, that ``maker`` has made."""
        if maker == self.me:
            return [*self.neighbours, *self.relays(heard)]
        from_here = self.members.get(maker) == self.region
        if not from_here and self.relay(self.region, heard) == self.me:
            return list(self.neighbours)
        return []

    def asked(self, heard: Callable[[str], bool]) -> list[str]:
        """Whom this node probes: its region, and the other regions' relays."""
        return [*self.neighbours, *self.relays(heard)]
