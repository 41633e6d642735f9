from collections.abc import Callable
from typing import Any

from _typeshed import ReadableBuffer

class CData:
    def __getitem__(self, index: int) -> int: ...
    def __getattr__(self, name: str) -> Any: ...

class _FFI:
    NULL: CData
    def from_buffer(
        self, cdecl: str, python_buffer: ReadableBuffer, require_writable: bool = ...
    ) -> CData: ...
    def new(self, cdecl: str, init: int = ...) -> Any: ...
    def gc(self, cdata: CData, destructor: Callable[[CData], None] | None) -> CData: ...
    def buffer(self, cdata: CData) -> Any: ...
    def new_allocator(
        self, *, should_clear_after_alloc: bool = ...
    ) -> Callable[[str, int], CData]: ...

class _Lib:
    NLD_PAGE_SIZE_MIN: int
    NLD_PAGE_SIZE_MAX: int
    NLD_PLACE_MAX: int
    NLD_ARG_MAX: int
    NLD_FIND_CONTENT: int
    NLD_FIND_DELTA: int
    NLD_BAD_PLACE: int
    NLD_BAD_OPERATION: int
    NLD_BAD_ARGUMENT: int
    NLD_BAD_LENGTH: int
    NLD_NO_MEMORY: int
    NLD_IO: int
    NLD_BAD_TABLE: int
    def nld_store_new(
        self,
        fd: int,
        count_at: int,
        addresses_at: int,
        pages_at: int,
        page_size: int,
        capacity: int,
        by_content: int,
        seed: int,
    ) -> CData: ...
    def nld_store_free(self, s: CData) -> None: ...
    def nld_store_count(self, s: CData) -> int: ...
    def nld_errno(self, s: CData) -> int: ...
    def nld_store_memory(self, s: CData) -> int: ...
    def nld_store_load(self, s: CData, count: int, hashes: CData) -> int: ...
    def nld_references_new(self, hashes: CData, count: int) -> CData: ...
    def nld_references_free(self, r: CData) -> None: ...
    def nld_references_drop(self, r: CData, first: int, count: int) -> None: ...
    def nld_encode(
        self,
        s: CData,
        references: CData,
        find: int,
        addresses: CData,
        pages: CData,
        count: int,
        places: CData,
        ops: CData,
        args: CData,
        masks: CData,
        words: CData,
        literals: CData,
        encoded: CData,
    ) -> int: ...
    def nld_decode(
        self,
        s: CData,
        origins: CData,
        parts: CData,
        count: int,
        addresses: CData,
        pages: CData,
    ) -> int: ...
    def nld_hash_pages(
        self, data: CData, count: int, page_size: int, seed: int, hashes: CData
    ) -> None: ...
    def nld_hash_file(
        self,
        fd: int,
        at: int,
        count: int,
        page_size: int,
        seed: int,
        hashes: CData,
        second_seed: int,
        second: CData,
        work: CData,
        work_size: int,
    ) -> int: ...

ffi: _FFI
lib: _Lib
