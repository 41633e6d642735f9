"""The laws that every provider of this domain keeps, on a cluster of one."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from novacron import NodeFacts
from novacron_agreement.logfile import LogFile
from novacron_consensus_bft import BftError, BftRegister, BftSection
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


def test_a_member_that_wrote_nothing_yet_may_begin_again_and_one_that_did_may_not(
    tmp_path: Path,
) -> None:
    contract = TestBftRegister()
    log = tmp_path / "a" / "consensus-bft" / "log"

    async def read() -> None:
        register = contract.make(tmp_path)
        try:
            assert await register.read("m1") is None
        finally:
            await register.close()

    LogFile(log).close()  # as if it had ended right here, or the disk had been full
    asyncio.run(read())
    asyncio.run(read())
    shutil.rmtree(log)
    with pytest.raises(BftError, match="was used"):
        asyncio.run(read())
