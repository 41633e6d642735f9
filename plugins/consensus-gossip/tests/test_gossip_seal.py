"""Sealing, replay, keys and their rotation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron import ConfigError
from novacron_consensus_gossip import _keyring
from novacron_consensus_gossip._seal import (
    CIPHERS,
    DERIVATIONS_PER_S,
    HEADER,
    SEAL_BYTES,
    TOLERANCE_MS,
    WINDOW,
    Key,
    Purpose,
    Seal,
    SealError,
    Window,
)

NOW = 1_700_000_000_000
OLD, NEW = Key(b"o" * 32), Key(b"n" * 32)


def seal(
    *keys: Key,
    cluster: str = "c",
    purpose: Purpose = Purpose.DATAGRAM,
    session: bytes = b"s" * 16,
    cipher: str = "aes-256-gcm",
) -> Seal:
    return Seal(keys or (OLD,), cluster, purpose, session, cipher)


def why(opener: Seal, data: bytes, now: int = NOW) -> str:
    with pytest.raises(SealError) as caught:
        opener.open(now, data)
    assert opener.counts[caught.value.why] >= 1
    return caught.value.why


@pytest.mark.parametrize("cipher", CIPHERS)
def test_what_is_sealed_is_opened_and_hidden(cipher: str) -> None:
    data = seal(cipher=cipher).seal(NOW, b"a secret message")
    assert b"secret" not in data
    assert len(data) == SEAL_BYTES + len(b"a secret message")
    assert seal(session=b"t" * 16).open(NOW, data) == b"a secret message"


def test_every_changed_byte_is_noticed() -> None:
    data = seal().seal(NOW, b"hello")
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        assert why(seal(session=b"t" * 16), bytes(changed)) in ("malformed", "foreign", "forged")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_but_sealed_ones_are_opened(data: bytes) -> None:
    with pytest.raises(SealError):
        seal().open(NOW, data)


@pytest.mark.parametrize(
    ("sender", "reason"),
    [
        (seal(NEW), "foreign"),
        (seal(cluster="another"), "forged"),
        (seal(purpose=Purpose.STREAM), "forged"),
    ],
    ids=["another key", "another cluster", "another purpose"],
)
def test_what_is_not_for_us_is_refused(sender: Seal, reason: str) -> None:
    assert why(seal(session=b"t" * 16), sender.seal(NOW, b"x")) == reason


def test_a_message_is_opened_once() -> None:
    sender, receiver = seal(), seal(session=b"t" * 16)
    first, second = sender.seal(NOW, b"1"), sender.seal(NOW, b"2")
    assert receiver.open(NOW, second) == b"2"
    assert receiver.open(NOW, first) == b"1", "out of order is no replay"
    assert why(receiver, first) == "replayed"
    assert why(receiver, second) == "replayed"


def test_a_message_from_before_the_tolerance_is_refused_though_its_session_is_forgotten() -> None:
    data = seal().seal(NOW, b"x")
    fresh = seal(session=b"t" * 16)
    assert why(fresh, data, NOW + TOLERANCE_MS + 1) == "stale"
    assert why(fresh, data, NOW - TOLERANCE_MS - 1) == "stale"
    assert fresh.open(NOW + TOLERANCE_MS, data) == b"x"


@settings(deadline=None)
@given(st.lists(st.integers(1, 3 * WINDOW), max_size=300))
def test_the_window_is_like_a_set_of_what_was_seen(counters: list[int]) -> None:
    window, seen = Window(), set[int]()
    for counter in counters:
        expected = counter not in seen and counter > max(seen, default=0) - WINDOW
        assert window.is_fresh(counter) == expected
        if expected:
            window.mark(counter)
            seen.add(counter)


def test_a_key_is_changed_without_a_pause() -> None:
    nodes = [seal(OLD, session=bytes([n]) * 16) for n in (1, 2)]

    def all_talk() -> None:
        for sender, receiver in (nodes, nodes[::-1]):
            assert receiver.open(NOW, sender.seal(NOW, b"x")) == b"x"

    for keys in ((OLD, NEW), (NEW, OLD), (NEW,)):
        for node in nodes:
            node.use(keys)
            all_talk()
    assert why(nodes[0], seal(OLD, session=b"z" * 16).seal(NOW, b"x")) == "foreign"


def test_a_known_session_is_refused_when_its_key_is_removed() -> None:
    sender, receiver = seal(OLD), seal(OLD, NEW, session=b"t" * 16)
    receiver.open(NOW, sender.seal(NOW, b"x"))
    receiver.use((NEW,))
    assert why(receiver, sender.seal(NOW, b"x")) == "foreign"


def test_a_flood_of_made_up_sessions_is_bounded_and_members_are_still_heard() -> None:
    sender, receiver = seal(), seal(session=b"t" * 16)
    receiver.open(NOW, sender.seal(NOW, b"x"))
    for number in range(3 * DERIVATIONS_PER_S):
        head = HEADER.pack(1, OLD.id, number.to_bytes(16, "big"), 1)
        with pytest.raises(SealError):
            receiver.open(NOW, head + bytes(SEAL_BYTES))
    assert receiver.counts["forged"] <= DERIVATIONS_PER_S
    assert receiver.counts["flooded"] >= 2 * DERIVATIONS_PER_S
    assert len(receiver._sessions) == 1, "who has no key gets no place"
    assert receiver.open(NOW, sender.seal(NOW, b"still here")) == b"still here"
    newcomer = seal(session=b"n" * 16)
    assert why(receiver, newcomer.seal(NOW, b"x")) == "flooded"
    assert receiver.open(NOW + 1_000, newcomer.seal(NOW, b"x")) == b"x"


def test_a_key_does_not_show_itself() -> None:
    assert "oooo" not in repr(OLD)
    assert OLD.id.hex() in repr(OLD)


# The file.


def test_keys_come_back_from_their_file_which_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    _keyring.write(path, (NEW, OLD))
    assert _keyring.read(path) == (NEW, OLD)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    _keyring.write(path, (OLD,))
    path.chmod(mode)
    with pytest.raises(ConfigError, match="others than its owner") as caught:
        _keyring.read(path)
    assert "chmod 600" in caught.value.hint


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        _keyring.read(tmp_path / "keys")
    assert "novacron gossip keys new" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "holds no key"),
        (b"# nothing\n\n", "holds no key"),
        (b"# one\nc2hvcnQ=\n", "line 2"),
        (b"\xff\xfe\n", "line 1"),
        (b"b29vb29vb29vb29vb29vb29vb29vb29vb29vb29vb28=\n" * 2, "twice"),
    ],
)
def test_what_is_no_keyring_is_refused_by_its_line(text: bytes, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        _keyring.parse(text, "the file")
    assert "b29v" not in str(caught.value)


def test_too_many_keys_and_a_folder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    _keyring.write(path, tuple(Key(os.urandom(32)) for _ in range(17)))
    with pytest.raises(ConfigError, match="16 are the most"):
        _keyring.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        _keyring.read(tmp_path)


def test_a_full_disk_leaves_the_old_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    _keyring.write(path, (OLD,))

    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            _keyring.write(path, (NEW,))
    assert _keyring.read(path) == (OLD,)
    assert [one.name for one in tmp_path.iterdir()] == ["keys"]
