"""The source's side: each page takes the cheapest rung that holds it; the rest is compressed."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Final

from attrs import define, field
from novacron import (
    ADDRESS_BYTES,
    BATCH_BYTES_MAX,
    Batch,
    Buffer,
    CodecSession,
    Effort,
    Pressure,
)
from novacron_native_ladder import PAGE_SIZE_MAX, Encoded, References, Rung, Store

from novacron_compression_hde import _frame as fr
from novacron_compression_hde._checkpoint import Checkpoint
from novacron_compression_hde._effort import UNPACKED, UNTOUCHED, effort
from novacron_compression_hde._offer import Offer
from novacron_compression_hde._pagefile import About, PageFile
from novacron_compression_hde._passing import PassingStore, passes
from novacron_compression_hde._settings import Settings
from novacron_compression_hde._store import ReferenceStore, about_session, whole_bytes

log = logging.getLogger("novacron.compression.hde")

# Where "auto" begins: little is lost on a slow link until it has been seen to be one.
_START_LEVEL: Final = -10
# Words of deltas are few: they are packed well even where pages are not.
_DELTA_LEVEL_MIN: Final = 1
_DELTA_LEVEL_MAX: Final = 3
# Looking for pages pays, whatever the link, while it finds this share of them; and once in so many
# batches it is worth a try.
_FOUND_MUCH: Final = 0.5
_FOUND_MEMORY: Final = 0.9
_TRY_EVERY: Final = 32


@define
class Row:
    """What a rung has done."""

    pages: int = 0
    raw_bytes: int = 0
    wire_bytes: int = 0
    seconds: float = 0.0

    def add(self, pages: int, raw_bytes: int, wire_bytes: int, seconds: float) -> None:
        self.pages += pages
        self.raw_bytes += raw_bytes
        self.wire_bytes += wire_bytes
        self.seconds += seconds


@define(eq=False)
class Figures:
    """What all rungs have done. ``lookup`` is the time of finding out which page takes which;
    ``head`` is layout, addresses and operations; ``whole`` are batches that took no rung."""

    rows: dict[str, Row] = field(factory=dict)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def add(
        self, rung: str, pages: int = 0, raw: int = 0, wire: int = 0, seconds: float = 0.0
    ) -> None:
        with self._lock:
            self.rows.setdefault(rung, Row()).add(pages, raw, wire, seconds)

    def table(self) -> dict[str, dict[str, float]]:
        with self._lock:
            return {
                name: {
                    "pages": row.pages,
                    "raw_bytes": row.raw_bytes,
                    "wire_bytes": row.wire_bytes,
                    "seconds": row.seconds,
                }
                for name, row in self.rows.items()
            }


class HdeEncoder:
    """Encodes one session's batches."""

    def __init__(self, settings: Settings, kept: ReferenceStore, session: CodecSession) -> None:
        self._settings = settings
        self._kept = kept
        self._session = session
        self._effort: Effort | None = None
        if isinstance(settings.level, int):
            self._step = settings.level
        else:
            self._effort = effort(
                settings.level_min, settings.level_max, _START_LEVEL, store=settings.store
            )
            self._step = self._effort.step
        self._head = fr.Packer(fr.HEAD_LEVEL)
        self._pages = fr.WidePacker(max(self._step, settings.level_min))
        self._words = fr.Packer(self._words_level())
        self._sampler = fr.Sampler()
        self._offer: Offer | None = None
        self._checkpoint: Checkpoint | None = None
        self._file: PageFile | None = None
        self._store: Store | None = None
        self._references: References | None = None
        self._passing: PassingStore | None = None
        self._seed = 0
        # The description of a checkpoint that the session begins with, until a batch goes out.
        self._untouched: About | None = None
        self._page_size = 0
        self._opening = b""
        self._opening_flags = 0
        self._spent = False
        # A session may end while a batch is being encoded, whose file must not be closed then.
        self._working = threading.Lock()
        self._found = self._passing_found = 0.0
        self._batches = 0
        self._raw_bytes = self._sent_bytes = 0
        # What zstd was given at the level in use, and how long it took.
        self._packed_bytes, self._packed_s = 0, 0.0
        self._figures = Figures()

    @property
    def step(self) -> int:
        """The zstd level of the batches that follow, or `UNPACKED` or `UNTOUCHED`."""
        return self._step

    @property
    def memory_bytes(self) -> int:
        """What the tables of the page store take."""
        return self._store.memory_bytes if self._store is not None else 0

    def have(self) -> bytes:
        """The digest of this machine's checkpoint here. If the destination has the same one, it
        need not say more."""
        if not self._settings.references:
            return b""
        with self._working:
            file = self._kept.checkpoint(self._session)
            if file is None:
                return b""
            self._checkpoint = Checkpoint(file)
            return bytes.fromhex(self._checkpoint.digest)

    def peer_has(self, have: bytes) -> None:
        """Learn what the destination holds, and read what of it is here, too: before the copy, so
        that it does not wait for that. Raises PeerProtocolError if the offer is not sound."""
        self._offer = Offer.unpack(have)
        with self._working:
            if self._offer.page_size >= fr.PAGE_SIZE_LEAST and self._store is None:
                self._begin(self._offer.page_size)

    def encode(self, batch: Batch) -> Buffer:
        if batch.nbytes > BATCH_BYTES_MAX:
            raise ValueError(f"a batch of {batch.nbytes} bytes is larger than {BATCH_BYTES_MAX}")
        with self._working:
            payload = self._encode(batch)
        self._raw_bytes += batch.nbytes
        self._sent_bytes += len(payload)
        return payload

    def adapt(self, pressure: Pressure) -> None:
        if self._effort is None:
            return
        self._effort.adapt(
            pressure,
            self._raw_bytes,
            self._sent_bytes,
            tried_s=self._packed_s,
            tried_bytes=self._packed_bytes,
        )
        self._raw_bytes = self._sent_bytes = self._packed_bytes = 0
        self._packed_s = 0.0
        if self._effort.step == self._step:
            return
        self._step = self._effort.step
        if self._step > UNPACKED:
            self._pages = fr.WidePacker(self._step)
            self._words = fr.Packer(self._words_level())

    def figures(self) -> Mapping[str, Mapping[str, float]]:
        """What each rung has done so far: pages, bytes before and after, seconds."""
        return self._figures.table()

    def ended(self, moved: bool) -> None:
        """The session has ended. What it sent is kept if the destination has it too."""
        with self._working:
            file, self._file = self._file, None
            sound = self._store is not None and not self._spent
            self._store = None
            self._spent = True
            self._leave_checkpoint()
        if file is None:
            return
        if self._untouched is not None:
            self._kept.put_back(file, self._untouched)
        elif not sound or not self._settings.keep:
            file.remove()
        else:
            self._kept.keep(file, "checkpoint" if moved else "partial")

    def _words_level(self) -> int:
        return min(max(self._step, _DELTA_LEVEL_MIN), _DELTA_LEVEL_MAX)

    def _encode(self, batch: Batch) -> bytes:
        begun = time.perf_counter()
        count = batch.page_count
        page_size = len(batch.pages) // count if count else 0
        fits = fr.PAGE_SIZE_LEAST <= page_size <= PAGE_SIZE_MAX and page_size % 64 == 0
        self._batches += 1
        trial = self._batches % _TRY_EVERY == 0
        passing = passes(batch)
        found = self._passing_found if passing else self._found
        untouched = self._step == UNTOUCHED and found < _FOUND_MUCH and not trial
        if passing and not untouched:
            if self._passing is None:
                self._passing = PassingStore(self._seed, by_content=True)
            encoded = self._passing.store.encode(
                batch.addresses,
                batch.pages,
                self._references,
                content=self._settings.dedup,
                delta=False,
            )
            return self._by_ladder(batch, encoded, begun, passing=True)
        if fits and not passing and not untouched and not self._spent:
            if self._store is not None and page_size != self._page_size and self._opening:
                # Begun for what the destination holds, which is of no use to this machine.
                self._forget()
            if self._store is None:
                self._begin(page_size)
            if self._store is not None and page_size == self._page_size:
                self._untouched = None
                try:
                    encoded = self._store.encode(
                        batch.addresses,
                        batch.pages,
                        self._references,
                        content=self._settings.dedup,
                        delta=self._settings.delta,
                    )
                except OSError as error:
                    # The destination's store stays as it was; it is not spoken of any more.
                    self._give_up(error)
                else:
                    return self._by_ladder(batch, encoded, begun)
        payload = self._whole(batch, untouched)
        self._figures.add("whole", count, batch.nbytes, len(payload), time.perf_counter() - begun)
        return payload

    def _by_ladder(
        self, batch: Batch, encoded: Encoded, begun: float, *, passing: bool = False
    ) -> bytes:
        parts, pages = encoded
        count = batch.page_count
        looked = time.perf_counter()
        # The store begins with the first batch that uses it.
        flags = fr.PASSING if passing else self._opening_flags
        opening = b"" if passing else self._opening
        head_raw = b"".join((batch.layout, parts.places, parts.ops, parts.args))
        head = self._head.pack(head_raw)
        if len(head) >= len(head_raw):
            head, flags = head_raw, flags | fr.HEAD_AS_IT_IS
        packed_head = time.perf_counter()
        words_raw = b"".join((parts.masks, parts.words))
        words = self._words.pack(words_raw)
        if words_raw and not fr.gains(words, words_raw):
            words, flags = words_raw, flags | fr.DELTA_AS_IT_IS
        packed_words = time.perf_counter()
        literals: Buffer = parts.literals
        if self._step > UNPACKED and not self._sampler.is_noise(literals):
            began = time.perf_counter()
            literals = self._pages.pack(parts.literals)
            self._packed_s += time.perf_counter() - began
            self._packed_bytes += len(parts.literals)
            if len(parts.literals) and not fr.gains(literals, parts.literals):
                literals = parts.literals
        if literals is parts.literals and len(literals):
            flags |= fr.LITERALS_AS_THEY_ARE
        header = fr.LADDER.pack(
            *(fr.ON_LADDER, flags, count, len(batch.layout), len(parts.places), len(parts.args)),
            *(len(parts.words), len(head), len(words)),
        )
        payload = b"".join((header, opening, head, words, literals))
        done = time.perf_counter()
        if not passing:
            self._opening, self._opening_flags = b"", 0
        if count:
            self._see_found(1 - pages[Rung.LITERAL] / count, passing=passing)
        self._account(batch, encoded, len(payload) - len(words) - len(literals), len(words))
        self._figures.add("literal", wire=len(literals), seconds=done - packed_words)
        self._figures.add("delta", seconds=packed_words - packed_head)
        self._figures.add("head", seconds=packed_head - looked)
        self._figures.add("lookup", seconds=looked - begun)
        return payload

    def _see_found(self, found: float, *, passing: bool) -> None:
        # A disk that is new says nothing of the memory that comes after it.
        if passing:
            self._passing_found += (found - self._passing_found) * (1 - _FOUND_MEMORY)
        else:
            self._found += (found - self._found) * (1 - _FOUND_MEMORY)

    def _account(self, batch: Batch, encoded: Encoded, head: int, words: int) -> None:
        for rung in Rung:
            number = encoded.pages[rung]
            if number:
                page_size = len(batch.pages) // batch.page_count
                self._figures.add(rung.name.lower(), number, number * page_size)
        size = len(batch.layout) + batch.page_count * ADDRESS_BYTES
        self._figures.add("head", raw=size, wire=head)
        self._figures.add("delta", wire=words)

    def _whole(self, batch: Batch, untouched: bool) -> bytes:
        if untouched or self._step <= UNPACKED or self._sampler.is_noise(batch.pages):
            return fr.plain(batch)
        head = self._head.pack(b"".join((batch.layout, batch.addresses)))
        began = time.perf_counter()
        pages = self._pages.pack(batch.pages)
        self._packed_s += time.perf_counter() - began
        self._packed_bytes += len(batch.pages)
        if len(head) + len(pages) >= batch.nbytes:
            return fr.plain(batch)
        lengths = (len(batch.layout), len(batch.addresses), len(batch.pages), len(head))
        return b"".join((fr.PACKED_HEADER.pack(fr.PACKED, *lengths), head, pages))

    def _begin(self, page_size: int) -> None:
        """Open the session's page store, on what the destination holds too if it can be."""
        offer = self._offer
        try:
            room = self._kept.session_bytes_max(self._session, self._settings.session_bytes)
            if offer is not None:
                room = min(room, offer.capacity_bytes)
            capacity = min(room, whole_bytes(self._session)) // page_size
            about = about_session(self._session)
            seed = offer.seed if offer is not None else secrets.randbits(64)
            usable = (
                offer is not None and self._settings.references and offer.page_size == page_size
            )
            self._seed = seed
            if offer is not None and usable and len(offer.hashes):
                self._references = References(offer.hashes)
            based = False
            if offer is not None and usable and offer.baseline:
                based = self._begin_on(offer, capacity, seed)
            self._leave_checkpoint()
            if not based:
                self._file = self._kept.begin(about, page_size, capacity)
                self._store = self._open(self._file, capacity, seed)
        except OSError as error:
            self._give_up(error)
            return
        self._page_size = page_size
        self._opening = fr.BEGIN.pack(page_size, capacity)
        self._opening_flags = fr.BEGINS | (fr.ON_BASELINE if based else 0)

    def _begin_on(self, offer: Offer, capacity: int, seed: int) -> bool:
        """Begin with a checkpoint that both sides have. False if this side has not, or no more."""
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None or checkpoint.digest != offer.baseline:
            if checkpoint is not None:
                checkpoint.close()
            found = self._kept.checkpoint(self._session, offer.baseline)
            if found is None:
                return False
            checkpoint = Checkpoint(found)
        file = checkpoint.file
        if file.page_size != offer.page_size or not file.count <= capacity <= file.capacity:
            checkpoint.close()
            return False
        if self._references is None:
            seed = checkpoint.seed  # there is nothing of the destination's to be found by its own
        if not checkpoint.is_sound():
            log.warning(
                "the checkpoint %s of machine %s is damaged and not used",
                *(file.path.stem, self._session.machine),
            )
            file.remove()
            return False
        self._untouched = file.about
        self._kept.take(file, about_session(self._session))
        self._file = file
        self._store = self._open(file, capacity, seed)
        self._store.load(file.count, checkpoint.hashes(seed))
        self._found = 1.0
        if self._references is not None:
            # Its pages are found in the store; in the destination's file they will change.
            self._references.drop(0, offer.baseline_pages)
        return True

    def _leave_checkpoint(self) -> None:
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is not None:
            checkpoint.close()

    def _open(self, file: PageFile, capacity: int, seed: int) -> Store:
        return Store(
            file.fd,
            file.places,
            page_size=file.page_size,
            capacity=capacity,
            seed=seed,
            by_content=True,
        )

    def _give_up(self, error: Exception) -> None:
        log.warning(
            "session %s goes on without looking for pages: %s", self._session.session, error
        )
        self._spent = True
        self._forget()

    def _forget(self) -> None:
        self._store = self._references = None
        self._opening, self._opening_flags = b"", 0
        if self._file is not None:
            if self._untouched is not None:
                self._kept.put_back(self._file, self._untouched)
                self._untouched = None
            else:
                self._file.remove()
            self._file = None
