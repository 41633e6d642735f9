"""The laws of placement."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from novacron import Choice, MachineSpec, NodeReport, Placement, Refused

from novacron_testkit.contracts.support import Contract

_GIB = 1 << 30
MACHINE = MachineSpec(name="m1", driver="wasm", memory_bytes=_GIB)


@st.composite
def _reports(draw: st.DrawFn) -> list[NodeReport]:
    names = draw(
        st.lists(st.sampled_from([f"node-{n}" for n in range(9)]), max_size=7, unique=True)
    )
    memory = st.sampled_from((0, _GIB // 2, _GIB - 1, _GIB, 2 * _GIB, 64 * _GIB))
    return [
        NodeReport(
            node=name,
            free_memory_bytes=draw(memory),
            drivers=draw(st.sampled_from(((), ("wasm",), ("qemu",), ("qemu", "wasm"), ("was",)))),
            round_trip_ms=draw(st.sampled_from((0.0, 0.1, 20.0, 20.0, 300.0))),
            rate_bytes_per_s=draw(st.sampled_from((None, None, 0.0, 1e6, 1e9))),
        )
        for name in names
    ]


_EXAMPLES = settings(
    max_examples=80,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

GOOD = NodeReport(
    node="good",
    free_memory_bytes=64 * _GIB,
    drivers=("wasm",),
    round_trip_ms=1.0,
    rate_bytes_per_s=1e9,
)


class PlacementContract(Contract):
    """Subclass it, set ``provider``."""

    def _choose(
        self, placement: Placement, candidates: Sequence[NodeReport]
    ) -> Choice | tuple[str, str, str]:
        """The choice, or the refusal as a value."""
        try:
            return placement.choose(MACHINE, candidates)
        except Refused as refused:
            return refused.message, refused.hint, repr(refused.facts)

    def test_the_choice_is_the_same_whatever_the_order_of_the_candidates(
        self, tmp_path: Path
    ) -> None:
        placement: Placement = self.make(tmp_path)

        @_EXAMPLES
        @given(_reports(), st.randoms(use_true_random=False))
        def check(candidates: list[NodeReport], rng: random.Random) -> None:
            first = self._choose(placement, candidates)
            for _ in range(3):
                rng.shuffle(candidates)
                again = self._choose(placement, candidates)
                if isinstance(first, Choice):
                    assert again == first
                else:
                    assert not isinstance(again, Choice), "refused in one order only"

        check()

    def test_equal_candidates_are_told_apart_the_same_way_every_time(self, tmp_path: Path) -> None:
        twins = [evolve(GOOD, node=name) for name in ("delta", "alpha", "charlie", "bravo")]
        choices = set()
        for turn in range(4):
            # A fresh provider each time: nothing of an earlier choice may count.
            placement: Placement = self.make(tmp_path)
            choices.add(placement.choose(MACHINE, twins[turn:] + twins[:turn]).node)
        assert len(choices) == 1

    def test_no_machine_is_sent_where_its_memory_or_its_driver_is_missing(
        self, tmp_path: Path
    ) -> None:
        placement: Placement = self.make(tmp_path)

        @_EXAMPLES
        @given(_reports())
        def check(candidates: list[NodeReport]) -> None:
            choice = self._choose(placement, candidates)
            if isinstance(choice, Choice):
                (chosen,) = (c for c in candidates if c.node == choice.node)
                assert chosen.free_memory_bytes >= MACHINE.memory_bytes
                assert MACHINE.driver in chosen.drivers

        check()

    def test_every_other_candidate_is_rejected_with_a_reason_and_the_choice_has_one(
        self, tmp_path: Path
    ) -> None:
        placement: Placement = self.make(tmp_path)

        @_EXAMPLES
        @given(_reports())
        def check(candidates: list[NodeReport]) -> None:
            choice = self._choose(placement, candidates)
            if isinstance(choice, Choice):
                assert choice.reason.strip()
                assert set(choice.rejected) == {c.node for c in candidates} - {choice.node}
                assert all(reason.strip() for reason in choice.rejected.values())

        check()

    def test_when_none_will_do_the_refusal_names_each_candidate(self, tmp_path: Path) -> None:
        placement: Placement = self.make(tmp_path)
        poor = [
            evolve(GOOD, node="small-one", free_memory_bytes=_GIB - 1),
            evolve(GOOD, node="other-driver", drivers=("qemu",)),
            evolve(GOOD, node="bare-one", drivers=(), free_memory_bytes=0),
        ]
        refused = self._choose(placement, poor)
        assert not isinstance(refused, Choice), "a candidate was chosen that cannot run the machine"
        for candidate in poor:
            assert candidate.node in "".join(refused), f"no reason for {candidate.node}"

    def test_no_candidates_is_a_refusal(self, tmp_path: Path) -> None:
        placement: Placement = self.make(tmp_path)
        with pytest.raises(Refused):
            placement.choose(MACHINE, [])

    def test_a_candidate_with_plenty_of_everything_is_chosen(self, tmp_path: Path) -> None:
        placement: Placement = self.make(tmp_path)
        assert placement.choose(MACHINE, [GOOD]).node == "good"
        poor = [
            evolve(GOOD, node="a-small", free_memory_bytes=1),
            evolve(GOOD, node="z-other", drivers=("qemu",)),
        ]
        assert placement.choose(MACHINE, [poor[0], GOOD, poor[1]]).node == "good"

    def test_the_candidates_are_left_as_they_are(self, tmp_path: Path) -> None:
        placement: Placement = self.make(tmp_path)
        candidates = [evolve(GOOD, node=name) for name in ("c", "a", "b")]
        before = list(candidates)
        placement.choose(MACHINE, candidates)
        assert candidates == before
