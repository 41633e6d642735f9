"""Plans: never below their bound, near it, within memory and groups, and honest about the rest."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from novacron_placement_itp import Link, Need, Plan, Problem, Target, make_plan
from novacron_placement_itp._bound import lower_bound
from novacron_placement_itp._fluid import Flow, shares
from novacron_placement_itp._model import UnderWay
from novacron_placement_itp._planner import Steady, predict

GIB = 1 << 30
MB = 1e6


def need(name: str, megabytes: float = 100, **more: Any) -> Need:
    return Need(machine=name, wire_bytes=megabytes * MB, **{"memory_bytes": GIB, **more})


def problem(*needs: Need, b: float = 100, c: float = 50, **more: Any) -> Problem:
    """Two targets with ``b`` and ``c`` MB/s, and room for all."""
    given: dict[str, Any] = {
        "targets": [Target(node=name, free_memory_bytes=100 * GIB) for name in "bc"],
        "links": [
            Link(name="the way to b", targets=frozenset("b"), rate=b * MB),
            Link(name="the way to c", targets=frozenset("c"), rate=c * MB),
        ],
        "prepare_s": 2.0,
        "finish_s": 1.0,
    }
    return Problem(needs=needs, **given | more)


def test_machines_are_spread_so_that_both_ways_end_together() -> None:
    plan = make_plan(problem(*(need(f"vm{n}", 200) for n in range(6))))
    assert sorted(plan.targets.values()) == ["b"] * 4 + ["c"] * 2
    assert plan.bound.seconds == pytest.approx(2 + 1200 / 150 + 1)
    assert plan.makespan_s == pytest.approx(plan.bound.seconds, rel=0.01)
    assert plan.stranded == {}


def test_a_machine_alone_takes_its_preparation_its_bytes_and_its_end() -> None:
    plan = make_plan(problem(need("vm", 1000, dirty_bytes_per_s=20 * MB)))
    (stint,) = plan.stints
    assert stint.target == "b"
    assert (stint.begin_s, stint.copy_s) == (0.0, 2.0)
    assert stint.end_s == pytest.approx(2 + 1000 / (100 - 20) + 1)
    assert stint.wire_bytes == pytest.approx(1000 * MB * 100 / 80)
    assert plan.bound.seconds == pytest.approx(stint.end_s)


def test_guests_that_write_are_copied_one_after_the_other_though_moves_overlap() -> None:
    writers = [need(f"vm{n}", 500, dirty_bytes_per_s=10 * MB) for n in range(6)]
    even = problem(*writers, strict=False)
    targets = make_plan(even).targets
    apart = predict(even, targets, {"b": 1, "c": 1})
    together = predict(even, targets, {"b": 4, "c": 4})
    assert sum(apart.sent.values()) < sum(together.sent.values())
    assert make_plan(even).lanes["c"] < 4


def test_the_next_machine_is_prepared_while_the_one_before_is_copied() -> None:
    small = problem(*(need(f"vm{n}", 50) for n in range(12)), prepare_s=3.0)
    plan = make_plan(small)
    assert min(plan.lanes.values()) > 1
    alone = predict(small, plan.targets, {"b": 1, "c": 1})
    assert plan.makespan_s < 0.7 * alone.makespan_s


def test_no_target_gets_more_than_its_memory() -> None:
    tight = problem(
        *(need(f"vm{n}", 100, memory_bytes=GIB) for n in range(6)),
        targets=[
            Target(node="b", free_memory_bytes=2 * GIB),
            Target(node="c", free_memory_bytes=4 * GIB),
        ],
    )
    plan = make_plan(tight)
    assert sorted(plan.targets.values()) == ["b"] * 2 + ["c"] * 4
    assert plan.bound.seconds == pytest.approx(2 + 400 / 50 + 1)


def test_memory_that_only_one_division_fits_is_divided_so() -> None:
    sizes = (5, 4, 3, 3, 3)  # the largest first would leave nobody room for the last
    tight = problem(
        *(need(f"vm{n}", 10 * size, memory_bytes=size * GIB) for n, size in enumerate(sizes)),
        targets=[Target(node=name, free_memory_bytes=9 * GIB) for name in "bc"],
    )
    assert make_plan(tight).stranded == {}


def test_groups_end_together_or_apart() -> None:
    grouped = problem(
        *(need(f"vm{n}", 100) for n in range(6)),
        together=[frozenset({"vm0", "vm1", "vm2"})],
        apart=[frozenset({"vm3", "vm4"})],
    )
    where = make_plan(grouped).targets
    assert len({where["vm0"], where["vm1"], where["vm2"]}) == 1
    assert where["vm3"] != where["vm4"]


def test_who_cannot_go_is_stranded_with_the_reason_of_each_target() -> None:
    plan = make_plan(
        problem(
            need("big", memory_bytes=200 * GIB),
            need("odd", driver="odd"),
            need("busy", dirty_bytes_per_s=200 * MB),
            need("barred", refused={"b": "policy", "c": "no network net0"}),
            need("good", driver="qemu"),
            targets=[
                Target(node=name, free_memory_bytes=100 * GIB, drivers=("qemu",)) for name in "bc"
            ],
        )
    )
    assert set(plan.targets) == {"good"}
    assert "needs 204800" in plan.stranded["big"]
    assert "no machine driver 'odd'" in plan.stranded["odd"]
    assert "writes 200.0 MB/s" in plan.stranded["busy"]
    assert plan.stranded["barred"] == "b: policy; c: no network net0"


def test_without_targets_or_machines_there_is_a_plan_of_nothing() -> None:
    assert make_plan(problem()).makespan_s == 0.0
    nowhere = make_plan(problem(need("vm"), targets=[], links=[]))
    assert nowhere.stranded == {"vm": "there is no target"}


def test_what_is_under_way_keeps_its_target_and_its_share() -> None:
    plan = make_plan(
        problem(
            need("going", 1000),
            need("vm", 100),
            under_way=[UnderWay(machine="going", target="b", remaining_bytes=500 * MB)],
        )
    )
    assert plan.targets == {"going": "b", "vm": "c"}
    assert plan.makespan_s == pytest.approx(6.0)


def test_priority_goes_first_and_a_limit_of_moves_is_kept() -> None:
    plan = make_plan(
        problem(
            *(need(f"vm{n}", 300) for n in range(4)), need("first", 10, priority=5), moves_max=1
        )
    )
    assert plan.stints[0].machine == "first"
    ends = sorted((stint.begin_s, stint.end_s) for stint in plan.stints)
    assert all(end <= begin + 1e-6 for (_, end), (begin, _) in itertools.pairwise(ends))


def test_an_uplink_that_all_share_bounds_them() -> None:
    shared = problem(*(need(f"vm{n}", 200) for n in range(6)))
    links = [*shared.links, Link(name="the uplink", targets=frozenset("bc"), rate=60 * MB)]
    plan = make_plan(evolve(shared, links=links))
    assert plan.bound.why == "the uplink"
    assert plan.bound.seconds == pytest.approx(2 + 1200 / 60 + 1)
    assert plan.makespan_s <= 1.05 * plan.bound.seconds


def test_the_interval_holds_the_forecasts_width_and_the_chance_of_a_deadline_grows() -> None:
    sure = problem(*(need(f"vm{n}", 200) for n in range(6)))
    links = [evolve(link, low=0.5 * link.rate, high=2 * link.rate) for link in sure.links]
    plan = make_plan(evolve(sure, links=links))
    assert plan.makespan_low_s < 0.8 * plan.makespan_s < plan.makespan_s
    assert plan.makespan_high_s > 1.5 * plan.makespan_s
    chances = [plan.chance(seconds) for seconds in (1, 8, plan.makespan_s, 15, 1000)]
    assert chances == sorted(chances)
    assert chances[2] == pytest.approx(0.5)
    assert plan.chance(plan.makespan_high_s) == pytest.approx(0.95, abs=0.005)


def test_another_plan_is_followed_only_if_it_saves_more_than_the_margin() -> None:
    steady = Steady(margin=0.1)
    before = problem(*(need(f"vm{n}", 200) for n in range(9)))
    plan, changed = steady.choose(before, None)
    assert changed
    slightly = evolve(before, links=[before.links[0], evolve(before.links[1], rate=47 * MB)])
    kept, changed = steady.choose(slightly, plan)
    assert not changed
    assert kept.targets == plan.targets
    halved = evolve(before, links=[evolve(before.links[0], rate=20 * MB), before.links[1]])
    other, changed = steady.choose(halved, plan)
    assert changed
    assert sorted(other.targets.values()).count("c") > sorted(plan.targets.values()).count("c")
    lost = evolve(before, targets=before.targets[:1])
    alone, changed = steady.choose(lost, plan)
    assert changed
    assert set(alone.targets.values()) == {"b"}


def brute_force_s(given: Problem) -> float:
    """The least time that any assignment needs for its bytes and edges alone."""
    best = math.inf
    nodes = [target.node for target in given.targets]
    for choice in itertools.product(nodes, repeat=len(given.needs)):
        pairs = list(zip(given.needs, choice, strict=True))
        busy = [
            sum(given.fewest_bytes(one, to) for one, to in pairs if to in link.targets) / link.rate
            for link in given.links
        ]
        own = [given.copy_s(one, to) for one, to in pairs]
        best = min(best, max([*busy, *own]))
    return best + given.prepare_s + given.finish_s


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 30))
def test_the_bound_is_below_every_assignment_and_the_plan_near_the_best(seed: int) -> None:
    rng = random.Random(seed)
    needs = [
        need(f"vm{n}", rng.uniform(10, 800), dirty_bytes_per_s=rng.choice((0, 0, 10)) * MB)
        for n in range(rng.randint(1, 6))
    ]
    given = problem(*needs, b=rng.uniform(30, 200), c=rng.uniform(30, 200))
    bound, best, plan = lower_bound(given).seconds, brute_force_s(given), make_plan(given)
    assert bound <= best * (1 + 1e-6)
    assert best <= plan.makespan_s * (1 + 1e-6), "the plan beats every assignment"
    assert plan.makespan_s <= best * 1.03
    check(given, plan)


def check(given: Problem, plan: Plan) -> None:
    """What holds for every plan."""
    assert set(plan.targets) | set(plan.stranded) == {one.machine for one in given.needs}
    assert not set(plan.targets) & set(plan.stranded)
    assert plan.makespan_s >= plan.bound.seconds * (1 - 1e-6)
    for stint in plan.stints:
        assert stint.begin_s <= stint.copy_s <= stint.end_s
        assert stint.end_low_s <= stint.end_s <= stint.end_high_s


def test_shares_by_rank_and_even_ones_never_exceed_a_link() -> None:
    flows = [
        Flow("a", "b", 1e9, 1e9, rate_max=40.0),
        Flow("b", "b", 1e9, 1e9),
        Flow("c", "b", 1e9, 1e9, prepare_s=1.0),
        Flow("d", "c", 1e9, 1e9),
    ]
    way = {"b": [0, 2], "c": [1, 2]}
    assert shares(flows, way, [100.0, 50.0, 120.0], strict=True) == [40.0, 60.0, 0.0, 20.0]
    assert shares(flows, way, [100.0, 50.0, 120.0], strict=False) == [40.0, 40.0, 0.0, 40.0]
    assert shares(flows, way, [100.0, 50.0, 200.0], strict=False) == [40.0, 60.0, 0.0, 50.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"wire_bytes": -1.0},
        {"wire_bytes": math.inf},
        {"dirty_bytes_per_s": math.nan},
        {"rate_max": 0.0},
    ],
)
def test_figures_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Need(machine="vm", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="same name"):
        problem(need("vm"), need("vm"))
