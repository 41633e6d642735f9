"""How links and labs are written down, and what netem is told; nothing here is brought up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from novacron import ConfigError, ShellState
from novacron_lab import Bursts, LinkSpec, Outage, _text
from novacron_lab._cable import netem_arguments
from novacron_lab._commands import described
from novacron_lab._commands import lab as commands
from novacron_lab._emulator import start_lines
from novacron_lab._spec import paths_of
from novacron_lab._text import LinkText, read_file
from novacron_lab._trace import prepared, times_ms

README = Path(__file__).parent.parent / "README.md"


# ------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (_text.rate, "100", 100e6),
        (_text.rate, "1.5gbit", 1.5e9),
        (_text.rate, "512 kbit", 512e3),
        (_text.milliseconds, "150", 0.15),
        (_text.milliseconds, "350us", 350e-6),
        (_text.milliseconds, "2s", 2.0),
        (_text.seconds, "1min", 60.0),
        (_text.share, "0.5%", 0.005),
        (_text.size, "64KiB", 65536.0),
    ],
)
def test_plain_numbers_and_units_are_read(read: object, text: str, value: float) -> None:
    assert callable(read)
    assert read(text, "it") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "-1", "fast", "1e3", "10 parsec", "1/2/3", "nan", "٣"])
def test_what_is_no_figure_is_named_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="rate is") as caught:
        LinkText(rate=text).links()
    assert "100mbit" in caught.value.hint


def test_a_figure_is_for_both_ways_or_there_and_back() -> None:
    there, back = LinkText(rate="100/20", rtt=150, loss="1/0", bursts="0.1,10/off").links()
    assert there == LinkSpec(
        rate_bit_per_s=100e6, delay_s=0.075, loss=0.01, bursts=Bursts(begin=0.001, end=0.1)
    )
    assert back == LinkSpec(rate_bit_per_s=20e6, delay_s=0.075)


def test_an_outage_is_a_begin_and_a_length() -> None:
    there, back = LinkText(outages=["10+30", "1min+500ms"]).links()
    assert there.outages == back.outages
    assert there.outages == (
        Outage(begin_s=10, length_s=30),
        Outage(begin_s=60, length_s=0.5),
    )
    for wrong in ("10", "+", "10+0", "x+1"):
        with pytest.raises(ConfigError):
            LinkText(outages=[wrong]).links()


@pytest.mark.parametrize(
    "figures",
    [
        {"rate": "0.0001"},
        {"loss": "101"},
        {"delay": "601s"},
        {"rtt": 1, "delay": 1},
        {"bursts": "1"},
        {"queue": 100},
        {"queue": "2GiB"},
        {"trace": Path("nowhere")},
        {"engine": "veth", "loss": 1},
    ],
    ids=str,
)
def test_figures_that_make_no_link_are_refused(figures: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LinkText(**figures).links()  # type: ignore[arg-type]


def test_the_queue_is_one_bandwidth_delay_product_of_the_round_trip_or_a_megabyte() -> None:
    assert LinkSpec.wan(rate_mbit=100, rtt_ms=150).queue_for(0.15) == 1_875_000
    assert LinkSpec.wan(rate_mbit=10, rtt_ms=10).queue_for(0.01) == 1_000_000
    assert LinkSpec(rate_bit_per_s=1e8, queue_bytes=5000).queue_for(0.15) == 5000


def test_a_trace_has_a_mean_rate(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text("1\n2\n3\n4\n")
    assert LinkSpec(trace=trace).mean_rate_bytes_per_s() == 1.5e6
    trace.write_text("nonsense\n")
    with pytest.raises(ConfigError, match="trace"):
        LinkSpec(trace=trace).mean_rate_bytes_per_s()


def test_a_trace_of_rates_becomes_times_at_which_1500_bytes_leave(tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    # 12 Mbit/s are 1500 bytes per millisecond; then nothing; then half of it.
    rates.write_text("t_s,mbps\n5.0,12\n5.003,0\n5.1,6\n")
    assert times_ms(rates)[:6] == [1, 2, 3, 102, 104, 106]
    assert times_ms(rates)[-1] == 197
    made = prepared(rates, tmp_path)
    assert times_ms(made) == times_ms(rates)
    assert prepared(made, tmp_path) == made
    assert LinkSpec(trace=rates).mean_rate_bytes_per_s() == pytest.approx(52 * 1500 / 0.197)


@pytest.mark.parametrize(
    "text",
    [
        "t_s,mbps\n", "t_s,mbps\n0,1\n", "t_s,mbps\n0,1\n0,1\n", "t_s,mbps\n0,1\n1\n",
        "t_s,mbps\n0,-1\n1,1\n", "t_s,mbps\n0,nan\n1,1\n", "t_s,mbps\n0,1\nnan,1\n",
        "t_s,mbps\n0,1e5\n1e5,1\n", "3\n2\n", "-1\n5\n", "0\n", "", "\xff",
    ],
)  # fmt: skip
def test_a_bad_trace_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=str(path)):
        times_ms(path)


# -------------------------------------------------------------------------- pairs


def test_every_pair_has_a_path_and_a_link_holds_for_the_way_back() -> None:
    slow, fast = LinkSpec(delay_s=0.1), LinkSpec(delay_s=0.001)
    paths = paths_of(["a", "b", "c"], {("b", "a"): slow, ("b", "c"): slow, ("c", "b"): fast})
    assert [(path.a, path.b, path.there, path.back) for path in paths] == [
        ("a", "b", slow, slow),
        ("a", "c", LinkSpec(), LinkSpec()),
        ("b", "c", slow, fast),
    ]


def test_links_that_join_nothing_or_differ_in_kind_are_refused() -> None:
    wrong: list[dict[tuple[str, str], Any]] = [
        {("a", "z"): LinkSpec()},
        {("a", "a"): LinkSpec()},
        {("a", "b"): [LinkSpec(), LinkSpec()], ("b", "a"): LinkSpec()},
        {("a", "b"): []},
        {("a", "b"): LinkSpec(engine="veth"), ("b", "a"): LinkSpec(engine="emulator")},
    ]
    for links in wrong:
        with pytest.raises(ConfigError):
            paths_of(["a", "b"], links)


# -------------------------------------------------------------------------- files


def lab_file(folder: Path, text: str) -> Path:
    path = folder / "lab.toml"
    path.write_text(text)
    return path


def test_the_file_in_the_readme_is_one(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "lte.trace").write_text("1\n")
    for block in blocks:
        said = read_file(lab_file(tmp_path, block))
        assert paths_of(said["sites"], said["links"])
    assert blocks


def test_what_a_pair_does_not_say_is_what_is_said_of_all(tmp_path: Path) -> None:
    said = read_file(
        lab_file(
            tmp_path,
            'sites = ["a", "b", "c"]\n[link]\nrtt = 20\nrate = 100\n'
            '[links.c-a]\nrate = "10/1"\n[[links.a-b]]\nloss = 1\n[[links.a-b]]\nloss = 2\n',
        )
    )
    links = said["links"]
    assert [link.loss for link in links["a", "b"]] == [0.01, 0.02]
    assert [link.rate_bit_per_s for link in links["c", "a"] + links["a", "c"]] == [10e6, 1e6]
    assert {link.delay_s for each in links.values() for link in each} == {0.01}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sites = 5", "sites"),
        ("sites = [", "no TOML"),
        ('sites = ["a", "b"]\nspeed = 1', "speed"),
        ('sites = ["a", "b"]\n[links.a-c]\nrate = 1', "a-c"),
        ('sites = ["a", "b"]\n[links]\na-b = 5', "table"),
        ('sites = ["a", "b"]\n[links.a-b]\nspeed = 1', "speed"),
        ('sites = ["a", "b"]\n[link]\nrate = "quick"', "quick"),
    ],
)
def test_a_bad_file_is_refused_with_what_is_wrong(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_file(lab_file(tmp_path, text))


def test_options_beside_a_file_are_refused(tmp_path: Path) -> None:
    path = lab_file(tmp_path, 'sites = ["a", "b"]')
    done = CliRunner().invoke(commands, ["up", str(path), "--rate", "5"], obj=ShellState())
    assert isinstance(done.exception, ConfigError)
    assert "--rate" in done.exception.message


# ------------------------------------------------------------------ what is told to whom


def test_the_emulator_is_told_every_figure_of_both_directions() -> None:
    link = LinkSpec(
        rate_bit_per_s=8e6, delay_s=0.01, loss=0.5, outages=(Outage(begin_s=1, length_s=2),)
    )
    paths = paths_of(["a", "b"], {("a", "b"): link, ("b", "a"): LinkSpec()})
    none = "burst_begin=0 burst_end=0 burst_loss=0"
    assert list(start_lines(paths, {"a": "na", "b": "nb"}, 7, True, Path())) == [
        "pair a>b b>a na to-b nb to-a 1 7000",
        f"set a>b rate=1000000 delay=10000000 jitter=0 loss=0.5 {none} queue=1000000 reorder=0 "
        "reorder_by=2500000",
        "trace a>b -",
        f"set b>a rate=0 delay=0 jitter=0 loss=0 {none} queue=1000000 reorder=0 reorder_by=1000000",
        "trace b>a -",
        "outage a>b 1000000000 2000000000",
    ]


@pytest.mark.parametrize(
    ("link", "said"),
    [
        (LinkSpec(), "netem limit 716494"),
        (
            LinkSpec.wan(rate_mbit=100, rtt_ms=150, loss_percent=1),
            "netem limit 1875 delay 75000us loss random 1% rate 100000000bit",
        ),
        (
            LinkSpec(delay_s=0.01, jitter_s=0.002, bursts=Bursts(begin=0.001, end=0.1), loss=0.01),
            "netem limit 716494 delay 10000us 2000us loss gemodel 0.1% 10% 100% 1%",
        ),
        (LinkSpec(reorder=0.02), "netem limit 716494 delay 1000us reorder 2%"),
    ],
)
def test_netem_is_told_the_same_in_its_own_words(link: LinkSpec, said: str) -> None:
    assert " ".join(netem_arguments(link, 2 * link.delay_s, 1500)) == said


def test_a_link_is_described_in_words() -> None:
    link = LinkSpec(rate_bit_per_s=1e8, delay_s=0.075, loss=0.01)
    assert described(link, 0.15) == "100 Mbit/s, 75 ms, loss 1 %, queue 1,875,000 bytes"
    assert described(LinkSpec(engine="veth"), 0) == "a bare cable"
