"""Who takes part: voters, learners, and two sets of voters at once while they change.

A change of voters goes through a joint configuration (Ongaro and Ousterhout 2014, section 6): from
the moment a member has the joint entry in its log, whatever needs a majority needs one of the new
voters and one of the outgoing ones. So no two majorities can ever decide without meeting.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import msgspec
from novacron_agreement import NAME_CHARS_MAX

MEMBERS_MAX: Final = 64
ADDRESS_CHARS_MAX: Final = 255
CONFIGURATION_BYTES_MAX: Final = 32 << 10


class ConfigurationError(ValueError):
    """A change of members that makes no sense; nothing was changed."""


class Configuration(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who takes part.

    Attributes:
        voters: Whose majority decides.
        outgoing: While a change is under way, the voters before it, whose majority is needed too.
        learners: They receive everything and decide nothing.
        addresses: Of all of them, where they are known.
        version: 0 for the one that a cluster begins with, one more with each change.
    """

    voters: tuple[str, ...] = ()
    outgoing: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()
    addresses: dict[str, str] = {}
    version: int = 0

    @classmethod
    def of(cls, voters: Mapping[str, str]) -> Configuration:
        """The configuration that a cluster begins with: voters and their addresses.

        Raises: ConfigurationError if there are too many, or names or addresses are too long.
        """
        made = cls(tuple(sorted(voters)), addresses=dict(sorted(voters.items())))
        made._require_sound()
        return made

    @classmethod
    def decode(cls, data: bytes) -> Configuration:
        """Raises: ConfigurationError for anything but a sound configuration."""
        try:
            made = _decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"no configuration: {error}") from None
        made._require_sound()
        return made

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @property
    def joint(self) -> bool:
        return bool(self.outgoing)

    @property
    def deciders(self) -> frozenset[str]:
        """Everybody whose vote counts."""
        return frozenset(self.voters + self.outgoing)

    @property
    def members(self) -> frozenset[str]:
        return frozenset(self.voters + self.outgoing + self.learners)

    def reached(self, value: Callable[[str], int]) -> int:
        """The largest number that the values of a majority reach; -1 if nobody votes."""
        if not self.voters:
            return -1
        return min(_median(group, value) for group in (self.voters, self.outgoing) if group)

    def decided(self, agreed: Collection[str]) -> bool:
        """Whether these are a majority."""
        return self.reached(lambda name: int(name in agreed)) == 1

    def changed(
        self,
        voters: Mapping[str, str],
        learners: Mapping[str, str],
        remove: Iterable[str],
    ) -> Configuration:
        """The next configuration: joint if the voters change, else final at once.

        Args:
            voters: Who is to vote from now on, with addresses; learners may be among them.
            learners: Who is to learn from now on, with addresses; voters may be among them.
            remove: Who is to leave.

        Raises: ConfigurationError if that makes no sense.
        """
        leaving = frozenset(remove)
        named = [*voters, *learners, *leaving]
        if self.joint:
            raise ConfigurationError("another change of members is under way; wait until it ended")
        if len(set(named)) != len(named):
            raise ConfigurationError("a member is named twice in one change; name it once")
        if strangers := sorted(leaving - self.members):
            raise ConfigurationError(f"{strangers[0]!r} is no member; look at the list of members")
        new_voters = (set(self.voters) | set(voters)) - set(learners) - leaving
        new_learners = (set(self.learners) | set(learners)) - set(voters) - leaving
        if not new_voters:
            raise ConfigurationError("nobody would be left to vote; keep at least one voter")
        known = self.addresses | dict((*voters.items(), *learners.items()))
        same = new_voters == set(self.voters)
        outgoing = () if same else self.voters
        here = new_voters | new_learners | set(outgoing)
        made = Configuration(
            tuple(sorted(new_voters)),
            outgoing,
            tuple(sorted(new_learners)),
            {name: at for name, at in sorted(known.items()) if name in here},
            self.version + 1,
        )
        made._require_sound()
        return made

    def settled(self) -> Configuration:
        """The configuration that ends a joint one."""
        here = set(self.voters + self.learners)
        addresses = {name: at for name, at in self.addresses.items() if name in here}
        return Configuration(self.voters, (), self.learners, addresses, self.version + 1)

    def sound(self) -> bool:
        try:
            self._require_sound()
        except ConfigurationError:
            return False
        return True

    def _require_sound(self) -> None:
        if len(self.members) > MEMBERS_MAX:
            raise ConfigurationError(
                f"{len(self.members)} members, and at most {MEMBERS_MAX} can take part"
            )
        if set(self.voters) & set(self.learners):
            raise ConfigurationError("a member cannot vote and learn at once")
        if not self.voters and (self.outgoing or self.learners):
            raise ConfigurationError("nobody votes")
        for group in (self.voters, self.outgoing, self.learners):
            if len(set(group)) != len(group):
                raise ConfigurationError("a member is named twice")
        for name in self.members:
            if not 0 < len(name) <= NAME_CHARS_MAX:
                raise ConfigurationError(f"a name has 1 to {NAME_CHARS_MAX} characters: {name!r}")
        if self.version < 0 or len(self.encode()) > CONFIGURATION_BYTES_MAX:
            raise ConfigurationError(
                f"names and addresses together take more than {CONFIGURATION_BYTES_MAX} bytes"
            )
        for name, address in self.addresses.items():
            if name not in self.members or len(address) > ADDRESS_CHARS_MAX:
                raise ConfigurationError(f"the address of {name[:40]!r} is too long or nobody's")


_decoder: Final = msgspec.msgpack.Decoder(Configuration)


def _median(group: tuple[str, ...], value: Callable[[str], int]) -> int:
    values = sorted((value(name) for name in group), reverse=True)
    return values[len(group) // 2]
