"""What other plugins may learn from gossip, and how they come to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from novacron import NodeFacts, hookspec

if TYPE_CHECKING:
    from novacron_consensus_gossip._driver import GossipMember
    from novacron_consensus_gossip._values import Member


@hookspec
def novacron_on_gossip_start(gossip: GossipMember) -> None:
    """Learn that this node gossips, and get what is needed to broadcast and to look around.

    When: once in the life of a node process, when it listens; nobody else may be known yet.
    Plugins asked: all.
    Return: ignored. ``gossip`` has ``broadcast``, ``set_tags`` and ``core.members``, for use on the
        event loop.
    On error: logged with the plugin's name; the node goes on.
    Runs on: the event loop; must not block.
    """


@hookspec
def novacron_on_member_change(member: Member, state: str, node: NodeFacts) -> None:
    """Learn that a member came, is suspected, died, left, or told something new about itself.

    When: each time this node comes to hold something else of a member; also of itself.
    Plugins asked: all.
    Return: ignored. ``state`` is ``alive``, ``suspect``, ``dead``, ``left`` or ``forgotten``.
    On error: logged with the plugin's name; gossip goes on.
    Runs on: the event loop; must not block.
    """


@hookspec
def novacron_on_broadcast(origin: str, topic: str, body: bytes, node: NodeFacts) -> None:
    """Learn what a member broadcast to all others.

    When: once for each broadcast in the life of a node process, in no promised order; a node that
        was away for longer than broadcasts are kept (two minutes) does not get it.
    Plugins asked: all; each looks for its own topics.
    Return: ignored. ``origin`` is what the sender says it is: every holder of the cluster's key
        could have sent it.
    On error: logged with the plugin's name; gossip goes on.
    Runs on: the event loop; must not block.
    """
