"""Traces are kept and replayed, batch for batch."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from novacron import Batch, ConfigError, InternalError, PluginManager, ShellState
from novacron_bench import _trace
from novacron_bench._commands import bench
from novacron_bench._ladder import Replay
from novacron_bench._trace import read_trace, write_trace

PAGE = 4096


def batches(seed: int = 1, count: int = 6) -> list[tuple[float, Batch]]:
    chance = random.Random(seed)
    return [
        (
            number / 8,
            Batch(
                layout=b"section",
                addresses=b"".join(
                    (number * 32 + page).to_bytes(8, "little") for page in range(32)
                ),
                pages=b"".join(chance.randbytes(64) * 64 for _ in range(32)),
            ),
        )
        for number in range(count)
    ]


def parts(batch: Batch) -> tuple[bytes, bytes, bytes]:
    return bytes(batch.layout), bytes(batch.addresses), bytes(batch.pages)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "kv.cold.trace"
    assert write_trace(path, {"workload": "kv"}, iter(batches())) == 6
    return path


def test_a_trace_gives_back_the_batches_and_their_times(trace: Path) -> None:
    read = list(read_trace(trace))
    assert [at_s for at_s, _ in read] == [at_s for at_s, _ in batches()]
    assert [parts(batch) for _, batch in read] == [parts(batch) for _, batch in batches()]


def test_what_is_no_trace_or_was_cut_off_is_refused_by_its_name(
    trace: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.trace"
    other.write_bytes(b"what is this")
    cut = tmp_path / "cut.trace"
    cut.write_bytes(trace.read_bytes()[:-40])
    for path in (other, cut):
        with pytest.raises(ConfigError, match=path.name):
            list(read_trace(path))


def test_a_trace_of_an_endless_batch_is_refused_before_it_is_read(
    trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trace, "RECORD_BYTES_MAX", 100_000)
    with pytest.raises(ConfigError, match="a batch of"):
        list(read_trace(trace))


def test_a_replay_counts_what_went_in_and_came_out(trace: Path) -> None:
    replay = Replay(PluginManager.load(), "zstd", {"level": 1})
    try:
        rungs = replay.run("kv cold", trace, rate_bytes_per_s=1e6)
    finally:
        replay.close()
    assert rungs.raw_bytes == sum(batch.nbytes for _, batch in batches())
    assert rungs.pages == 6 * 32
    assert 10 < rungs.ratio < 100
    assert rungs.encode_s >= 0 <= rungs.decode_s


class _Liar:
    """A codec that gives back another batch than it was given."""

    def encode(self, batch: Batch) -> bytes:
        return batch.pack()

    def decode(self, payload: bytes) -> Batch:
        return Batch(layout=b"something else")

    def adapt(self, pressure: object) -> None: ...

    def encoder(self, session: object) -> _Liar:
        return self

    decoder = encoder


def test_a_codec_that_gives_back_another_batch_is_found_out(trace: Path) -> None:
    replay = Replay(PluginManager.load(), "zstd", {})
    replay._providers = {"a": _Liar(), "b": _Liar()}
    try:
        with pytest.raises(InternalError, match="another batch"):
            replay.run("kv cold", trace, rate_bytes_per_s=1e6)
    finally:
        replay.close()


def test_the_command_replays_a_trace_and_those_beside_it(trace: Path) -> None:
    trace.with_name("kv.warm.trace").write_bytes(trace.read_bytes())
    ran = CliRunner().invoke(
        bench, ["ladder", str(trace), "--compression", "zstd"], obj=ShellState(json=True)
    )
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    assert [one["trace"] for one in said] == ["kv cold", "kv warm"]
    assert all(one["ratio"] > 1 for one in said)
