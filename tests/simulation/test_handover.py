"""At most one side runs the machine, whatever fails; exactly one, once nothing fails any more."""

from __future__ import annotations

import pytest
from handover_model import HandoverWorld, scenario
from novacron_dwcp import handover as ho
from novacron_dwcp import messages as msg
from novacron_testkit.simulator import explore

# Millions of events: to trace each line of them would take longer than all the rest.
pytestmark = pytest.mark.no_cover

RUNS = 100_000
PARTS = 10


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_at_most_one_side_runs_and_all_recover_in_100_000_seeded_runs(part: int) -> None:
    share = RUNS // PARTS
    assert explore(scenario(), share, first_seed=part * share) == share


def test_the_simulated_world_does_move_machines_and_loses_some_sessions_to_faults() -> None:
    moved, sessions = 0, 0
    for seed in range(300):
        world = scenario()(seed, None).world
        assert isinstance(world, HandoverWorld)
        moved += world.moved // 2  # both sides report it
        sessions += world.session_count
    assert sessions * 0.2 < moved < sessions


class RunsBeforeTheRecordIsDurable(ho.Source):
    def _uncommitted(self, event: ho.Input) -> ho.Effects:
        if isinstance(event, msg.Verified) and self._sealed is not None:
            self._to(ho.Phase.COMMIT)
            return (*self._say_run(), ho.Record(self.terms.given(), self.terms.epoch))
        return super()._uncommitted(event)


class ResumesWhenTheLinkIsLostAfterTheCommit(ho.Source):
    def _handing(self, event: ho.Input) -> ho.Effects:
        if isinstance(event, ho.LinkLost):
            self.phase = ho.Phase.VERIFY
            return self._roll_back("impatience")
        return super()._handing(event)


class ForgetsItsRecordInDoubt(ho.Source):
    def _committing(self, event: ho.Input) -> ho.Effects:
        if isinstance(event, ho.OwnerIs):
            return self._roll_back("doubt")
        return super()._committing(event)


class RunsWithoutOwning(ho.Destination):
    def _waiting(self, event: ho.Input) -> ho.Effects:
        if isinstance(event, msg.Run):
            self._to(ho.Phase.RUN)
            self._adopted = True
            return (ho.Resume(),)
        return super()._waiting(event)


class RunsAsSoonAsItHoldsEverything(ho.Destination):
    def _receiving(self, event: ho.Input) -> ho.Effects:
        effects = super()._receiving(event)
        return (*effects, ho.Resume()) if isinstance(event, ho.Loaded) else effects


class SaysVerifiedWithoutJournal(ho.Destination):
    def _receiving(self, event: ho.Input) -> ho.Effects:
        effects = super()._receiving(event)
        return tuple(e for e in effects if e != ho.Persist(ho.Phase.COMMIT, self._loaded))


class AbandonsWithoutRecord(ho.Destination):
    def _abandon(self, reason: str) -> ho.Effects:
        self._to(ho.Phase.ROLLBACK)
        self._to(ho.Phase.KEPT)
        epoch = self.terms.epoch + 2
        said = msg.Abandoned(session=self.terms.session, epoch=epoch, reason=reason)
        return (ho.Destroy(), ho.Forget(), ho.Send(said))


@pytest.mark.parametrize(
    "broken",
    [
        RunsBeforeTheRecordIsDurable,
        ResumesWhenTheLinkIsLostAfterTheCommit,
        ForgetsItsRecordInDoubt,
        RunsWithoutOwning,
        RunsAsSoonAsItHoldsEverything,
        SaysVerifiedWithoutJournal,
        AbandonsWithoutRecord,
    ],
)
def test_the_alarm_rings_for_a_broken_variant(
    broken: type[ho.Source] | type[ho.Destination],
) -> None:
    def world(seed: int) -> HandoverWorld:
        if issubclass(broken, ho.Source):
            return HandoverWorld(3, shared=bool(seed % 2), source_class=broken)
        return HandoverWorld(3, shared=bool(seed % 2), destination_class=broken)

    with pytest.raises(AssertionError, match=r"^seed="):
        explore(scenario(world), 20_000)
