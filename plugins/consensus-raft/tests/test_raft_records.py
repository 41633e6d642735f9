"""A member is made from its own records, and from no others."""

from __future__ import annotations

import random

import pytest
from novacron_agreement import Commit, Effect, LogCore, Readable, Restore, Save
from novacron_consensus_raft import ConfigurationError, RaftCore, RaftSettings, RecordsError

SETTINGS = RaftSettings(cluster="lab")


def made(records: list[bytes], name: str = "a", cluster: str = "lab") -> RaftCore:
    settings = RaftSettings(cluster=cluster)
    return RaftCore(name, {name: ""}, records, settings, random.Random(1))


def saved(effects: list[Effect], records: list[bytes]) -> list[bytes]:
    for effect in effects:
        if isinstance(effect, Save):
            records = [*([] if effect.replaces else records), *effect.records]
    return records


def test_a_core_has_the_shape_of_a_log_core() -> None:
    core: LogCore = made([])
    assert core.leader is None
    assert dict(core.members) == {"a": ""}


def test_a_member_alone_leads_and_commits_at_once() -> None:
    core = made([])
    core.start(0)
    effects = core.propose(0, 7, b"one")
    assert effects[-1] == Commit(3, b"one", 7)
    assert isinstance(effects[0], Save)
    assert core.read(1, 8) == [Readable(8, 3)]


def test_a_member_that_was_restarted_knows_what_it_knew() -> None:
    core = made([])
    records = saved(core.start(0), [])
    records = saved(core.propose(0, 1, b"one"), records)
    records = saved(core.propose(0, 2, b"two"), records)
    again = made(records)
    effects = again.start(50)
    assert [e.command for e in effects if isinstance(e, Commit)] == [b"one", b"two"]
    assert again.term > core.term


def test_a_snapshot_takes_the_place_of_what_was_before() -> None:
    core = made([])
    records = saved(core.start(0), [])
    for ticket in range(9):
        records = saved(core.propose(0, ticket, b"x"), records)
    records = saved(core.compact(8, b"state"), records)
    again = made(records)
    effects = again.start(0)
    assert effects[0] == Restore(8, b"state")
    assert [e.index for e in effects if isinstance(e, Commit)] == [9, 10, 11]
    assert again.log.base_index == 8


def test_a_snapshot_of_what_was_not_handed_out_is_refused() -> None:
    core = made([])
    core.start(0)
    with pytest.raises(ValueError, match="only 2 is committed here"):
        core.compact(3, b"state")


def test_another_members_or_clusters_records_are_refused() -> None:
    records = saved(made([]).start(0), [])
    with pytest.raises(RecordsError, match="belongs to 'a' of the cluster 'lab'"):
        made(records, name="b")
    with pytest.raises(RecordsError, match="belongs to 'a' of the cluster 'lab'") as refused:
        made(records, cluster="prod")
    assert "never copy" in refused.value.hint


@pytest.mark.parametrize("record", [b"", b"z", b"e", b"e\x94\xff", b"t\x92\x00\xa0", b"s\x90"])
def test_a_record_that_cannot_be_right_is_refused(record: bytes) -> None:
    records = saved(made([]).start(0), [])
    with pytest.raises(RecordsError, match=f"record {len(records) + 1}"):
        made([*records, record])


def test_an_entry_that_leaves_a_gap_is_refused() -> None:
    core = made([])
    records = saved(core.start(0), [])
    later = saved(core.propose(0, 2, b"two"), [])
    core.propose(0, 1, b"one")
    newest = saved(core.propose(0, 3, b"three"), [])
    assert later
    with pytest.raises(RecordsError, match="entry 5 comes after 2"):
        made([*records, *newest])


def test_a_cluster_without_names_or_with_too_many_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a name has 1 to"):
        RaftCore("a", {"": ""}, [], SETTINGS, random.Random(1))
    many = {f"m{n}": "" for n in range(65)}
    with pytest.raises(ConfigurationError, match="at most 64"):
        RaftCore("a", many, [], SETTINGS, random.Random(1))


def test_settings_in_which_one_lost_heartbeat_would_cause_an_election_are_refused() -> None:
    with pytest.raises(ValueError, match="at least three times as much"):
        RaftSettings(heartbeat_ms=100, election_ms=200)
