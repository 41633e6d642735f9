"""The emulator's arithmetic, in made-up time and without devices; and how it is compiled."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron_native_netlab import CannotCompile, program

# Each example starts a process.
few = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="session", autouse=True)
def binary() -> Path:
    return program()


def simulate(*words: str) -> dict[str, Any]:
    """The counters of a simulation."""
    done = subprocess.run(
        [program(), "simulate", *words], capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def each(*words: str) -> list[tuple[int, str, int]]:
    """Packet, fate and time of every packet, in the order of the packets."""
    done = subprocess.run(
        [program(), "simulate", "each", *words], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
    return sorted((line["packet"], line["fate"], line["at_ns"]) for line in lines)


# --------------------------------------------------------------- rate, delay and queue


def test_a_link_without_figures_delivers_at_once() -> None:
    did = simulate("packets=100", "interval=1000")
    assert (did["forwarded_packets"], did["delay_most_ns"]) == (100, 0)


def test_a_packet_takes_its_time_on_the_wire_and_then_the_delay() -> None:
    # 1500 bytes at 1.5 MB/s are 1 ms.
    found = each("packets=3", "interval=5000000", "rate=1500000", "delay=20000000", "queue=1e6")
    assert found == [
        (0, "forwarded", 21_000_000),
        (1, "forwarded", 26_000_000),
        (2, "forwarded", 31_000_000),
    ]


def test_packets_wait_for_those_before_them_and_a_full_queue_drops_the_last() -> None:
    found = each("packets=4", "rate=1500000", "queue=4500")
    assert found == [
        (0, "forwarded", 1_000_000),
        (1, "forwarded", 2_000_000),
        (2, "forwarded", 3_000_000),
        (3, "taildrop", 0),
    ]


@few
@given(
    rate=st.integers(10_000, 10**9),
    delay=st.integers(0, 10**9),
    queue=st.integers(3000, 10**6),
    size=st.integers(40, 1500),
    interval=st.integers(0, 10**6),
    packets=st.integers(1, 300),
)
def test_the_queue_is_that_of_a_simple_model(
    rate: int, delay: int, queue: int, size: int, interval: int, packets: int
) -> None:
    found = each(
        *(f"rate={rate}", f"delay={delay}", f"queue={queue}", f"size={size}"),
        *(f"interval={interval}", f"packets={packets}"),
    )
    # The model: who leaves when, and who is still waiting when the next one comes.
    leaves: list[float] = []
    free = 0.0
    for number, fate, at in found:
        now = number * interval
        waiting = sum(size for left in leaves if left > now)
        # Where the two differ by less than a rounding error, either answer is right.
        doubtful = any(abs(left - now) < 1 for left in leaves)
        if not doubtful:
            assert (fate == "taildrop") == (waiting + size > queue), number
        if fate == "forwarded":
            free = max(free, now) + size * 1e9 / rate
            leaves.append(free)
            assert abs(at - (free + delay)) <= 2


@pytest.mark.slow
@few
@given(
    words=st.fixed_dictionaries(
        {
            "rate": st.sampled_from([0, 125_000, 12_500_000]),
            "delay": st.integers(0, 10**8),
            "jitter": st.integers(0, 10**7),
            "loss": st.floats(0, 1).map(lambda x: round(x, 6)),
            "burst_begin": st.floats(0, 1).map(lambda x: round(x, 6)),
            "burst_end": st.floats(0, 1).map(lambda x: round(x, 6)),
            "burst_loss": st.floats(0, 1).map(lambda x: round(x, 6)),
            "queue": st.integers(3000, 10**6),
            "reorder": st.floats(0, 1).map(lambda x: round(x, 6)),
            "reorder_by": st.integers(0, 10**8),
            "interval": st.integers(0, 10**6),
            "seed": st.integers(0, 10**9),
        }
    ),
    outage=st.tuples(st.integers(0, 10**8), st.integers(1, 10**8)),
)
def test_every_packet_has_one_fate_and_the_same_in_every_run(
    words: dict[str, float], outage: tuple[int, int]
) -> None:
    said = [f"{key}={value:.12g}" for key, value in words.items()]
    said += [f"outage={outage[0]}+{outage[1]}", "packets=500"]
    did = simulate(*said)
    assert (
        did["in_packets"]
        == 500
        == sum(did[f"{fate}_packets"] for fate in ("forwarded", "lost", "taildrop", "outage"))
    )
    assert did["queue_max_bytes"] <= words["queue"]
    if not words["reorder"]:
        assert did["out_of_order"] == 0
    if did["forwarded_packets"]:
        assert did["delay_least_ns"] >= max(0, words["delay"] - words["jitter"] - 1)
    assert simulate(*said) == did


# --------------------------------------------------------------------------- loss


@pytest.mark.parametrize("percent", [0.1, 1, 5])
def test_random_loss_is_the_share_that_was_asked_for(percent: float) -> None:
    packets = 400_000
    lost = simulate(f"loss={percent / 100}", f"packets={packets}")["lost_packets"]
    expected = packets * percent / 100
    # Five standard deviations of the binomial distribution.
    assert abs(lost - expected) < 5 * (expected * (1 - percent / 100)) ** 0.5


@pytest.mark.slow
def test_bursts_have_the_share_and_the_length_that_were_asked_for() -> None:
    packets, begin, end = 200_000, 0.002, 0.1
    found = each(f"packets={packets}", f"burst_begin={begin}", f"burst_end={end}", "burst_loss=1")
    fates = "".join("L" if fate == "lost" else "." for _, fate, _ in found)
    bursts = [burst for burst in fates.split(".") if burst]
    share = fates.count("L") / packets
    assert share == pytest.approx(begin / (begin + end), rel=0.15)
    assert sum(map(len, bursts)) / len(bursts) == pytest.approx(1 / end, rel=0.15)


def test_another_seed_is_another_fate_and_other_figures_change_no_fate() -> None:
    def lost(*words: str) -> list[int]:
        return [n for n, fate, _ in each("packets=2000", "loss=0.05", *words) if fate == "lost"]

    assert lost("seed=1") != lost("seed=2")
    assert lost("seed=1") == lost("seed=1", "delay=1e6", "jitter=5e5", "reorder=0.1", "rate=0")


def test_reordered_packets_come_late_and_the_others_keep_their_order() -> None:
    found = each("packets=10000", "interval=100000", "delay=1e7", "reorder=0.02", "reorder_by=1e6")
    late = [n for n, _, at in found if at != n * 100_000 + 10_000_000]
    assert len(late) == pytest.approx(200, rel=0.3)
    assert all(found[n][2] == n * 100_000 + 11_000_000 for n in late)


def test_jitter_moves_packets_both_ways_and_keeps_their_order() -> None:
    did = simulate("packets=5000", "interval=30000000", "delay=5e7", "jitter=1e7")
    assert did["out_of_order"] == 0
    assert 40_000_000 <= did["delay_least_ns"] < 42_000_000
    assert did["delay_most_ns"] <= 60_000_001


# ------------------------------------------------------------------ outages and traces


def test_an_outage_takes_what_would_leave_meanwhile_and_nothing_else() -> None:
    found = each("packets=10", "interval=1000000", "outage=3000000+4000000")
    assert [n for n, fate, _ in found if fate == "outage"] == [3, 4, 5, 6]


def trace_file(folder: Path, *times: int) -> Path:
    path = folder / "trace"
    path.write_text("".join(f"{time}\n" for time in times))
    return path


def test_a_trace_lets_1500_bytes_leave_at_each_of_its_times_for_ever(tmp_path: Path) -> None:
    path = trace_file(tmp_path, 2, 5, 10)
    found = each(f"trace={path}", "packets=6", "queue=1e6")
    assert [at // 1_000_000 for _, _, at in found] == [2, 5, 10, 12, 15, 20]


def test_small_packets_share_an_opportunity_and_big_ones_take_several(tmp_path: Path) -> None:
    path = trace_file(tmp_path, 1, 2, 3, 4)
    small = each(f"trace={path}", "packets=4", "size=750", "queue=1e6")
    assert [at // 1_000_000 for _, _, at in small] == [1, 1, 2, 2]
    big = each(f"trace={path}", "packets=2", "size=3000", "queue=1e6")
    assert [at // 1_000_000 for _, _, at in big] == [2, 4]


def test_an_opportunity_that_nobody_uses_is_gone(tmp_path: Path) -> None:
    path = trace_file(tmp_path, *range(1, 11))
    found = each(f"trace={path}", "packets=3", "interval=1000000500", "queue=1e6")
    assert [at // 1_000_000 for _, _, at in found] == [1, 1001, 2001]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("5\n3\n", "fall"),
        ("", "more than 0"),
        ("0\n", "more than 0"),
        ("1\n-2\n", "not a number"),
        ("1\nx\n", "not a number"),
        ("1 2\n", "not a number"),
        ("99999999999999999999999\n", "not a number"),
        ("1" * 5000, "not a number"),
    ],
)
def test_a_bad_trace_is_refused_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    done = subprocess.run([program(), "simulate", f"trace={path}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert reason in done.stderr


@pytest.mark.parametrize(
    "word",
    [
        "rate=-1", "rate=nan", "rate=inf", "rate=0x10", "rate=1e30", "rate= 5", "rate=", "rate=1",
        "loss=1.1", "loss=-0.1", "delay=1e15", "queue=2e9", "nothing=1", "loss", "", "=", "each=1",
    ],
)  # fmt: skip
def test_a_figure_that_makes_no_sense_is_refused(word: str) -> None:
    done = subprocess.run([program(), "simulate", word], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("netlab: ")


# --------------------------------------------------------------------- where it comes from


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is compiled yet."""
    monkeypatch.delenv("NOVACRON_NETLAB", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_it_is_compiled_once_and_kept(cache: Path) -> None:
    first = program()
    made = first.stat().st_mtime_ns
    assert program() == first
    assert first.stat().st_mtime_ns == made
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_without_a_compiler_it_says_what_to_install(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(cache))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(CannotCompile, match=r"no C compiler .* apt install gcc"):
        program()


def test_a_compiler_that_fails_is_quoted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "sh -c 'echo error: no such thing >&2; exit 1'")
    with pytest.raises(CannotCompile, match="no such thing"):
        program()
    assert not list(cache.glob("novacron/netlab-*"))


@pytest.mark.slow
def test_a_program_that_others_can_change_is_not_run(cache: Path) -> None:
    program().chmod(0o777)
    with pytest.raises(CannotCompile, match="changed by another user"):
        program()


def test_a_finished_program_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_program = tmp_path / "netlab"
    given_program.write_bytes(program().read_bytes())
    given_program.chmod(0o755)
    monkeypatch.setenv("NOVACRON_NETLAB", str(given_program))
    assert program() == given_program
    monkeypatch.setenv("NOVACRON_NETLAB", str(tmp_path / "absent"))
    with pytest.raises(CannotCompile, match="absent"):
        program()
