"""The evacuation in a simulated site: near its bound when all goes well, within its laws whatever
goes wrong. A failure names its seed; `evacuate(draw(SEED, …))` replays it."""

from __future__ import annotations

import math
import random

import pytest
from attrs import evolve
from novacron_placement_itp import WAYS, Faults, Instance, Setting, bound_of_truth, draw
from novacron_placement_itp._world import World, evacuate

SEEDS = 30


def test_forty_machines_over_two_unequal_links_leave_near_the_bound_and_before_the_others() -> None:
    instance = draw(1)
    bound = bound_of_truth(instance).seconds
    ended = {name: way(instance) for name, way in WAYS.items()}
    assert {name: len(one.moved) for name, one in ended.items()} == dict.fromkeys(WAYS, 40)
    ours = ended["evacuate"].seconds
    assert bound <= ours <= 1.15 * bound
    assert ended["one by one"].seconds >= 2 * ours
    assert ended["all at once"].seconds >= 1.2 * ours


def troubled(seed: int) -> Instance:
    """A small site in trouble."""
    rng = random.Random(seed)
    count = rng.choice((1, 3, 6, 10))
    names = [f"vm{number:02d}" for number in range(count)]
    never = math.inf
    faults = Faults(
        fail=rng.choice((0.0, 0.2, 0.6)),
        vanish=rng.choice(
            (
                {},
                {"b": (rng.uniform(0, 40), rng.choice((never, 60.0, 200.0)))},
                {"b": (5.0, 100.0), "c": (10.0, 90.0)},
                {"b": (5.0, never), "c": (10.0, never)},
            )
        ),
        stop={rng.choice(names): rng.uniform(0, 60)} if rng.random() < 0.4 else {},
        restart=sorted(rng.uniform(0, 50) for _ in range(rng.choice((0, 0, 1, 3)))),
        cancel=rng.choice((None, None, None, (rng.uniform(0, 40), rng.random() < 0.5))),
    )
    setting = Setting(machines=count, memory_spare=rng.choice((1.05, 1.5, 3.0)))
    instance = draw(seed, setting, faults)
    if count >= 6 and rng.random() < 0.5:
        expected = evolve(
            instance.expected,
            apart=[frozenset(names[:2])],
            together=[frozenset((names[2], names[-1]))],
        )
        instance = evolve(instance, expected=expected)
    return instance


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_goes_wrong_each_machine_moves_once_or_stays_with_a_reason(seed: int) -> None:
    instance = troubled(seed)
    ended = evacuate(instance)  # asserts its laws at each step
    names = {need.machine for need in instance.expected.needs}
    assert set(ended.moved) | set(ended.stayed) == names


def test_the_same_seed_gives_the_same_run() -> None:
    assert evacuate(troubled(11)) == evacuate(troubled(11))


def test_the_worlds_links_carry_what_they_are_said_to() -> None:
    world = World(draw(3, Setting(wobble=0.3)))
    steps = [world.rate(0, at) for at in (0.0, 5.0, 10.0, 15.0)]
    assert len(set(steps)) == 4
    assert world.carried("link to b", 2.0, 12.0) == pytest.approx(
        3 * steps[0] + 5 * steps[1] + 2 * steps[2]
    )
