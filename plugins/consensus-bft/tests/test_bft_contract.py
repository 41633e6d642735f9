"""The laws that every provider of this domain keeps, on a cluster of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from novacron import NodeFacts
from novacron_consensus_bft import BftRegister, BftSection
from novacron_consensus_bft._keys import as_text, load_key, make_key
from novacron_testkit.contracts import ConsensusContract


class TestBftRegister(ConsensusContract):
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

    @pytest.mark.slow  # some 2,000 commands, each with several syncs
    def test_any_sequence_of_calls_agrees_with_the_model(self, tmp_path: Path) -> None:
        super().test_any_sequence_of_calls_agrees_with_the_model(tmp_path)
