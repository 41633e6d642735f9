"""Effects are values."""

from __future__ import annotations

from novacron_agreement import Commit, Effect, Note, Readable, Rejected, Restore, Save, Send


def test_effects_are_compared_by_what_they_say() -> None:
    assert Send("b", b"m") == Send("b", b"m")
    assert Save((b"r",)) != Save((b"r",), replaces=True)
    assert Commit(1, b"c") != Commit(1, b"c", 7)
    every = (Restore(1, b""), Readable(1, 1), Rejected(1, "busy"), Note("leader"))
    assert all(isinstance(effect, Effect) for effect in every)
