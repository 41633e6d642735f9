"""What the command line says becomes links, entries, workloads and a plan."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from novacron import (
    ConfigError,
    InternalError,
    PluginLoadError,
    PluginManager,
    PluginSource,
    ShellState,
    hookimpl,
)
from novacron_bench import Competitor, Workload
from novacron_bench._commands import bench
from novacron_bench._guest import built_in_workloads
from novacron_bench._known import competitors, pick_workload, workloads
from novacron_bench._network import PRESETS, LinkFigures
from novacron_bench._nova import nova_competitors
from novacron_bench._race import Entry, Race
from novacron_bench._raw import Carrier
from novacron_bench._stock import stock_competitors
from novacron_bench._switch import pauses_s, percentile

ALL = (*stock_competitors(), *nova_competitors())


def test_a_link_is_read_as_people_write_it_and_written_the_same() -> None:
    link = LinkFigures.parse("200mbit,80ms,0.5%")
    assert link == LinkFigures(rate_bit_per_s=200e6, rtt_ms=80.0, loss_percent=0.5)
    assert link.product_bytes == 2_000_000
    for text in PRESETS.values():
        assert str(LinkFigures.parse(text)) == text


@pytest.mark.parametrize("text", ["", "fast", "200,80,0.5", "0mbit,1ms,100%", "9999999gbit,1ms"])
def test_what_is_no_link_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        LinkFigures.parse(text)
    assert "200mbit,80ms,0.5%" in refused.value.hint


def test_an_entry_names_a_competitor_its_congestion_control_and_buffers() -> None:
    assert Entry.parse("default", ALL).name == "default/bbr"
    assert Entry.parse("multifd-zstd:cubic:large", ALL).name == "multifd-zstd/cubic/large"


@pytest.mark.parametrize(
    ("text", "hint"),
    [("nobody", "default"), ("default:vegas", "bbr"), ("default:bbr:huge", "large"),
     ("default:bbr:large:more", "NAME")],
)  # fmt: skip
def test_an_entry_that_is_not_there_is_refused_with_the_choices(text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Entry.parse(text, ALL)
    assert hint in refused.value.hint


def test_a_workload_may_be_told_its_rate() -> None:
    known = built_in_workloads()
    assert pick_workload("kv", known).rate == 2
    assert (pick_workload("kv:10", known).name, pick_workload("kv:10", known).rate) == ("kv-10", 10)
    for wrong in ("nothing", "kv:fast", "kv:-1"):
        with pytest.raises(ConfigError):
            pick_workload(wrong, known)


def test_a_carrier_is_a_transport_with_a_congestion_control() -> None:
    assert Carrier.parse("amst").name == "amst/bbr"
    assert Carrier.parse("tcp:cubic").name == "tcp/cubic"
    with pytest.raises(ConfigError, match="vegas"):
        Carrier.parse("tcp:vegas")


def test_entries_take_turns_and_stock_runs_only_where_the_scenario_matters_to_it() -> None:
    known = built_in_workloads()
    race = Race(
        links=[LinkFigures.parse("country")],
        workloads=[known[0]],
        entries=[Entry.parse("default", ALL), Entry.parse("novacron", ALL)],
        all_workloads=known,
        scenarios=("cold", "return"),
        runs=2,
    )
    assert [key[2:] for key in race.plan()] == [
        ("default/bbr", "cold", 1),
        ("novacron/bbr", "cold", 1),
        ("novacron/bbr", "return", 1),
        ("default/bbr", "cold", 2),
        ("novacron/bbr", "cold", 2),
        ("novacron/bbr", "return", 2),
    ]


class Guests:
    """A plugin that adds to the benchmark."""

    NOVACRON_API = 1

    def __init__(self, name: str) -> None:
        self.name = name

    @hookimpl
    def novacron_bench_workloads(self) -> Any:
        return [Workload(name=self.name, title="ours", runs="ours", scripts={"ours": "sleep 1"})]

    @hookimpl
    def novacron_bench_competitors(self) -> Any:
        return [Competitor(name=self.name, title="theirs", run=lambda contest: None)]  # type: ignore[arg-type]


def manager(*plugins: object) -> PluginManager:
    import novacron_bench

    sources = [
        PluginSource(name=f"plugin-{number}", distribution="test", version="1", plugin=plugin)
        for number, plugin in enumerate((novacron_bench, *plugins))
    ]
    return PluginManager.load(sources=sources, strict=True)


def test_a_plugin_adds_workloads_and_competitors() -> None:
    loaded = manager(Guests("ours"))
    assert workloads(loaded)[-1].scripts == {"ours": "sleep 1"}
    assert competitors(loaded)[-1].name == "ours"


def test_a_plugin_that_takes_a_name_that_is_taken_is_named() -> None:
    with pytest.raises(PluginLoadError, match=r"plugin-1.*taken"):
        workloads(manager(Guests("kv")))


def test_the_commands_list_what_is_known() -> None:
    ran = CliRunner().invoke(bench, ["list"], obj=ShellState(json=True))
    assert ran.exit_code == 0, ran.output
    kinds = {(one["kind"], one["name"]) for one in json.loads(ran.stdout)}
    assert {("workload", "kv"), ("competitor", "multifd-zstd"), ("link", "ocean")} <= kinds


def test_the_pause_of_a_switch_is_the_longest_gap_after_it() -> None:
    arrivals = [0.0, 0.1, 0.2, 0.3, 0.9, 1.0, 1.1, 1.2]
    assert pauses_s([0.25, 1.0], arrivals, 0.2) == pytest.approx([0.6, 0.1])
    with pytest.raises(InternalError):
        pauses_s([1.0, 2.0], arrivals[:3], 0.2)


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7.0], 99) == 7.0
