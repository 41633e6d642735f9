"""Pages of disks: found among images at the destination, and no burden on the store of memory's."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from pathlib import Path

from attrs import evolve
from novacron import Batch, CodecSession, NodeFacts
from novacron_compression_hde import HdeCompression, HdeDecoder, HdeEncoder, Settings
from novacron_compression_hde._images import add_image

PAGE = 4096
DISK = 1 << 63
SESSION = CodecSession(
    session="mig-1",
    machine="m",
    driver="qemu",
    peer="there",
    tenant="t",
    memory_bytes=64 << 20,
    role="source",
)


def pages_of(seed: int, count: int) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(PAGE) for _ in range(count)]


class Ends:
    """Both ends of a session, without a link."""

    def __init__(self, folder: Path) -> None:
        self.nodes = {}
        for name in ("here", "there"):
            (folder / name).mkdir()
            facts = NodeFacts(name=name, state_dir=folder / name)
            self.nodes[name] = HdeCompression(Settings(level=1), facts)

    def begin(self) -> None:
        here, there = self.nodes["here"], self.nodes["there"]
        encoder = here.encoder(SESSION)
        decoder = there.decoder(evolve(SESSION, role="destination", peer="here"))
        assert isinstance(encoder, HdeEncoder)
        assert isinstance(decoder, HdeDecoder)
        self.encoder, self.decoder = encoder, decoder
        decoder.peer_has(encoder.have())
        encoder.peer_has(decoder.have())

    def send(self, pages: Sequence[bytes], first: int) -> int:
        """Send pages from an address on; how many bytes that took. They must arrive."""
        addresses = struct.pack(f"<{len(pages)}Q", *(first + at * PAGE for at in range(len(pages))))
        batch = Batch(b"layout", addresses, b"".join(pages))
        payload = self.encoder.encode(batch)
        got = self.decoder.decode(payload)
        assert (bytes(got.layout), bytes(got.addresses)) == (b"layout", addresses)
        assert bytes(got.pages) == batch.pages
        return len(payload)

    def count(self, rung: str) -> float:
        return self.encoder.figures().get(rung, {"pages": 0})["pages"]


def test_an_image_that_differs_by_a_byte_costs_the_page_that_the_byte_is_in(tmp_path: Path) -> None:
    pages = pages_of(1, 256)
    image = tmp_path / "base.raw"
    image.write_bytes(b"".join(pages))
    ends = Ends(tmp_path)
    add_image(
        ends.nodes["there"].kept, image, name="base", tenant="", progress=lambda done, total: None
    )
    ends.begin()
    pages[77] = pages[77][:100] + bytes([pages[77][100] ^ 1]) + pages[77][101:]
    sent = ends.send(pages, DISK + (1 << 48))
    assert (ends.count("reference"), ends.count("literal")) == (255, 1)
    assert sent < 2 * PAGE


def test_pages_of_a_disk_take_no_place_of_memory(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    ends.begin()
    for batch in range(4):
        ends.send(pages_of(100 + batch, 256), DISK + batch * 256 * PAGE)
    memory = pages_of(2, 200)
    ends.send(memory, 0)
    ends.send(pages_of(3, 256), DISK)
    assert ends.send(memory, 0) < PAGE
    assert ends.count("same") == 200
    ends.encoder.ended(True)
    ends.decoder.ended(True)
    for node in ends.nodes.values():
        assert [entry.pages for entry in node.kept.entries()] == [200]


def test_zeros_of_a_disk_cost_hardly_anything(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    ends.begin()
    assert ends.send([bytes(PAGE)] * 256, DISK) < 256
