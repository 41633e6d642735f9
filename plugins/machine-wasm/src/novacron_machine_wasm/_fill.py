"""What a machine's memory is filled with, so that it looks as if it had worked for a while."""

from __future__ import annotations

from typing import Final

from blake3 import blake3

_ROW: Final = 64
_WORDS: Final = 5


def fill_pattern(nbytes: int, seed: bytes) -> bytearray:
    """Bytes such as a busy machine holds: five eighths words, the rest noise. Same for a seed.

    Made by column: each line below handles as many bytes as there are rows.
    """
    words = blake3(b"words" + seed).digest(length=256 * 8)
    rows = -(-nbytes // _ROW)
    noise = blake3(b"noise" + seed).digest(length=rows * 32)
    out = bytearray(rows * _ROW)
    for column in range(_WORDS):
        chosen = noise[column::32]
        for byte in range(8):
            out[8 * column + byte :: _ROW] = chosen.translate(words[byte::8])
    for byte in range(8, 32):
        out[8 * _WORDS + byte - 8 :: _ROW] = noise[byte::32]
    del out[nbytes:]
    return out
