"""The relay's bench on a small guest: both ways deliver, and every figure is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from novacron import ConfigError, InternalError
from novacron_bench import RelaySetup, novacron_register_commands, run_relay
from novacron_bench._image import PAGE, write_image
from novacron_native_pages import JOINED_MAX, Splitter, join_into

MIB = 1 << 20


def files(tmp_path: Path) -> str:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_bytes(bytes([65 + number]) * (3 * PAGE))
    (folder / "packed.gz").write_bytes(b"z" * PAGE)
    return str(folder)


def test_an_image_is_a_stream_of_all_pages_that_splits_and_joins_to_itself(tmp_path: Path) -> None:
    image = write_image(tmp_path / "stream", 16 * MIB, zero_percent=30, sources=[files(tmp_path)])
    stream = image.path.read_bytes()
    assert image.stream_bytes == len(stream)
    assert b"zzzz" not in stream
    splitter, room = Splitter(), bytearray(JOINED_MAX)
    pieces = [*splitter.feed(stream), *splitter.flush(everything=True)]
    assert b"".join(bytes(room[: join_into(room, *piece)]) for piece in pieces) == stream
    seen = splitter.counters
    assert (seen.pages + seen.zero_pages) * PAGE == image.guest_bytes == seen.ram_bytes
    assert image.zero_percent == pytest.approx(30, abs=3)


def test_the_same_seed_makes_the_same_image(tmp_path: Path) -> None:
    source = files(tmp_path)
    one = write_image(tmp_path / "one", MIB, sources=[source])
    two = write_image(tmp_path / "two", MIB, sources=[source])
    assert one.path.read_bytes() == two.path.read_bytes()


def test_no_contents_to_make_an_image_of_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file in"):
        write_image(tmp_path / "stream", MIB, zero_percent=0, sources=[str(tmp_path / "none")])


def test_both_ways_deliver_the_stream_and_say_what_it_cost(tmp_path: Path) -> None:
    image = write_image(tmp_path / "stream", 24 * MIB, sources=[files(tmp_path)])
    result = run_relay(RelaySetup(stream=image.path))
    assert result.image.guest_bytes == 24 * MIB
    assert result.plain.wire_bytes == image.stream_bytes
    # Three letters over and over: nothing would be left of them but for the frames.
    assert 0 < result.relay.wire_bytes < image.stream_bytes / 10
    for way in (result.plain, result.relay):
        assert way.guest_bytes_per_s > 0
        assert way.cpu_s_per_gib > 0
        assert MIB < way.source_peak_bytes < 300 * MIB
        assert MIB < way.destination_peak_bytes < 300 * MIB


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    (bench,) = novacron_register_commands()
    text = CliRunner().invoke(bench, ["relay", "--memory", "4MiB"], catch_exceptions=False)
    assert "plain forwarding" in text.output
    assert "CPU per GiB of guest" in text.output
    found = CliRunner().invoke(
        bench, ["relay", "--memory", "4MiB", "--json"], catch_exceptions=False
    )
    result = json.loads(found.output)
    assert result["image"]["guest_bytes"] == 4 * MIB
    assert {"plain", "relay", "ratio", "cores", "pages"} <= set(result)


def test_a_file_that_is_no_stream_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"not a stream" * 1000)
    with pytest.raises(ConfigError, match="holds no pages") as caught:
        run_relay(RelaySetup(stream=tmp_path / "other"))
    assert caught.value.hint


def test_a_provider_that_is_not_there_ends_the_bench(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="process of the bench"):
        run_relay(RelaySetup(memory_bytes=MIB, compression="none-such"))


def test_a_setting_reaches_the_compression(tmp_path: Path) -> None:
    image = write_image(tmp_path / "stream", 4 * MIB, sources=[files(tmp_path)])
    (bench,) = novacron_register_commands()
    for level, least, most in ((-50, 1, image.stream_bytes), ("no", 0, 0)):
        done = CliRunner().invoke(
            bench, ["relay", "--stream", str(image.path), "--set", f"level={level}", "--json"]
        )
        assert bool(done.exit_code) == (not most)
        if most:
            assert least < json.loads(done.output)["relay"]["wire_bytes"] < most


def test_a_setting_without_a_value_is_refused() -> None:
    (bench,) = novacron_register_commands()
    assert CliRunner().invoke(bench, ["relay", "--set", "level"]).exit_code == 2


@pytest.mark.parametrize("size", ["1XiB", "-1", "many"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    (bench,) = novacron_register_commands()
    done = CliRunner().invoke(bench, ["relay", "--memory", size])
    assert done.exit_code == 2
