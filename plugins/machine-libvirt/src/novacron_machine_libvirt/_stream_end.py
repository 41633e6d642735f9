"""Where a migration stream ends, for a source that waits for an answer before it closes it.

libvirt always asks QEMU for the return path: the source's QEMU keeps the stream open until the
destination's has said on it that it is done (MIG_RP_MSG_SHUT, docs/devel/migration/main.rst). Here
the destination is far away and its word does not come back on this stream, and the source's end
need not wait for it: the hand-over has verified proof of its own. So the relay sees where the
stream ends and gives that answer itself.

The end can be seen: QEMU's last words are a byte 0 (no more sections), a byte 6, a length and a
JSON text of that length that describes the devices.
"""

from __future__ import annotations

import json
from typing import Final

# type 1 (SHUT), 4 bytes: no error; all big-endian.
DONE: Final = b"\x00\x01\x00\x04\x00\x00\x00\x00"

_MARK: Final = b"\x00\x06"
_HEAD: Final = 6
# The devices' state and their description; a large machine has some MiB of both.
_TAIL_MAX: Final = 64 << 20


class StreamEnd:
    """Watches the bytes that pass, from where the devices' state begins."""

    def __init__(self) -> None:
        self._tail = bytearray()
        self._seen = False

    def feed(self, data: memoryview) -> bool:
        """Whether the stream has ended with these bytes; True once and for all."""
        if self._seen:
            return True
        self._tail += data
        del self._tail[: max(0, len(self._tail) - _TAIL_MAX)]
        self._seen = self._ends()
        return self._seen

    def _ends(self) -> bool:
        tail = self._tail
        if not tail.endswith(b"}"):
            return False
        at = tail.find(_MARK)
        while at >= 0:
            length = int.from_bytes(tail[at + 2 : at + _HEAD])
            if at + _HEAD + length == len(tail) and tail[at + _HEAD : at + _HEAD + 1] == b"{":
                try:
                    described = json.loads(tail[at + _HEAD :])
                except ValueError:
                    pass
                else:
                    return isinstance(described, dict) and "devices" in described
            at = tail.find(_MARK, at + 1)
        return False
