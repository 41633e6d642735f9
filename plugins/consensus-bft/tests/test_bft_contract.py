"""The laws that every provider of this domain keeps, on a cluster of one."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from novacron_agreement.logfile import LogFile
from novacron_consensus_bft import BftError
from novacron_consensus_bft.contract import BftContract


class TestBftRegister(BftContract):
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
