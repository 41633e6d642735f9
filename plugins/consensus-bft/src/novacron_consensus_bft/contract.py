"""What this plugin is held to, on a cluster of one; tests and ``novacron plugins check`` run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from novacron import NodeFacts
from novacron_testkit.contracts import ConsensusContract

from novacron_consensus_bft._keys import as_text, load_key, make_key
from novacron_consensus_bft._provider import BftRegister
from novacron_consensus_bft._toml import BftSection


class BftContract(ConsensusContract):
    provider = BftRegister

    def make(self, tmp_path: Path, name: str = "a") -> Any:
        state = tmp_path / name
        key = state / "consensus-bft" / "key"
        signer = load_key(key) if key.exists() else make_key(key, "ed25519")
        section = BftSection(
            members={name: as_text(signer.public_key)},
            writers="member",  # the laws let one node write for all
            timeout_s=3,
            checkpoint_every=8,
        )
        return BftRegister(section, NodeFacts(name=name, state_dir=state))
