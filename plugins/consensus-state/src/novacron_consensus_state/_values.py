"""Values as the user gives them, and as they are kept: canonical MessagePack, bounded."""

from __future__ import annotations

from typing import Any, Final

import msgspec

VALUE_BYTES_MAX: Final = 64 << 10
NAME_CHARS_MAX: Final = 512
_DEPTH_MAX: Final = 32
_NUMBER_MAX: Final = 1 << 63

_encoder: Final = msgspec.msgpack.Encoder(order="deterministic")
_decoder: Final = msgspec.msgpack.Decoder()


def pack(value: Any) -> bytes:
    """Equal values give equal bytes: they may be elements of a set.

    Raises: ValueError for what is no plain data, or too much of it.
    """
    _plain(value, 0)
    try:
        data = _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise ValueError(f"{value!r:.80} cannot be kept: {error}") from error
    if len(data) > VALUE_BYTES_MAX:
        raise ValueError(
            f"a value of {len(data)} bytes; the most is {VALUE_BYTES_MAX}: keep a reference to it"
        )
    return data


def unpack(data: bytes) -> Any:
    """Raises: ValueError for what `pack` cannot have made."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise ValueError(f"a value is damaged: {error}") from error


def check_packed(data: bytes) -> None:
    """Raises: ValueError for a packed value from a peer that is no sound one."""
    if len(data) > VALUE_BYTES_MAX:
        raise ValueError(f"a value of {len(data)} bytes")
    _plain(unpack(data), 0)


def _plain(value: Any, depth: int) -> None:
    if depth > _DEPTH_MAX:
        raise ValueError(f"a value is nested more than {_DEPTH_MAX} levels deep")
    if isinstance(value, dict):
        for key, below in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r:.40} of a table is no text")
            _plain(below, depth + 1)
    elif isinstance(value, list | tuple):
        for below in value:
            _plain(below, depth + 1)
    elif isinstance(value, int) and not isinstance(value, bool):
        if not -_NUMBER_MAX <= value < _NUMBER_MAX:
            raise ValueError(f"the number {value:.3e} does not fit into 64 bits")
    elif value is not None and not isinstance(value, bool | float | str | bytes):
        raise ValueError(f"a {type(value).__name__} is no plain data")
