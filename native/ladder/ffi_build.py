"""Builds `novacron_native_ladder._ffi`: the functions of c/novacron_ladder.h, and no policy.

`optional` lets an installation go on where there is no compiler. The constants and prototypes are
cut out of the header, so that they are written once.
"""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent


def declarations() -> str:
    """The header as cffi's parser takes it: no comments, no includes, no macros but numbers."""
    text = (HERE / "c" / "novacron_ladder.h").read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"^#define (NLD_\w+) \S.*$", r"@define \1 ...", text, flags=re.MULTILINE)
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    return text.replace("@define", "#define")


ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "novacron_native_ladder._ffi",
    '#include "novacron_ladder.h"',
    sources=["c/hash.c", "c/store.c", "c/encode.c", "c/decode.c"],
    include_dirs=["c"],
    depends=["c/novacron_ladder.h", "c/inside.h"],
    extra_compile_args=["-std=c11", "-O3", "-D_DEFAULT_SOURCE", "-D_FILE_OFFSET_BITS=64"],
    optional=True,
)
