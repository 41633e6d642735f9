"""What is foreseen of moves, and what is learnt from them."""

from __future__ import annotations

import asyncio
import math
import random
from pathlib import Path
from typing import Any

import attrs
import pytest
from novacron import MachineSpec, MoveFacts, MoveNeed, NodeFacts
from novacron_transport_pba import (
    Mind,
    _hooks,
    _lessons,
    novacron_choose_estimate,
    novacron_choose_rates,
    novacron_on_move_end,
    novacron_on_move_sample,
)
from novacron_transport_pba import _calibration as calibration

MIB = 1 << 20
MACHINE = MachineSpec(name="vm", driver="wasm", memory_bytes=512 * MIB)
BEFORE = MoveFacts(
    machine=MACHINE,
    target="b",
    mode="internet",
    codec="zstd",
    used_bytes=400 * MIB,
    round_trip_ms=40.0,
    rate_bytes_per_s=10.0 * MIB,
)


def run(
    mind: Mind,
    *,
    rate: float = 10.0 * MIB,
    ratio: float = 0.3,
    session: str = "s1",
    tail_s: float = 1.0,
    chance: random.Random | None = None,
    begun_s: float = 1000.0,
) -> tuple[list[tuple[float, float]], MoveFacts]:
    """A move whose copy runs at ``rate`` on the wire: (elapsed, foreseen to be left) at each
    sample, and its facts at the end."""
    used, done, wire, now, told = BEFORE.used_bytes, 0.0, 0.0, 0.0, []
    facts = BEFORE
    while done < used:
        pace = rate * (math.exp(chance.gauss(0, 0.15)) if chance else 1.0)
        now += 0.25
        done = min(used, done + pace / ratio * 0.25)
        wire = done * ratio
        facts = attrs.evolve(
            BEFORE,
            session=session,
            done_bytes=int(done),
            remaining_bytes=int(used - done),
            raw_bytes=int(done),
            wire_bytes=int(wire),
            elapsed_s=now,
            rate_bytes_per_s=pace,
        )
        mind.sample(facts, begun_s + now)
        estimate = mind.estimate(facts)
        if estimate is not None and estimate.seconds is not None:
            told.append((now, estimate.seconds[1]))
    return told, attrs.evolve(facts, elapsed_s=now + tail_s)


def test_the_time_left_is_foreseen_on_a_steady_link() -> None:
    told, end = run(Mind(), tail_s=0.5)
    for elapsed, left in told:
        if 0.25 <= elapsed / end.elapsed_s <= 0.75:
            assert left == pytest.approx(end.elapsed_s - elapsed, rel=0.2)


def test_a_link_that_halves_is_noticed_within_seconds() -> None:
    mind = Mind()
    chance = random.Random(2)
    run(mind, chance=chance)
    told, end = run(mind, rate=5.0 * MIB, session="s2", chance=chance, begun_s=1100.0)
    later = [one for one in told if 0.4 <= one[0] / end.elapsed_s <= 0.7]
    assert later
    for elapsed, left in later:
        assert left == pytest.approx(end.elapsed_s - elapsed, rel=0.3)


def test_a_machine_that_was_moved_before_is_foreseen_as_it_went() -> None:
    mind = Mind()
    for place in range(6):
        _, end = run(mind, session=f"s{place}", begun_s=1000.0 * place)
        mind.end(end, True, 120.0, at_s=1.0)
    plan = mind.estimate(attrs.evolve(BEFORE, rate_bytes_per_s=None))
    assert plan is not None
    assert plan.bytes
    assert plan.seconds
    assert plan.pause_ms
    assert plan.bytes[1] == pytest.approx(end.wire_bytes, rel=0.1)
    assert plan.seconds[1] == pytest.approx(end.elapsed_s, rel=0.15)
    assert plan.pause_ms[1] == pytest.approx(120.0, rel=0.1)
    assert "6 moves" in plan.reason
    assert plan.confidence == 0.9


def test_bounds_narrow_as_forecasts_prove_right() -> None:
    mind = Mind()
    first = mind.estimate(BEFORE)
    for place in range(30):
        _, end = run(mind, session=f"s{place}", begun_s=1000.0 * place)
        mind.end(end, True, 120.0, at_s=1.0)
    last = mind.estimate(BEFORE)
    assert first
    assert last
    assert first.bytes
    assert last.bytes
    assert last.bytes[2] / last.bytes[0] < first.bytes[2] / first.bytes[0]


def test_a_target_never_reached_is_foreseen_as_links_of_a_like_round_trip() -> None:
    mind = Mind()
    _, end = run(mind)
    mind.end(end, True, 120.0, at_s=1.0)
    other = attrs.evolve(BEFORE, target="c", rate_bytes_per_s=None)
    plan = mind.estimate(other)
    assert plan is not None
    assert plan.seconds is not None
    assert "like round trips" in plan.reason


def test_without_any_rate_nothing_is_said_of_the_time() -> None:
    plan = Mind().estimate(attrs.evolve(BEFORE, rate_bytes_per_s=None))
    assert plan is not None
    assert plan.seconds is None
    assert plan.bytes is not None
    assert "no rate" in plan.reason


def test_a_limit_is_kept_in_mind_and_not_taken_for_the_link() -> None:
    mind = Mind()
    limited = attrs.evolve(BEFORE, limit_bytes_per_s=1 * MIB)
    slow, fast = mind.estimate(limited), mind.estimate(BEFORE)
    assert slow
    assert fast
    assert slow.seconds
    assert fast.seconds
    assert slow.seconds[1] > 5 * fast.seconds[1]
    for place in range(40):
        facts = attrs.evolve(
            limited,
            session="s",
            elapsed_s=place / 4,
            wire_bytes=place * MIB // 4,
            rate_bytes_per_s=1.0 * MIB,
        )
        mind.sample(facts, place / 4)
    assert mind.links["b"].forecaster.samples == 0


