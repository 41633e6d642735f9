"""What is kept of a move, and what the next one makes of it."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import evolve
from novacron import Batch, CodecSession, NodeFacts, NovacronError, PeerProtocolError
from novacron_compression_hde import (
    HdeCompression,
    HdeDecoder,
    HdeEncoder,
    Offer,
    PageFile,
    Settings,
)

PAGE = 4096
PAGES_PER_BATCH = 64


def content(number: int) -> bytes:
    return random.Random(number).randbytes(PAGE)


def memory_of(numbers: Sequence[int]) -> list[bytes]:
    return [content(number) for number in numbers]


class Node:
    """One node's provider; `restart` is what a new process would see."""

    def __init__(self, state: Path, **settings: object) -> None:
        self.state = state
        state.mkdir(mode=0o700, exist_ok=True)
        self._settings = Settings(level=1, **settings)  # type: ignore[arg-type]
        self.restart()

    def restart(self) -> None:
        facts = NodeFacts(name=self.state.name, state_dir=self.state)
        self.codec = HdeCompression(self._settings, facts)

    @property
    def kinds(self) -> list[str]:
        return sorted(entry.about.kind for entry in self.codec.kept.entries())

    @property
    def sessions(self) -> list[Path]:
        return list(self.codec.kept.sessions.glob("*"))


class Move:
    """A session between two nodes, without a link."""

    number = 0

    def __init__(
        self,
        source: Node,
        destination: Node,
        machine: str = "m",
        tenant: str = "t",
        asks: bool = True,
    ) -> None:
        Move.number += 1
        self.session = CodecSession(
            session=f"mig-{Move.number}",
            machine=machine,
            driver="fake",
            peer=destination.state.name,
            tenant=tenant,
            memory_bytes=64 << 20,
            role="source",
        )
        self.encoder = HdeEncoder(source.codec._settings, source.codec.kept, self.session)
        arriving = evolve(self.session, role="destination", peer=source.state.name)
        self.decoder = HdeDecoder(destination.codec._settings, destination.codec.kept, arriving)
        if asks:
            self.decoder.peer_has(self.encoder.have())
        self.offer = self.decoder.have()
        self.encoder.peer_has(self.offer)

    def send(self, pages: Sequence[bytes], first: int = 0) -> int:
        """Send pages, check that they arrive; how many bytes that took."""
        wire = 0
        for start in range(0, len(pages), PAGES_PER_BATCH):
            some = pages[start : start + PAGES_PER_BATCH]
            numbers = range(first + start, first + start + len(some))
            addresses = struct.pack(f"<{len(some)}Q", *(number * PAGE for number in numbers))
            batch = Batch(b"layout", addresses, b"".join(some))
            payload = self.encoder.encode(batch)
            wire += len(payload)
            got = self.decoder.decode(payload)
            assert (bytes(got.layout), bytes(got.addresses)) == (b"layout", addresses)
            assert bytes(got.pages) == batch.pages
        return wire

    def end(self, moved: bool = True) -> None:
        self.encoder.ended(moved)
        self.decoder.ended(moved)

    def pages(self, rung: str) -> float:
        return self.encoder.figures().get(rung, {"pages": 0})["pages"]


