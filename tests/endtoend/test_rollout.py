"""A codec behind a flag reaches more and more machines, and is taken back when it fails them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from click.testing import CliRunner
from cluster import CHAOS, Cluster, RealNode, assert_never_two_ran, done
from novacron import ShellState
from novacron_dwcp.link import OLDEST, VERSION
from novacron_flags_openfeature._commands import flags_group
from novacron_flags_openfeature._percentage import place

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("host")]

FLAG = "provider.compression"
CODEC = Path(__file__).parent / "rollout" / "acme_codec.py"
FLAGS = {
    "flags": {
        FLAG: {
            "state": "ENABLED",
            "variants": {"stable": "", "acme": "acme"},
            "defaultVariant": "stable",
            "targeting": {"fractional": [["acme", 10], ["stable", 90]]},
        },
        "provider.transport": {
            "state": "ENABLED",
            "variants": {"stable": "", "plain": "tcp"},
            "defaultVariant": "stable",
            "targeting": {"fractional": [["plain", 50], ["stable", 50]]},
        },
        "provider.protocol": {
            "state": "ENABLED",
            "variants": {"old": "2", "newest": ""},
            "defaultVariant": "old",
            "targeting": {"fractional": [["newest", 50], ["old", 50]]},
            "metadata": {"fallback": "2"},
        },
    }
}
FILL_BYTES = 4 << 20
# This link is found to be a short one; the moves are to stay with the mode that they begin in.
MODE = "internet"


def machine_at(least: float, most: float) -> str:
    """The first name of a machine whose place among all machines is there, in percent."""
    return next(
        name
        for name in (f"vm{number}" for number in range(1_000))
        if least <= place(FLAG, name) < most
    )


EARLY, MIDDLE, LATE = machine_at(0, 10), machine_at(10, 50), machine_at(50, 100)
MACHINES = (EARLY, MIDDLE, LATE)


@define
class Fleet:
    """Two nodes with the same flags and the same decisions, and a codec from elsewhere."""

    cluster: Cluster
    bug: Path

    def flags(self, node: str, *arguments: str) -> Any:
        """The command line in this process; starting one for each would take most of the time."""
        state = ShellState(json=True, config_path=self.cluster.nodes[node].config_path)
        ran = CliRunner().invoke(flags_group, list(arguments), obj=state)
        assert ran.exit_code == 0, (ran.output, ran.exception)
        return json.loads(ran.stdout)

    def set_percentage(self, percent: int) -> None:
        told = self.flags("a", "set-percentage", FLAG, str(percent))
        assert told["percentages"]["acme"] == percent

    def explain(self, node: str, machine: str) -> Any:
        return self.flags(node, "explain", FLAG, "--machine", machine)

    def move(
        self, source: RealNode, target: RealNode, machines: Sequence[str] = MACHINES
    ) -> dict[str, dict[str, Any]]:
        """Move the machines one by one; what each move's operation came to."""
        ended = {}
        for name in machines:
            move = source.client.migrate(name, target.name, mode=MODE, verify="memory")
            ended[name] = done(source, move)
        return ended


def of_half(domain: str, first: str, second: str) -> list[str]:
    """What the flag of a domain gives each machine, if it gives half of them the first."""
    places = [place(f"provider.{domain}", name) for name in MACHINES]
    return [first if at < 50 else second for at in places]


def used(ended: dict[str, dict[str, Any]], domain: str) -> list[str]:
    return [operation["result"]["providers"][domain] for operation in ended.values()]


def codecs(ended: dict[str, dict[str, Any]]) -> list[str]:
    return used(ended, "compression")