def test_a_move_that_did_not_succeed_teaches_nothing() -> None:
    mind = Mind()
    _, end = run(mind)
    assert not mind.end(end, False, 0.0, at_s=1.0)
    assert not mind.lessons.moves
    assert not mind.lessons.machines


def test_a_guest_that_writes_as_fast_as_it_is_copied_has_a_finite_time_left() -> None:
    mind = Mind()
    facts = attrs.evolve(
        BEFORE,
        session="s",
        done_bytes=100 * MIB,
        remaining_bytes=300 * MIB,
        wire_bytes=30 * MIB,
        elapsed_s=10.0,
        dirty_bytes_per_s=50 * MIB,
    )
    found = mind.estimate(facts)
    assert found is not None
    assert found.seconds is not None
    assert all(math.isfinite(bound) for bound in found.seconds)


@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_bounds_hold_nine_truths_of_ten_after_two_dozen_moves(spread: float) -> None:
    chance = random.Random(5)
    held: list[bool] = []
    errors: list[float] = []
    for place in range(400):
        actual = math.exp(chance.gauss(0.2, spread))
        low, _, high = calibration.bounds("plan.seconds", errors)
        if place >= 24:
            held.append(low <= actual <= high)
        error = calibration.error_of(1.0, actual)
        assert error is not None
        errors.append(error)
    assert 0.86 <= sum(held) / len(held) <= 0.97


# ----- sharing


def need(session: str, **given: Any) -> MoveNeed:
    common = MoveNeed(
        session=session,
        machine=session,
        target="b",
        priority=0,
        deadline_s=None,
        remaining_bytes=100 * MIB,
        dirty_bytes_per_s=0,
        rate_bytes_per_s=5e6,
        limit_bytes_per_s=None,
    )
    return attrs.evolve(common, **given)


def test_moves_that_are_alike_are_left_to_the_transport() -> None:
    assert Mind().rates([need("a"), need("b")]) == {"a": None, "b": None}


def test_the_first_is_free_and_the_others_yield_by_priority() -> None:
    rates = Mind().rates([need("a", priority=1), need("b"), need("c", target="d")])
    assert rates is not None
    assert rates["a"] is None
    assert rates["c"] is None
    assert rates["b"] == pytest.approx(10e6 / 3, rel=0.01)


def test_a_deadline_is_served_before_the_rest() -> None:
    rates = Mind().rates([need("a"), need("b", deadline_s=5.0)])
    assert rates is not None
    assert rates["b"] is None
    assert rates["a"] is not None
    assert rates["a"] < 2e6


# ----- the node's hooks and the disk


def test_what_was_learnt_survives_a_restart(tmp_path: Path) -> None:
    asyncio.run(learn_one_move(tmp_path))
    again = _lessons.read(_lessons.folder_of(tmp_path))
    assert again.machines["vm/zstd"].moves == 1
    assert again.moves[0].pause_ms == 80.0
    assert Mind.of(again).links["b"].forecaster.samples == 0


async def learn_one_move(state_dir: Path) -> None:
    node = NodeFacts(name="a", state_dir=state_dir)
    used, now = BEFORE.used_bytes, 0.0
    for place in range(1, 9):
        now = place / 4
        facts = attrs.evolve(
            BEFORE,
            session="s",
            done_bytes=used * place // 8,
            remaining_bytes=used - used * place // 8,
            wire_bytes=used * place // 32,
            elapsed_s=now,
        )
        novacron_on_move_sample(facts, node)
    assert novacron_choose_estimate(facts, node) is not None
    assert novacron_choose_rates([need("a"), need("b")], node) is not None
    novacron_on_move_end(attrs.evolve(facts, elapsed_s=now + 1), True, 80.0, node)
    await asyncio.get_running_loop().shutdown_default_executor()
    _hooks.forget(node)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b'{"format": 2}',
        b'{"machines": {"vm/zstd": {"moves": -1}}}',
        b'{"links": {"b": {"rate_bytes_per_s": 1e99}}}',
        b"\xff" * 100,
        b" " * ((4 << 20) + 2),
    ],
    ids=["empty", "torn", "newer", "negative", "beyond", "bytes", "too large"],
)
def test_a_damaged_file_is_put_aside_and_the_node_goes_on(
    tmp_path: Path, damaged: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / _lessons.FILE
    path.write_bytes(damaged)
    assert _lessons.read(tmp_path) == _lessons.Lessons()
    assert "learnt anew" in caplog.text
    assert path.with_suffix(".damaged").read_bytes() == damaged
    _lessons.write(tmp_path, _lessons.encode(_lessons.Lessons()))
    assert _lessons.read(tmp_path) == _lessons.Lessons()


def test_lessons_are_bounded_however_many_moves_there_are(tmp_path: Path) -> None:
    lessons = _lessons.Lessons()
    for place in range(600):
        lessons.machine(f"vm{place}", "zstd").learn(pause_ms=1.0)
        lessons.links[f"n{place}"] = _lessons.LinkLesson(snapshot=b"x" * 648)
        lessons.error("plan.seconds", 0.1)
    content = _lessons.encode(lessons)
    assert len(content) < 1 << 20
    _lessons.write(tmp_path, content)
    again = _lessons.read(tmp_path)
    assert len(again.machines) == 512
    assert "vm599/zstd" in again.machines
    assert len(again.errors["plan.seconds"]) == calibration.ERRORS_MAX
    # A link's state that is no forecaster's begins anew.
    assert Mind.of(again).links["n599"].forecaster.samples == 0
