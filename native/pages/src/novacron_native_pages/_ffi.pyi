from collections.abc import Callable
from typing import Any

from _typeshed import ReadableBuffer

class CData:
    def __getitem__(self, index: int) -> int: ...
    def __getattr__(self, name: str) -> Any: ...
    def __add__(self, other: int) -> CData: ...
    def __enter__(self) -> CData: ...
    def __exit__(self, *unused: object) -> None: ...

class _FFI:
    NULL: CData
    def from_buffer(
        self, cdecl: str, python_buffer: ReadableBuffer, require_writable: bool = ...
    ) -> CData: ...
    def new(self, cdecl: str, init: int = ...) -> CData: ...
    def gc(
        self, cdata: CData, destructor: Callable[[CData], None] | None, size: int = ...
    ) -> CData: ...
    def string(self, cdata: Any) -> bytes: ...
    def buffer(self, cdata: CData) -> Any: ...
    def new_allocator(
        self, *, should_clear_after_alloc: bool = ...
    ) -> Callable[[str, int], CData]: ...

class _Lib:
    NPG_PAGES_TARGET: int
    NPG_LAYOUT_TARGET: int
    NPG_JOINED_TARGET: int
    NPG_LAYOUT_MAX: int
    NPG_JOINED_MAX: int
    NPG_PAGE_BITS_MIN: int
    NPG_PAGE_BITS_MAX: int
    NPG_BLOCKS_MAX: int
    def npg_zero_pages(self, data: CData, count: int, page_size: int, bitmap: CData) -> int: ...
    def npg_changed_pages(
        self, old: CData, now: CData, count: int, page_size: int, indices: CData
    ) -> int: ...
    def npg_take_changed(
        self,
        old: CData,
        now: CData,
        count: int,
        page_size: int,
        out: CData,
        room: int,
        indices: CData,
        next: CData,
    ) -> int: ...
    def npg_hash_pages(self, data: CData, count: int, page_size: int, hashes: CData) -> None: ...
    def npg_splitter_new(self, page_bits: int) -> CData: ...
    def npg_splitter_free(self, s: CData) -> None: ...
    def npg_split(
        self,
        s: CData,
        data: CData,
        size: int,
        used: CData,
        layout: CData,
        addresses: CData,
        pages: CData,
    ) -> int: ...
    def npg_take(
        self, s: CData, all: int, layout: CData, layout_size: CData, page_count: CData
    ) -> None: ...
    def npg_count(self, s: CData, counters: CData) -> None: ...
    def npg_join(
        self,
        layout: CData,
        layout_size: int,
        addresses: CData,
        addresses_size: int,
        pages: CData,
        pages_size: int,
        out: CData,
        out_size: int,
    ) -> int: ...

ffi: _FFI
lib: _Lib