@pytest.fixture
def here(tmp_path: Path) -> Node:
    return Node(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Node:
    return Node(tmp_path / "there")


def moved(
    source: Node, destination: Node, pages: Sequence[bytes], machine: str = "m", tenant: str = "t"
) -> None:
    move = Move(source, destination, machine, tenant)
    move.send(pages)
    move.end()


def test_a_machine_that_returns_costs_hardly_anything(here: Node, there: Node) -> None:
    pages = memory_of(range(500))
    moved(here, there, pages)
    assert here.kinds == there.kinds == ["checkpoint"]
    back = Move(there, here)
    pages[3] = content(9000)
    assert back.send(pages) < 3 * PAGE
    assert back.pages("same") == 499
    back.end()
    # What it began with was taken over: still one file on each side.
    assert here.kinds == there.kinds == ["checkpoint"]
    assert here.sessions == there.sessions == []
    # And again, with what the second move left.
    assert Move(here, there).send(pages) < 2 * PAGE


def test_nodes_that_were_restarted_in_between_know_it_still(here: Node, there: Node) -> None:
    pages = memory_of(range(100))
    moved(here, there, pages)
    here.restart()
    there.restart()
    assert Move(there, here).send(pages) < PAGE


def test_a_sibling_at_the_destination_is_referred_to(here: Node, there: Node) -> None:
    shared = memory_of(range(300))
    moved(here, there, shared, machine="sibling")
    move = Move(here, there, machine="other")
    assert move.send(shared + memory_of(range(1000, 1010))) < 12 * PAGE
    assert move.pages("reference") == 300
    assert move.pages("literal") == 10
    move.end()
    assert there.kinds == ["checkpoint", "checkpoint"]


def test_a_sibling_of_another_tenant_is_not_spoken_of(here: Node, there: Node) -> None:
    shared = memory_of(range(100))
    moved(here, there, shared, machine="sibling", tenant="one")
    move = Move(here, there, machine="other", tenant="two")
    assert len(Offer.unpack(move.offer).hashes) == 0
    move.send(shared)
    assert move.pages("literal") == 100


@pytest.mark.parametrize(("share", "referred"), [("none", 0), ("tenant", 0), ("all", 100)])
def test_sharing_across_tenants_is_as_the_destination_says(
    tmp_path: Path, here: Node, share: str, referred: int
) -> None:
    there = Node(tmp_path / "there", share=share)
    shared = memory_of(range(100))
    moved(here, there, shared, machine="sibling", tenant="one")
    move = Move(here, there, machine="other", tenant="two")
    move.send(shared)
    assert move.pages("reference") == referred


def test_a_machine_of_the_same_name_but_another_tenant_is_another_machine(
    here: Node, there: Node
) -> None:
    pages = memory_of(range(50))
    moved(here, there, pages, tenant="one")
    move = Move(there, here, tenant="two")
    assert Offer.unpack(move.offer).baseline == ""
    move.send(pages)
    assert move.pages("same") == 0


def test_a_move_that_failed_makes_the_next_one_cheap(here: Node, there: Node) -> None:
    pages = memory_of(range(300))
    broken = Move(here, there)
    broken.send(pages[:200])
    broken.end(moved=False)
    assert there.kinds == ["partial"]
    again = Move(here, there)
    assert Offer.unpack(again.offer).baseline == ""
    again.send(pages)
    assert (again.pages("reference"), again.pages("literal")) == (200, 100)
    again.end()
    assert there.kinds == ["checkpoint"]


def test_what_a_killed_process_left_is_adopted(here: Node, there: Node) -> None:
    pages = memory_of(range(300))
    child = os.fork()
    if child == 0:
        Move(here, there).send(pages[:200])
        os._exit(9)
    os.waitpid(child, 0)
    assert there.kinds == []
    assert len(there.sessions) == 1
    there.restart()
    assert there.kinds == ["partial"]
    assert there.sessions == []
    again = Move(here, there)
    again.send(pages)
    assert again.pages("reference") >= 190


def test_a_session_that_is_at_work_is_not_adopted(here: Node, there: Node) -> None:
    move = Move(here, there)
    move.send(memory_of(range(10)))
    there.restart()
    assert there.kinds == []
    move.send(memory_of(range(10)))
    assert move.pages("same") == 10


def flip(file: PageFile, at: int) -> None:
    byte = os.pread(file.fd, 1, at)[0]
    os.pwrite(file.fd, bytes([byte ^ 4]), at)


@pytest.mark.parametrize("where", ["content", "address", "count"])
@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_checkpoint_with_one_wrong_bit_is_not_used(
    here: Node, there: Node, side: str, where: str
) -> None:
    pages = memory_of(range(100))
    moved(here, there, pages)
    # The machine goes back: `there` is the source now.
    store = (there if side == "source" else here).codec.kept
    (entry,) = store.entries()
    file = PageFile.open(entry.path)
    at = {"content": file.places.pages_at + 5000, "address": 4096 + 80, "count": 24}[where]
    flip(file, at)
    file.close()
    back = Move(there, here)
    back.send(pages)
    assert back.pages("same") == 0
    if len(Offer.unpack(back.offer).hashes):
        # What is sound of it at the destination serves all the same, unless the source had said
        # that it has it too: then only its digest was offered.
        assert back.pages("reference") >= 96
    else:
        assert side == "source"
    back.end()
    assert Move(there, here).send(pages) < PAGE


def test_a_damaged_header_costs_the_reference_and_nothing_else(here: Node, there: Node) -> None:
    pages = memory_of(range(100))
    moved(here, there, pages)
    for node in (here, there):
        (entry,) = node.codec.kept.entries()
        with open(entry.path, "r+b") as file:
            file.seek(33)
            file.write(b"\xff\xff\xff")
    back = Move(there, here)
    back.send(pages)
    assert back.pages("literal") == 100
    assert here.kinds == []


def test_a_page_that_changed_after_it_was_offered_is_not_what_was_sent(
    here: Node, there: Node
) -> None:
    pages = memory_of(range(100))
    moved(here, there, pages, machine="sibling")
    move = Move(here, there, machine="other")
    (entry,) = there.codec.kept.entries()
    file = PageFile.open(entry.path)
    flip(file, file.places.pages_at + 5000)
    file.close()
    # The decoder cannot know; the digest that goes with every batch does.
    with pytest.raises(AssertionError):
        move.send(pages)
    move.end(moved=False)
    again = Move(here, there, machine="other")
    again.send(pages)
    assert again.pages("reference") == 99


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_bit_that_flips_in_a_page_store_never_passes_unseen(
    here: Node, there: Node, side: str
) -> None:
    rng = random.Random(4)
    for _ in range(10):
        move = Move(here, there)
        pages = memory_of(range(64))
        move.send(pages)
        codec = move.encoder if side == "source" else move.decoder
        assert codec._file is not None
        where = codec._file.places.pages_at + rng.randrange(64 * PAGE)
        flip(codec._file, where)
        pages[5] = pages[5][:-1] + b"!"
        try:
            move.send(pages)  # compares what arrives, as the digest of a batch does
        except AssertionError:
            pass
        else:
            # Only a page that was sent anew may hide the flip.
            assert side == "source" or (where - codec._file.places.pages_at) // PAGE == 5
        move.end(moved=False)


def test_a_destination_that_lies_is_found_out(here: Node, there: Node) -> None:
    pages = memory_of(range(64))
    move = Move(here, there)
    honest = Offer.unpack(move.offer)
    other = Node(here.state.parent / "other")
    moved(other, Node(here.state.parent / "fourth"), pages, machine="m", tenant="t")
    fourth = Node(here.state.parent / "fourth")
    truth = Move(other, fourth, asks=False)
    claimed = Offer.unpack(truth.offer)
    move.encoder.peer_has(evolve(claimed, baseline="", baseline_pages=0).pack())
    assert len(honest.hashes) == 0
    with pytest.raises(PeerProtocolError, match="not there"):
        move.send(pages)
    # And one that claims a checkpoint that the source does not have gets all of it.
    move = Move(here, there)
    move.encoder.peer_has(
        evolve(claimed, baseline="ab" * 32, hashes=claimed.hashes[:0], baseline_pages=0).pack()
    )
    move.send(pages)
    assert move.pages("literal") == 64


LEAST = b"\x01" + bytes(60)


@pytest.mark.parametrize(
    "said",
    [b"", b"x", bytes(61), b"\xff" * 200, LEAST[:-1], LEAST + bytes(8), b"\1" * 61],
)
def test_an_offer_that_is_none_is_refused(here: Node, said: bytes) -> None:
    encoder = HdeEncoder(Settings(), here.codec.kept, Move(here, here).session)
    encoder.peer_has(LEAST)
    with pytest.raises(PeerProtocolError, match="offer"):
        encoder.peer_has(said)


def test_an_offer_is_at_most_a_hundredth_of_the_machine(here: Node, there: Node) -> None:
    for number in range(3):
        moved(here, there, memory_of(range(number * 64, number * 64 + 64)), machine=f"m{number}")
    move = Move(here, there)
    assert len(move.offer) <= move.session.memory_bytes // 100
    assert len(Offer.unpack(move.offer).hashes) == 192
    small = HdeDecoder(
        Settings(),
        there.codec.kept,
        evolve(move.session, role="destination", memory_bytes=100_000),
    )
    said = small.have()
    assert len(said) <= 1000
    assert 100 < len(Offer.unpack(said).hashes) < 192


def test_two_sessions_at_once_do_not_use_one_checkpoint(here: Node, there: Node) -> None:
    pages = memory_of(range(64))
    moved(here, there, pages)
    one, two = Move(there, here), Move(there, here)
    assert Offer.unpack(one.offer).baseline
    assert not Offer.unpack(two.offer).baseline
    two.send(pages)
    one.send(pages)
    assert one.pages("same") == 64
    assert two.pages("same") == 0


def test_a_page_store_that_is_full_lets_the_rest_through(tmp_path: Path, here: Node) -> None:
    there = Node(tmp_path / "there", session_bytes=32 * PAGE)
    move = Move(here, there)
    pages = memory_of(range(100))
    move.send(pages)
    move.send(pages)
    assert move.pages("same") == 32
    move.end()
    assert Move(there, here).send(pages[:32]) < PAGE


def test_a_source_whose_disk_is_full_goes_on_without_a_page_store(here: Node, there: Node) -> None:
    resource = pytest.importorskip("resource")
    move = Move(here, there)
    pages = memory_of(range(64))
    move.send(pages)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = move.encoder._store
    assert store is not None
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, limits[1]))
    try:
        batch = Batch(b"", struct.pack("<Q", 70 * PAGE), content(70))
        payload = move.encoder.encode(batch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert move.decoder.decode(payload).pages == batch.pages
    move.send(pages)
    assert move.pages("same") == 0
    move.end()
    assert here.kinds == []


def test_a_destination_whose_disk_is_full_says_so(here: Node, there: Node) -> None:
    resource = pytest.importorskip("resource")
    move = Move(here, there)
    pages = memory_of(range(4))
    move.send(pages)
    payload = move.encoder.encode(Batch(b"", struct.pack("<Q", 70 * PAGE), content(70)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, limits[1]))
    try:
        with pytest.raises(NovacronError, match="page store") as caught:
            move.decoder.decode(payload)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "free disk space" in caught.value.hint


def test_nothing_is_kept_where_that_is_not_wanted(tmp_path: Path) -> None:
    here, there = Node(tmp_path / "a", keep=False), Node(tmp_path / "b", keep=False)
    moved(here, there, memory_of(range(10)))
    assert here.kinds == there.kinds == []
    assert here.sessions == there.sessions == []


def test_what_is_over_the_budget_goes_superseded_ones_first(tmp_path: Path, here: Node) -> None:
    there = Node(tmp_path / "there")
    for machine in ("old", "twice", "twice", "new"):
        # Each time from another place, so that nothing is taken over.
        source = Node(tmp_path / f"from-{Move.number}")
        number = Move.number * 1000
        moved(source, there, memory_of(range(number, number + 64)), machine=machine)
    kept = there.codec.kept
    for entry in kept.entries():
        age = {"new": 0, "twice": 1, "old": 2}[entry.about.machine] + 10 * entry.superseded
        os.utime(entry.path, (1e9 - age, 1e9 - age))
    entries = kept.entries()
    each = entries[0].allocated_bytes
    removed = kept.prune(budget_bytes=int(2.5 * each))
    assert [entry.about.machine for entry in removed] == ["twice", "old"]
    assert [entry.about.machine for entry in kept.entries()] == ["new", "twice"]


def test_what_is_in_use_is_not_evicted(here: Node, there: Node) -> None:
    moved(here, there, memory_of(range(64)), machine="sibling")
    move = Move(here, there, machine="other")
    assert there.codec.kept.prune(budget_bytes=0) == []
    move.send(memory_of(range(64)))
    move.end(moved=False)
    assert len(there.codec.kept.prune(budget_bytes=0)) == 2


def test_a_machine_with_pages_of_another_size_than_what_is_held_begins_anew(
    here: Node, there: Node
) -> None:
    moved(here, there, memory_of(range(64)), machine="sibling")
    move = Move(here, there, machine="other")
    large = random.Random(1).randbytes(4 * 65536)
    batch = Batch(b"", struct.pack("<4Q", *(n * 65536 for n in range(4))), large)
    for _ in range(2):
        assert bytes(move.decoder.decode(move.encoder.encode(batch)).pages) == large
    assert move.pages("same") == 4
    move.end()
    assert here.sessions == there.sessions == []


def test_a_session_that_ended_while_it_was_at_work_writes_to_no_file_any_more(
    here: Node, there: Node
) -> None:
    move = Move(here, there)
    pages = memory_of(range(64))
    move.send(pages)
    move.end(moved=False)
    batch = Batch(b"", struct.pack("<Q", 0), content(0))
    payload = move.encoder.encode(batch)
    assert move.decoder.decode(payload).pages == batch.pages
    assert here.sessions == there.sessions == []


def test_a_move_that_failed_before_it_began_leaves_both_checkpoints(
    here: Node, there: Node
) -> None:
    pages = memory_of(range(64))
    moved(here, there, pages)
    Move(there, here).end(moved=False)
    assert here.kinds == there.kinds == ["checkpoint"]
    assert Move(there, here).send(pages) < PAGE


def test_a_destination_whose_checkpoint_the_source_has_too_says_no_more_than_that(
    here: Node, there: Node
) -> None:
    pages = memory_of(range(500))
    moved(here, there, pages)
    back = Move(there, here)
    offer = Offer.unpack(back.offer)
    assert offer.baseline
    assert not len(offer.hashes)
    pages[3], pages[7] = content(9000), pages[8]
    assert back.send(pages) < 3 * PAGE
    assert back.pages("same") == 498
    assert back.pages("copy") == 1  # what the checkpoint holds is found by its content, too
    back.end()
    assert here.kinds == there.kinds == ["checkpoint"]


def test_a_source_that_has_it_no_more_gets_the_whole_offer(here: Node, there: Node) -> None:
    moved(here, there, memory_of(range(100)))
    there.codec.kept.remove(there.codec.kept.entries()[0].id)
    back = Move(there, here)
    assert len(Offer.unpack(back.offer).hashes) == 100
    back.send(memory_of(range(100)))
    assert back.pages("reference") == 100


def test_a_session_that_sent_nothing_leaves_its_checkpoint_to_the_next(
    here: Node, there: Node
) -> None:
    moved(here, there, memory_of(range(100)))
    Move(there, here).end(moved=False)
    back = Move(there, here)
    back.send(memory_of(range(100)))
    assert back.pages("same") == 100


def test_what_is_no_list_of_digests_is_refused(here: Node, there: Node) -> None:
    with pytest.raises(PeerProtocolError, match="no digests"):
        Move(here, there).decoder.peer_has(b"x" * 33)
