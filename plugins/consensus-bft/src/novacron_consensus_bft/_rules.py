"""What makes a block sound: the rules that a member checks before it holds or votes for one.

Within a view blocks form one chain, of which several may be under way at once; a view's first block
builds on the highest certified block that a quorum knew when it gave the view before up. With
"vote once per place, and only on top of what one has voted for" this gives: whatever is certified
at or above a committed block builds on it. ADR 013 has the proof.
"""

from __future__ import annotations

from novacron_consensus_bft._chain import Chain, Held
from novacron_consensus_bft._era import Era
from novacron_consensus_bft._wire import Block, Rank


def fault(block: Block, era: Era, chain: Chain, window: int) -> str:
    """Why a block whose parent is here is refused; "" if it is sound.

    Args:
        window: How many heights a block may be above the newest certified one of its view.
    """
    parent = chain.get(block.parent)
    wrong = _place_fault(block, era, chain, parent) or _justify_fault(block, chain, window)
    if wrong:
        return wrong
    if not era.certifies(block.justify):
        return "its certificate is not sound"
    if block.timeouts is not None and not era.gave_up(block.timeouts):
        return "its timeout certificate is not sound"
    if block.change is not None and not era.approves(block.change):
        return "its change of members is not approved by a quorum"
    for request in block.requests:
        if not era.asked(request):
            return f"{request.origin!r:.80} has not asked for what it contains"
    return ""


def _place_fault(block: Block, era: Era, chain: Chain, parent: Held | None) -> str:
    """Whether the block is at the place that its parent gives it."""
    if block.era != era.number or block.height < 1:
        return "it is of another era, or has no height"
    at = parent.block.position if parent is not None else chain.position
    if block.position != at + 1:
        return "its position does not follow its parent's"
    if block.height > 1:
        if parent is None or parent.block.rank != (block.view, block.height - 1):
            return "its parent is not the block before it in its view"
        if parent.block.era != block.era or block.timeouts is not None:
            return "only a view's first block may say why the view began"
    return ""


def _justify_fault(block: Block, chain: Chain, window: int) -> str:
    justify = block.justify
    if block.height == 1:
        if block.parent != justify.digest:
            return "a view's first block builds on the block that its certificate is for"
        return _first_fault(block, justify.rank)
    parent = chain.get(block.parent)
    if parent is None:
        return "its parent is not here"
    if justify == parent.block.justify:
        since = justify.height if justify.view == block.view else 0
    elif justify.view == block.view and justify.rank > parent.block.justify.rank:
        if chain.ancestor(parent, justify.rank) != justify.digest:
            return "its certificate is for a block that it does not build on"
        since = justify.height
    else:
        return "its certificate is lower than its parent's"
    if block.height > since + window:
        return "too many blocks of its view are not certified"
    return ""


def _first_fault(block: Block, justify: Rank) -> str:
    if block.view == 0:
        if block.timeouts is not None or justify != (0, 0):
            return "view 0 begins at the era's root"
        return ""
    timeouts = block.timeouts
    if timeouts is None or timeouts.view + 1 != block.view:
        return "it does not say why the view before is over"
    if justify < timeouts.highest:
        return "a quorum knew a higher certificate than the one it builds on"
    return ""
