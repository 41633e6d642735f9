"""Builds `novacron_native_pages._ffi`: the functions of c/novacron_pages.h, and no policy.

`optional` lets an installation go on where there is no compiler. The constants and prototypes are
cut out of the header, so that they are written once.
"""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent


def declarations() -> str:
    """The header as cffi's parser takes it: no comments, no includes, no macros but numbers."""
    text = (HERE / "c" / "novacron_pages.h").read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"^#define (NPG_\w+) \S.*$", r"@define \1 ...", text, flags=re.MULTILINE)
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    return text.replace("@define", "#define")


ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "novacron_native_pages._ffi",
    '#include "novacron_pages.h"',
    sources=["c/pages.c", "c/stream.c"],
    include_dirs=["c"],
    depends=["c/novacron_pages.h"],
    extra_compile_args=["-std=c11", "-O3"],
    optional=True,
)
