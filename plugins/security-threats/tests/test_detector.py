"""The detector of records: what it was shown, what it was never shown, and its file."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novacron import ConfigError, NotFound
from novacron_security_threats import Detector, Table, parse_table, read_table, train

COLUMNS = ("service", "bytes", "rate", "failures")


def record(rng: random.Random, kind: str) -> list[str]:
    if kind == "normal":
        service = rng.choice(("http", "http", "smtp", "dns"))
        return [service, str(int(rng.lognormvariate(7, 1))), f"{rng.uniform(0, 0.3):.2f}", "0"]
    if kind == "flood":
        return ["http", "0", f"{rng.uniform(0.9, 1):.2f}", "0"]
    if kind == "guess":
        return ["smtp", "120", "0.10", str(rng.randint(3, 6))]
    # Never shown in a training: as ordinary as can be, but for its size.
    return ["dns", str(int(rng.lognormvariate(14, 0.5))), "0.10", "0"]


def made(seed: int, *kinds: str, each: int = 150) -> tuple[Table, list[str]]:
    rng = random.Random(seed)
    labels = ["normal"] * 600 + [kind for kind in kinds for _ in range(each)]
    return Table(COLUMNS, [record(rng, kind) for kind in labels]), labels


@pytest.fixture(scope="module")
def detector() -> Detector:
    table, labels = made(1, "flood", "guess")
    return train(table, labels, "normal", origin="made for tests")


def shares(detector: Detector, kind: str) -> float:
    rng = random.Random(2)
    table = Table(COLUMNS, [record(rng, kind) for _ in range(300)])
    return float((detector.scores(table) > detector.threshold()).mean())


def test_what_was_shown_is_found_and_ordinary_records_mostly_pass(detector: Detector) -> None:
    assert shares(detector, "flood") > 0.97
    assert shares(detector, "guess") > 0.97
    assert shares(detector, "normal") < 0.08


def test_what_was_never_shown_is_found_as_well(detector: Detector) -> None:
    assert shares(detector, "carry-away") > 0.9


def test_a_score_has_reasons_that_name_the_unusual_features(detector: Detector) -> None:
    rng = random.Random(3)
    guess = detector.explain(Table(COLUMNS, [record(rng, "guess")]))
    assert guess.threat
    assert guess.known > 0.9
    assert guess.reasons[0].startswith("failures is ")
    away = detector.explain(Table(COLUMNS, [record(rng, "carry-away")]))
    assert away.threat
    assert any(reason.startswith("bytes is ") for reason in away.reasons)
    odd = detector.explain(Table(COLUMNS, [["telnet", "900", "0.1", "0"]]))
    assert any("'telnet', which was never seen" in reason for reason in odd.reasons)


def test_one_records_score_is_that_of_the_table(detector: Detector) -> None:
    table, _ = made(4, "flood", "carry-away", each=20)
    scores = detector.scores(table)
    for place in range(0, len(scores), 37):
        assert detector.explain(table, place).score == pytest.approx(scores[place], abs=2e-2)


def test_more_false_alarms_allow_a_lower_threshold(detector: Detector) -> None:
    thresholds = [detector.threshold(share) for share in (0.001, 0.01, 0.05, 0.2)]
    assert thresholds == sorted(thresholds, reverse=True)


def test_a_training_is_the_same_for_the_same_seed() -> None:
    table, labels = made(5, "flood", each=40)
    one, other = (train(table, labels, "normal", seed=9) for _ in range(2))
    assert np.array_equal(one.scores(table), other.scores(table))


def test_a_model_comes_back_from_its_file(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model")
    table, _ = made(6, "guess", each=20)
    assert np.array_equal(loaded.scores(table), detector.scores(table))
    assert loaded.origin == "made for tests"
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o600


@pytest.fixture(scope="module")
def saved(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "model"
    detector.save(path)
    return path.read_bytes()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_model_is_refused_or_judges_within_bounds(
    saved: bytes, data: st.DataObject
) -> None:
    changed = bytearray(saved)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(saved) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    table, _ = made(7, each=1)
    with contextlib.suppress(ValueError, ConfigError):
        loaded = Detector.decode(bytes(changed))
        assert len(loaded.scores(Table(COLUMNS, table.rows[:5]))) == 5


@pytest.mark.parametrize("content", [b"", b"\x80", b"novacron"])
def test_what_is_no_model_is_refused_with_the_next_step(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ConfigError, match="no sound model") as caught:
        Detector.load(tmp_path / "model")
    assert caught.value.hint
    with pytest.raises(NotFound):
        Detector.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"", "0 columns"),
        (b"a,a\n1,2\n", "two of one name"),
        (b"a,b\n", "no records"),
        (b"a,b\n1\n", "line 2 of"),
        (b"a,b\n1," + b"x" * 5000 + b"\n", "too long"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_its_line(text: bytes, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        parse_table(text, "records.csv")


def test_a_table_without_a_column_or_with_a_word_for_a_number_is_refused(
    detector: Detector, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no column 'failures'"):
        detector.scores(Table(COLUMNS[:3], [["http", "1", "0.1"]]))
    with pytest.raises(ConfigError, match="'bytes' should hold numbers"):
        detector.scores(Table(COLUMNS, [["http", "many", "0.1", "0"]]))
    with pytest.raises(ConfigError, match="beyond all bounds"):
        detector.scores(Table(COLUMNS, [["http", "inf", "0.1", "0"]]))
    with pytest.raises(NotFound):
        read_table(tmp_path / "none.csv")


def test_too_few_records_are_no_training() -> None:
    table, labels = made(1, each=1)
    with pytest.raises(ConfigError, match="0 threats"):
        train(table, labels, "normal")
