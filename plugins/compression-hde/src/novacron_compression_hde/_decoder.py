"""The destination's side: what it holds, and the way back from a payload to a batch."""

from __future__ import annotations

import logging
import secrets
import threading

import numpy as np
import numpy.typing as npt
from novacron import (
    ADDRESS_BYTES,
    BATCH_BYTES_MAX,
    Batch,
    Buffer,
    CodecSession,
    NovacronError,
    PeerProtocolError,
)
from novacron_native_ladder import (
    PAGE_SIZE_MAX,
    LadderFormatError,
    Origins,
    Parts,
    Rung,
    Store,
    StoreTableError,
)

from novacron_compression_hde import _frame as fr
from novacron_compression_hde._offer import (
    DIGEST_BYTES,
    HASH_BYTES,
    HEADER_BYTES,
    MEMORY_SHARE,
    OFFER_BYTES_MAX,
    Offer,
)
from novacron_compression_hde._pagefile import PageFile
from novacron_compression_hde._passing import PAGE, PassingStore
from novacron_compression_hde._settings import Settings
from novacron_compression_hde._store import Entry, ReferenceStore, about_session, whole_bytes

log = logging.getLogger("novacron.compression.hde")

_PLACE_MAX = 10
_ARG_MAX = 10


class HdeDecoder:
    """Decodes one session's frames."""

    def __init__(self, settings: Settings, kept: ReferenceStore, session: CodecSession) -> None:
        self._settings = settings
        self._kept = kept
        self._session = session
        # Digests of checkpoints that the source has.
        self._at_source: frozenset[str] = frozenset()
        self._baseline: PageFile | None = None
        self._files: list[PageFile] = []
        self._origins: Origins | None = None
        self._file: PageFile | None = None
        self._store: Store | None = None
        self._passing: PassingStore | None = None
        self._page_size = 0
        self._spent = False
        # A session may end while a payload is being decoded, whose files must not be closed then.
        self._working = threading.Lock()
        self._over = False

    @property
    def memory_bytes(self) -> int:
        """What the tables of the page store take."""
        return self._store.memory_bytes if self._store is not None else 0

    def peer_has(self, have: bytes) -> None:
        """Learn which checkpoint the source holds. Raises PeerProtocolError if that is no list of
        digests."""
        if len(have) % DIGEST_BYTES:
            raise PeerProtocolError(f"{len(have)} bytes are no digests of checkpoints")
        starts = range(0, len(have), DIGEST_BYTES)
        self._at_source = frozenset(have[at : at + DIGEST_BYTES].hex() for at in starts)

    def have(self) -> bytes:
        """What this side holds that need not be sent. Reads and hashes all that it names.

        Of a checkpoint that the source has too, its digest says it all.
        """
        limit = min(OFFER_BYTES_MAX, self._session.memory_bytes // MEMORY_SHARE) - HEADER_BYTES
        seed = secrets.randbits(64)
        offered = _Offered(seed, max(0, limit) // HASH_BYTES)
        if self._settings.references:
            for entry in self._kept.useful(self._session, self._settings.share):
                if not offered.room or self._both_have(self._baseline):
                    break
                self._offer(entry, offered)
        self._files = offered.files
        if offered.origins:
            fds = [file.fd for file in offered.files]
            origin, offset = np.concatenate(offered.origins), np.concatenate(offered.offsets)
            self._origins = Origins(fds, origin, offset)
        baseline = self._baseline
        return Offer(
            seed=seed,
            page_size=offered.page_size,
            capacity_bytes=self._kept.session_bytes_max(
                self._session, self._settings.session_bytes
            ),
            baseline=baseline.about.digest if baseline is not None else "",
            baseline_pages=offered.baseline_pages,
            hashes=np.concatenate([np.empty(0, np.uint64), *offered.hashes]),
        ).pack()

    def decode(self, payload: Buffer) -> Batch:
        view = memoryview(payload).cast("B")
        kind = view[0] if view.nbytes else None
        if kind == fr.PLAIN:
            if view.nbytes > fr.PLAIN_BYTES_MAX:
                raise PeerProtocolError(
                    f"a payload holds {view.nbytes} bytes; at most {fr.PLAIN_BYTES_MAX} are allowed"
                )
            return Batch.unpack(view[1:])
        if kind == fr.PACKED:
            return _unpacked(view)
        if kind == fr.ON_LADDER:
            return self._from_ladder(view)
        what = "an empty payload" if kind is None else f"a payload of the unknown kind {kind:#x}"
        raise PeerProtocolError(
            f"{what} came where hde was agreed on",
            hint="both nodes need compatible versions of novacron-compression-hde",
        )

    def ended(self, moved: bool) -> None:
        """The session has ended. What came is kept: whole if the machine moved, else as far as it
        came, so that the next try is cheap. Nothing that was offered has to be distrusted: each
        offer reads and hashes anew."""
        with self._working:
            self._over = True
            file, self._file = self._file, None
            self._store, self._origins = None, None
            for used in self._files:
                used.touch()
                used.close()
            self._files = []
            self._baseline = None
        if file is None:
            return
        if not self._settings.keep:
            file.remove()
        else:
            self._kept.keep(file, "checkpoint" if moved and not self._spent else "partial")

    def _both_have(self, file: PageFile | None) -> bool:
        return file is not None and file.about.digest in self._at_source

    def _offer(self, entry: Entry, offered: _Offered) -> None:
        """Add a reference to what is offered, if it is sound and free."""
        if offered.page_size not in (0, entry.page_size) or not entry.pages:
            return
        file = self._kept.open(entry)
        if file is None:
            return
        about = entry.about
        mine = (about.machine, about.tenant) == (self._session.machine, self._session.tenant)
        may_be_baseline = (
            about.kind == "checkpoint" and mine and self._baseline is None and not offered.files
        )
        try:
            if may_be_baseline and file.lock():
                checked, hashes = file.hashes(file.checking_seed, offered.seed)
                if file.digest(checked) == about.digest:
                    self._baseline = file
                    hashes = hashes[:0] if self._both_have(file) else hashes
                else:
                    log.warning("the checkpoint %s of %s is damaged", entry.id, about.machine)
                file.lock(exclusive=self._baseline is file)
            elif file.lock(exclusive=False):
                # More than there is room for, because some of them will be there already.
                (hashes,) = file.hashes(offered.seed, count=2 * offered.room)
            else:
                file.close()
                return
        except OSError as error:
            log.warning("the reference %s cannot be read: %s", entry.id, error)
            file.close()
            return
        offered.add(file, hashes, is_baseline=self._baseline is file)

    def _begin(self, page_size: int, capacity: int, on_baseline: bool) -> None:
        """The source has begun: make the same page store as it has."""
        if self._over:
            raise NovacronError("a payload came after its session had ended")
        if self._store is not None:
            raise PeerProtocolError("the source began its page store a second time")
        if not fr.PAGE_SIZE_LEAST <= page_size <= PAGE_SIZE_MAX or page_size % 64:
            raise PeerProtocolError(f"the source's pages are said to have {page_size} bytes")
        if capacity * page_size > whole_bytes(self._session):
            raise PeerProtocolError(
                f"the source would have {capacity} pages kept, more than the machine can have"
            )
        baseline, self._baseline = self._baseline, None
        if on_baseline:
            if baseline is None or baseline.page_size != page_size:
                raise PeerProtocolError("the source began with a checkpoint that was not offered")
            if not baseline.count <= capacity <= baseline.capacity:
                raise PeerProtocolError(f"{capacity} pages do not fit the checkpoint offered")
            self._kept.take(baseline, about_session(self._session))
            self._files.remove(baseline)
            if self._origins is not None:
                # Its pages change from now on.
                self._origins.close(0)
            self._file = baseline
        else:
            if baseline is not None:
                baseline.lock(exclusive=False)
            self._file = self._kept.begin(about_session(self._session), page_size, capacity)
        self._page_size = page_size
        self._store = Store(
            self._file.fd,
            self._file.places,
            page_size=page_size,
            capacity=capacity,
            seed=secrets.randbits(64),
            by_content=False,
        )
        if on_baseline:
            self._store.load(self._file.count)

    def _from_ladder(self, view: memoryview) -> Batch:
        try:
            with self._working:
                return self._checked(view)
        except (OSError, StoreTableError) as error:
            self._spent = True
            raise NovacronError(
                f"the page store of session {self._session.session} failed: {error}",
                hint="free disk space below the node's state_dir, or lower session_bytes in "
                "[compression.hde]; then retry the migration",
            ) from error
        except PeerProtocolError:
            self._spent = True
            raise

    def _checked(self, view: memoryview) -> Batch:
        if view.nbytes < fr.LADDER.size:
            raise PeerProtocolError(f"a payload of {view.nbytes} bytes is shorter than its header")
        fields = fr.LADDER.unpack_from(view)
        _, flags, count, layout, places, args, words, head_size, words_size = fields
        if flags & ~fr.FLAGS:
            raise PeerProtocolError(f"a payload has the unknown flags {flags:#x}")
        at = fr.LADDER.size
        if flags & fr.BEGINS:
            if view.nbytes < at + fr.BEGIN.size:
                raise PeerProtocolError("a payload is shorter than its opening")
            page_size, capacity = fr.BEGIN.unpack_from(view, at)
            at += fr.BEGIN.size
            self._begin(page_size, capacity, bool(flags & fr.ON_BASELINE))
        elif flags & fr.ON_BASELINE:
            raise PeerProtocolError("a payload speaks of a checkpoint and opens nothing")
        store, size = self._store, self._page_size
        if flags & fr.PASSING:
            if flags & fr.BEGINS:
                raise PeerProtocolError("a payload opens a page store that it does not use")
            if self._passing is None:
                self._passing = PassingStore(secrets.randbits(64), by_content=False)
            store, size = self._passing.store, PAGE
        if store is None:
            raise PeerProtocolError("a payload needs a page store, and none was opened")
        claimed = layout + count * (ADDRESS_BYTES + size)
        if claimed > BATCH_BYTES_MAX:
            raise PeerProtocolError(
                f"a payload claims {claimed} bytes; at most {BATCH_BYTES_MAX} are allowed"
            )
        if places > count * _PLACE_MAX or args > count * _ARG_MAX or words > count * size:
            raise PeerProtocolError(f"the parts of a payload are too long for its {count} pages")
        if at + head_size + words_size > view.nbytes:
            raise PeerProtocolError("a payload is shorter than the parts in it")
        ends = at + head_size, at + head_size + words_size
        as_it_is = flags & fr.HEAD_AS_IT_IS
        head = memoryview(fr.part(view[at : ends[0]], layout + places + count + args, as_it_is))
        after = layout + places
        ops = head[after : after + count]
        rungs = np.bincount(np.frombuffer(ops, np.uint8), minlength=len(Rung))
        masks = int(rungs[Rung.DELTA]) * (size // 64)
        changed = fr.part(view[ends[0] : ends[1]], masks + words, flags & fr.DELTA_AS_IT_IS)
        delta = memoryview(changed)
        literals = fr.literals_part(
            view[ends[1] :], int(rungs[Rung.LITERAL]) * size, flags & fr.LITERALS_AS_THEY_ARE
        )
        parts = Parts(
            places=head[layout:after],
            ops=ops,
            args=head[after + count :],
            masks=delta[:masks],
            words=delta[masks:],
            literals=literals,
        )
        try:
            addresses, pages = store.decode(parts, self._origins)
        except LadderFormatError as error:
            raise PeerProtocolError(str(error)) from error
        return Batch(head[:layout], addresses, pages)


class _Offered:
    """What is gathered for an offer: hashes that differ, and where their pages are."""

    def __init__(self, seed: int, room: int) -> None:
        self.seed = seed
        self.room = room
        self.page_size = 0
        self.baseline_pages = 0
        self.files: list[PageFile] = []
        self.hashes: list[npt.NDArray[np.uint64]] = []
        self.origins: list[npt.NDArray[np.uint32]] = []
        self.offsets: list[npt.NDArray[np.uint64]] = []
        self._known = np.empty(0, np.uint64)

    def add(self, file: PageFile, hashes: npt.NDArray[np.uint64], *, is_baseline: bool) -> None:
        """Take over a file, and as many of its pages as are new and have room."""
        distinct, first = np.unique(hashes, return_index=True)
        fresh = np.sort(first[~np.isin(distinct, self._known, assume_unique=True)])
        fresh = fresh[: self.room]
        if not len(fresh) and not is_baseline:
            file.close()
            return
        self.page_size = file.page_size
        self.files.append(file)
        if not len(fresh):
            return
        chosen = hashes[fresh]
        self._known = np.union1d(self._known, chosen)
        self.room -= len(fresh)
        if is_baseline:
            self.baseline_pages = len(fresh)
        self.hashes.append(chosen)
        self.origins.append(np.full(len(fresh), len(self.files) - 1, np.uint32))
        offsets = file.places.pages_at + fresh.astype(np.uint64) * np.uint64(file.page_size)
        self.offsets.append(offsets.astype(np.uint64))


def _unpacked(view: memoryview) -> Batch:
    """A batch that went past the page stores."""
    if view.nbytes < fr.PACKED_HEADER.size:
        raise PeerProtocolError(f"a payload of {view.nbytes} bytes is shorter than its header")
    _, layout, addresses, pages, first = fr.PACKED_HEADER.unpack_from(view)
    if layout + addresses + pages > BATCH_BYTES_MAX:
        raise PeerProtocolError(
            f"a payload claims {layout + addresses + pages} bytes; "
            f"at most {BATCH_BYTES_MAX} are allowed"
        )
    count, odd = divmod(addresses, ADDRESS_BYTES)
    if odd or (pages % count if count else pages):
        raise PeerProtocolError(f"{pages} bytes of pages do not fit {addresses} of addresses")
    frames = view[fr.PACKED_HEADER.size :]
    if first > frames.nbytes:
        raise PeerProtocolError("a payload is shorter than the frame in it")
    head = memoryview(fr.unpack(frames[:first], layout + addresses))
    return Batch(head[:layout], head[layout:], fr.unpack_wide(frames[first:], pages))
