"""The laws of a register of ownership."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from attrs import evolve
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from novacron import Fenced, NovacronError, Ownership, OwnershipRegister

from novacron_testkit.contracts.support import Contract, full_disk, in_doomed_process

T = TypeVar("T")

FIRST = Ownership(machine="m1", owner="alpha", epoch=1)
SECOND = Ownership(machine="m1", owner="beta", epoch=2, session="s-1")


_EXAMPLES = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class ConsensusContract(Contract):
    """Subclass it, set ``provider``."""

    def _with(
        self, tmp_path: Path, work: Callable[[OwnershipRegister], Coroutine[Any, Any, T]]
    ) -> T:
        """Do something with the register of node ``a``, opened for it and closed after it."""

        async def run() -> T:
            register: OwnershipRegister = self.make(tmp_path)
            try:
                return await asyncio.wait_for(work(register), 60)
            finally:
                await register.close()

        return asyncio.run(run())

    def test_a_machine_without_a_record_reads_as_none(self, tmp_path: Path) -> None:
        async def work(register: OwnershipRegister) -> None:
            assert await register.read("m1") is None
            assert list(await register.owned_by("alpha")) == []

        self._with(tmp_path, work)

    def test_what_was_written_is_read(self, tmp_path: Path) -> None:
        async def work(register: OwnershipRegister) -> None:
            await register.advance(FIRST, expected_epoch=0)
            assert await register.read("m1") == FIRST
            await register.advance(SECOND, expected_epoch=1)
            assert await register.read("m1") == SECOND
            await register.advance(evolve(FIRST, epoch=70), expected_epoch=None)
            assert await register.read("m1") == evolve(FIRST, epoch=70)

        self._with(tmp_path, work)

    def test_the_expected_epoch_must_hold(self, tmp_path: Path) -> None:
        async def work(register: OwnershipRegister) -> None:
            await self._refused(register, SECOND, expected_epoch=1, holds=None)
            await register.advance(FIRST, expected_epoch=0)
            ahead = evolve(SECOND, epoch=9)
            for wrong in (0, 2, 8, 9):
                await self._refused(register, ahead, expected_epoch=wrong, holds=FIRST)

        self._with(tmp_path, work)

    def test_an_epoch_that_is_not_higher_is_fenced(self, tmp_path: Path) -> None:
        async def work(register: OwnershipRegister) -> None:
            await register.advance(evolve(FIRST, epoch=5), expected_epoch=0)
            held = evolve(FIRST, epoch=5)
            for epoch in (1, 4, 5):
                stale = evolve(SECOND, epoch=epoch)
                for expected in (None, 5, epoch):
                    await self._refused(register, stale, expected_epoch=expected, holds=held)

        self._with(tmp_path, work)

    def test_writing_what_holds_already_succeeds_whatever_was_expected(
        self, tmp_path: Path
    ) -> None:
        async def work(register: OwnershipRegister) -> None:
            await register.advance(FIRST, expected_epoch=0)
            await register.advance(SECOND, expected_epoch=1)
            for expected in (0, 1, 2, None):
                await register.advance(SECOND, expected_epoch=expected)
            assert await register.read("m1") == SECOND

        self._with(tmp_path, work)

    def test_repeating_a_record_that_was_overtaken_is_fenced(self, tmp_path: Path) -> None:
        async def work(register: OwnershipRegister) -> None:
            await register.advance(FIRST, expected_epoch=0)
            await register.advance(SECOND, expected_epoch=1)
            for expected in (0, 1, 2, None):
                await self._refused(register, FIRST, expected_epoch=expected, holds=SECOND)

        self._with(tmp_path, work)

    def test_the_same_epoch_with_another_owner_or_session_is_fenced(self, tmp_path: Path) -> None:
        async def work(register: OwnershipRegister) -> None:
            await register.advance(FIRST, expected_epoch=0)
            for other in (evolve(FIRST, owner="gamma"), evolve(FIRST, session="s-9")):
                for expected in (0, 1, None):
                    await self._refused(register, other, expected_epoch=expected, holds=FIRST)

        self._with(tmp_path, work)

    def test_of_many_that_advance_at_once_exactly_one_wins(self, tmp_path: Path) -> None:
        async def work(register: OwnershipRegister) -> None:
            for epoch in range(1, 6):
                rivals = [
                    Ownership(machine="m1", owner=f"node-{n}", epoch=epoch, session=f"s-{n}")
                    for n in range(12)
                ]
                results = await asyncio.gather(
                    *(register.advance(rival, expected_epoch=epoch - 1) for rival in rivals),
                    return_exceptions=True,
                )
                winners = [r for r, e in zip(rivals, results, strict=True) if e is None]
                assert len(winners) == 1, f"{len(winners)} rivals own epoch {epoch}"
                assert all(e is None or isinstance(e, Fenced) for e in results)
                assert await register.read("m1") == winners[0]

        self._with(tmp_path, work)

    def test_machines_do_not_touch_each_other(self, tmp_path: Path) -> None:
        async def work(register: OwnershipRegister) -> None:
            other = Ownership(machine="m2", owner="alpha", epoch=40)
            await register.advance(FIRST, expected_epoch=0)
            await register.advance(other, expected_epoch=0)
            await register.advance(SECOND, expected_epoch=1)
            assert await register.read("m2") == other
            await register.forget("m1", epoch=2)
            assert await register.read("m2") == other

        self._with(tmp_path, work)

    def test_owned_by_names_all_machines_of_a_node_and_no_others_by_name(
        self, tmp_path: Path
    ) -> None:
        async def work(register: OwnershipRegister) -> None:
            names = ["zeta", "m10", "m2", "a", "m1"]
            records = [Ownership(machine=name, owner="alpha", epoch=1) for name in names]
            for record in records:
                await register.advance(record, expected_epoch=0)
            moved = Ownership(machine="m2", owner="beta", epoch=2)
            await register.advance(moved, expected_epoch=1)
            rest = sorted((r for r in records if r.machine != "m2"), key=lambda r: r.machine)
            assert list(await register.owned_by("alpha")) == rest
            assert list(await register.owned_by("beta")) == [moved]
            assert list(await register.owned_by("alph")) == []

        self._with(tmp_path, work)

    def test_forgetting_removes_the_record_and_a_new_life_may_begin(self, tmp_path: Path) -> None:
        async def work(register: OwnershipRegister) -> None:
            await register.advance(FIRST, expected_epoch=0)
            await register.forget("m1", epoch=1)
            assert await register.read("m1") is None
            assert list(await register.owned_by("alpha")) == []
            await register.advance(FIRST, expected_epoch=0)
            assert await register.read("m1") == FIRST

        self._with(tmp_path, work)

    def test_forgetting_at_another_epoch_is_fenced(self, tmp_path: Path) -> None:
        async def work(register: OwnershipRegister) -> None:
            await register.advance(FIRST, expected_epoch=0)
            await register.advance(SECOND, expected_epoch=1)
            for epoch in (0, 1, 3):
                with pytest.raises(Fenced):
                    await register.forget("m1", epoch=epoch)
            assert await register.read("m1") == SECOND

        self._with(tmp_path, work)

    def test_a_record_outlives_a_reopening(self, tmp_path: Path) -> None:
        async def write(register: OwnershipRegister) -> None:
            await register.advance(FIRST, expected_epoch=0)
            await register.advance(SECOND, expected_epoch=1)
            await register.advance(evolve(FIRST, machine="gone"), expected_epoch=0)
            await register.forget("gone", epoch=1)

        async def read(register: OwnershipRegister) -> None:
            assert await register.read("m1") == SECOND
            assert await register.read("gone") is None
            await self._refused(register, FIRST, expected_epoch=0, holds=SECOND)

        self._with(tmp_path, write)
        self._with(tmp_path, read)

    def test_a_record_outlives_a_process_that_is_killed_right_after_it(
        self, tmp_path: Path
    ) -> None:
        async def write() -> None:
            register: OwnershipRegister = self.make(tmp_path)
            await register.advance(FIRST, expected_epoch=0)
            await register.advance(SECOND, expected_epoch=1)

        async def read(register: OwnershipRegister) -> None:
            assert await register.read("m1") == SECOND

        if not self._keeps_files(tmp_path):
            pytest.skip("the register keeps no file of its own on this node")
        in_doomed_process(write, self.deadline_s)
        self._with(tmp_path, read)

    def test_a_record_that_cannot_be_written_is_an_error_and_changes_nothing(
        self, tmp_path: Path
    ) -> None:
        async def work(register: OwnershipRegister) -> None:
            await register.advance(FIRST, expected_epoch=0)
            with pytest.raises((OSError, NovacronError)) as one, full_disk():
                await register.advance(SECOND, expected_epoch=1)
            assert not isinstance(one.value, Fenced), "a full disk is no fence"
            assert await register.read("m1") in (FIRST, SECOND)
            await register.advance(SECOND, expected_epoch=None)
            assert await register.read("m1") == SECOND

        async def again(register: OwnershipRegister) -> None:
            assert await register.read("m1") == SECOND

        if not self._keeps_files(tmp_path):
            pytest.skip("the register keeps no file of its own on this node")
        self._with(tmp_path, work)
        self._with(tmp_path, again)

    def test_a_damaged_register_is_an_error_and_never_reads_as_empty(self, tmp_path: Path) -> None:
        async def write(register: OwnershipRegister) -> None:
            await register.advance(FIRST, expected_epoch=0)

        async def read(register: OwnershipRegister) -> None:
            assert await register.read("m1") == FIRST, "the record is lost and nobody says so"

        self._with(tmp_path, write)
        files = [f for f in (tmp_path / "a").rglob("*") if f.is_file() and f.stat().st_size]
        if not files:
            pytest.skip("the register keeps no file of its own on this node")
        for file in files:
            file.write_bytes(b"\x00damage" * (file.stat().st_size // 7 + 1))
        # OSError or a NovacronError, from the constructor or from read.
        with contextlib.suppress(OSError, NovacronError):
            self._with(tmp_path, read)

    def test_closing_twice_is_once(self, tmp_path: Path) -> None:
        async def work(register: OwnershipRegister) -> None:
            await register.advance(FIRST, expected_epoch=0)
            await register.close()
            await register.close()

        self._with(tmp_path, work)

    def test_any_sequence_of_calls_agrees_with_the_model(self, tmp_path: Path) -> None:
        contract = self
        runs = iter(range(1_000_000))

        class Model(RuleBasedStateMachine):
            """The register beside a dict that says what it must hold."""

            def __init__(self) -> None:
                super().__init__()
                self.loop = asyncio.new_event_loop()
                self.folder = tmp_path / f"run-{next(runs)}"
                self.folder.mkdir()
                self.register: OwnershipRegister = contract.make(self.folder)
                self.held: dict[str, Ownership] = {}

            def wait(self, call: Awaitable[T]) -> T:
                return self.loop.run_until_complete(call)

            @rule(
                machine=st.sampled_from(("m1", "m2")),
                owner=st.sampled_from(("alpha", "beta")),
                epoch=st.integers(1, 5),
                session=st.sampled_from(("", "s-1")),
                expected=st.none() | st.integers(0, 5),
            )
            def advance(
                self, machine: str, owner: str, epoch: int, session: str, expected: int | None
            ) -> None:
                record = Ownership(machine=machine, owner=owner, epoch=epoch, session=session)
                held = self.held.get(machine)
                now = held.epoch if held else 0
                try:
                    self.wait(self.register.advance(record, expected_epoch=expected))
                except Fenced:
                    allowed = record == held or (epoch > now and expected in (None, now))
                    assert not allowed, f"{record} was fenced, and {held} held"
                else:
                    assert record == held or (epoch > now and expected in (None, now)), (
                        f"{record} (expecting {expected}) was written over {held}"
                    )
                    self.held[machine] = record

            @rule(machine=st.sampled_from(("m1", "m2")), epoch=st.integers(1, 5))
            def forget(self, machine: str, epoch: int) -> None:
                held = self.held.get(machine)
                if held is None:
                    return
                try:
                    self.wait(self.register.forget(machine, epoch=epoch))
                except Fenced:
                    assert held.epoch != epoch
                else:
                    assert held.epoch == epoch
                    del self.held[machine]

            @rule()
            def reopen(self) -> None:
                self.wait(self.register.close())
                self.register = contract.make(self.folder)

            @invariant()
            def holds(self) -> None:
                for machine in ("m1", "m2"):
                    assert self.wait(self.register.read(machine)) == self.held.get(machine)
                for owner in ("alpha", "beta"):
                    expected = [r for _, r in sorted(self.held.items()) if r.owner == owner]
                    assert list(self.wait(self.register.owned_by(owner))) == expected

            def teardown(self) -> None:
                self.wait(self.register.close())
                self.loop.run_until_complete(self.loop.shutdown_default_executor())
                self.loop.close()

        run_state_machine_as_test(Model, settings=_EXAMPLES)

    def _keeps_files(self, tmp_path: Path) -> bool:
        probe = tmp_path / "probe"
        probe.mkdir()

        async def work(register: OwnershipRegister) -> None:
            await register.advance(FIRST, expected_epoch=0)

        self._with(probe, work)
        return any(file.is_file() for file in (probe / "a").rglob("*"))

    async def _refused(
        self,
        register: OwnershipRegister,
        record: Ownership,
        *,
        expected_epoch: int | None,
        holds: Ownership | None,
    ) -> None:
        try:
            await register.advance(record, expected_epoch=expected_epoch)
        except Fenced:
            pass
        else:
            pytest.fail(f"{record} (expecting {expected_epoch}) was taken while {holds} held")
        assert await register.read(record.machine) == holds, "a fenced advance changed something"
