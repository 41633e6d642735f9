"""What the kernel asks, answered for the node of this process."""

from __future__ import annotations

from attrs import define
from novacron import Identity, MigrationPlan, NodeFacts, Refusal

from novacron_security_attestation._admitted import (
    Admitted,
    refuse_migration,
    refuse_peer,
    utc_now,
)
from novacron_security_attestation._policy import SECTION, AttestationSettings


def settings_of(node: NodeFacts) -> AttestationSettings:
    settings = node.settings.get(SECTION, AttestationSettings())
    if not isinstance(settings, AttestationSettings):
        # Raising refuses; a policy that cannot be read must not be one that allows.
        raise TypeError(f"[{SECTION}] holds {type(settings).__name__}, not AttestationSettings")
    return settings


@define
class Guard:
    """Answers `novacron_check_peer`, which does not say of which node it is a peer.

    A process runs one node; where tests run several, each one's policy must agree.
    """

    nodes: dict[str, NodeFacts]

    def peer(self, peer: Identity) -> Refusal | None:
        for node in list(self.nodes.values()):
            found = refuse_peer(peer, settings_of(node), Admitted(node.state_dir), utc_now())
            if found is not None and peer.node != node.name:
                return found
        return None


def migration(plan: MigrationPlan, node: NodeFacts) -> Refusal | None:
    return refuse_migration(plan, settings_of(node), Admitted(node.state_dir), utc_now())
