"""The benchmarks of attestation and threats: their questions and their folds."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from novacron import ConfigError, NotFound
from novacron_bench._attestation import FILES, cases
from novacron_bench._threats import Records, mean, unseen_kinds, watch_days
from novacron_security_threats import Table

ROOT = Path(__file__).parents[3] / "plugins" / "security-attestation"
SAMPLES = ROOT / "tests" / "evidence"
ROOTS = ROOT / "src" / "novacron_security_attestation" / "roots"


@pytest.mark.slow
def test_real_evidence_answers_every_question_as_it_must(tmp_path: Path) -> None:
    for file in FILES.values():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        folder = ROOTS if path.suffix == ".pem" else SAMPLES
        path.write_bytes((folder / path.name).read_bytes())
    answers = list(cases(tmp_path))
    assert len(answers) > 20
    assert [one for one in answers if not one.right] == []


def test_a_folder_without_evidence_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"report_milan\.bin"):
        list(cases(tmp_path))


def records(kinds: int) -> Table:
    rng = random.Random(1)
    rows = [["web", str(rng.randint(1, 40)), "0", "normal"] for _ in range(150)]
    for k in range(kinds):
        rows += [["web", "0", f"{3 + k + rng.random():.3f}", f"kind{k}"] for _ in range(8)]
    return Table(("service", "bytes", "failures", "label"), rows)


def test_each_kind_is_held_out_once_and_a_threat_among_them_is_judged_as_unseen() -> None:
    data = Records.of(records(8), "label", "normal", ())
    folds = list(unseen_kinds(data, repeats=1, seed=1))
    assert len(folds) == 4
    ways = mean(folds)
    assert ways[0].way == "trees alone, majority"
    assert all(0 <= one.f1 <= 1 and one.unseen is not None for one in ways)
    assert np.mean([one.unseen or 0.0 for one in ways]) > 0.5


def test_records_with_too_few_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 kinds"):
        Records.of(records(3), "label", "normal", ())


def test_simulated_days_are_counted() -> None:
    days = watch_days(2, peers=2, days=1.5)
    assert days.honest_days == 6.0
    assert all(one.played == 2 for one in days.attacks)