def install(folder: Path) -> Path:
    """As an installer leaves it: the module, and the metadata by which plugins are found."""
    shutil.copy(CODEC, folder)
    metadata = folder / "acme_codec-2.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-codec\nVersion: 2.0\n")
    (metadata / "entry_points.txt").write_text("[novacron]\nacme-codec = acme_codec\n")
    return folder


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    flags, bug = tmp_path / "flags.json", tmp_path / "bug"
    flags.write_text(json.dumps(FLAGS))
    (tmp_path / "site").mkdir()
    found = os.pathsep.join([str(install(tmp_path / "site")), str(CHAOS)])
    monkeypatch.syspath_prepend(tmp_path / "site")  # for the command line
    monkeypatch.setenv("ACME_BUG", str(bug))
    settings = (
        f'[service.flags]\nenabled = true\nfile = "{flags}"\n'
        f'decisions = "{tmp_path / "decisions"}"\n'
    )
    cluster = Cluster(tmp_path, settings=settings, resume_for_s=30.0)
    for node in cluster.nodes.values():
        node.environment["PYTHONPATH"] = found
    with cluster:
        for name in MACHINES:
            cluster.create(name, guest="kv", fill_bytes=FILL_BYTES)
        yield Fleet(cluster, bug)


def test_a_codec_goes_from_ten_to_fifty_to_all_and_a_fault_takes_it_back(fleet: Fleet) -> None:
    cluster, a, b = fleet.cluster, fleet.cluster.a, fleet.cluster.b
    usual = fleet.explain("a", LATE)["configured"]
    assert usual != "acme"

    # More and more machines; who has it keeps it.
    ended = fleet.move(a, b)
    assert codecs(ended) == ["acme", usual, usual]
    # Transports and versions of the protocol are rolled out in the same way.
    assert used(ended, "transport") == of_half("transport", "tcp", "amst")
    assert used(ended, "protocol") == of_half("protocol", str(VERSION), str(OLDEST))
    fleet.set_percentage(50)
    assert codecs(fleet.move(b, a)) == ["acme", "acme", usual]
    fleet.set_percentage(100)
    assert codecs(fleet.move(a, b)) == ["acme", "acme", "acme"]

    # The codec begins to fail. Its first machine's attempts use the budget up; the next one goes
    # through the configured codec, and so does every other machine.
    fleet.bug.touch()
    ended = fleet.move(b, a)
    assert codecs(ended) == [usual, usual, usual]
    told = [
        event.data
        for event in b.client.events(ended[EARLY]["id"])
        if event.kind == "message" and "flag" in event.data
    ]
    assert [(one["flag"]["value"], one["flag"]["by"]) for one in told] == [("acme", "node b")]
    entries = cluster.novacron("b", "log", "list", "--state", str(b.state_dir), "--json")
    assert [e["detail"]["value"] for e in entries if e["event"] == "flag-rolled-back"] == ["acme"]

    # The other node has not seen it fail, and refuses it too.
    assert codecs(fleet.move(a, b, [EARLY])) == [usual]
    why = fleet.explain("a", EARLY)
    assert why["used"] == usual
    assert "rolled back by node b" in why["why"]
    (flag,) = [one for one in fleet.flags("b", "list")["flags"] if one["flag"] == FLAG]
    (acme,) = [one for one in flag["variants"] if one["variant"] == "acme"]
    assert acme["failures"] >= 3
    assert acme["rolled_back"]["by"] == "node b"

    # Repaired and allowed again, it is used again, and what was before is forgotten.
    fleet.bug.unlink()
    fleet.flags("a", "restore", FLAG, "--variant", "acme")
    assert codecs(fleet.move(b, a, [EARLY])) == ["acme"]

    # Nothing was lost on the way.
    assert sorted(one["name"] for one in a.client.machines()) == sorted(MACHINES)
    assert {one["state"] for one in a.client.machines()} == {"running"}
    assert b.client.machines() == []
    assert_never_two_ran_by_machine(cluster)


def assert_never_two_ran_by_machine(cluster: Cluster) -> None:
    lines = cluster.runs_log.read_text().splitlines()
    for name in MACHINES:
        own = cluster.folder / f"runs-{name}.log"
        own.write_text("".join(f"{line}\n" for line in lines if name in line))
        assert assert_never_two_ran(own) > 0
