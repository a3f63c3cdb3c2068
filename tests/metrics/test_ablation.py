"""The table of an ablation against numbers worked out by hand, and the trainings that come with the project."""

from pathlib import Path

import numpy as np
import pytest

from hepattn.metrics import ablation
from hepattn.metrics.ablation import Run, difference, frame, pooled_spread, read_runs, shipped_runs


def run(variant: str, seed: int, auc: float, speed: float | None = None) -> Run:
    return Run(variant, seed, 100, 7, auc, 0.5 + auc / 10, 0.4, 0.9, auc / 2, (1.0, 0.5), speed)


@pytest.fixture
def runs() -> list[Run]:
    """Deviations from the mean: 0.01 and -0.01 in the baseline and in "better", none in "alike"."""
    made = [run("alike", 1, 0.905), run("baseline", 1, 0.89, 20.0), run("baseline", 2, 0.91), run("alike", 2, 0.905)]
    return [*made, run("better", 1, 0.94), run("better", 2, 0.96, 10.0)]


def test_frame_by_hand(runs):
    spread = np.sqrt((4 * 0.01**2) / 3)
    assert np.isclose(pooled_spread(runs), spread)
    table = frame(runs)
    assert list(table.index) == ["baseline", "better", "alike"]
    assert np.allclose(table["AUC"], [0.9, 0.95, 0.905])
    assert np.allclose(table["difference"], [np.nan, 0.05, 0.005], equal_nan=True)
    assert np.allclose(table["error"], [np.nan, spread, spread], equal_nan=True)  # sqrt(1/2 + 1/2) = 1
    assert list(table["clear"]) == [False, True, False]
    assert list(table["seeds"]) == [2, 2, 2]
    assert np.allclose(table["steps/s"], [20.0, 10.0, np.nan], equal_nan=True)
    assert table["GiB"].isna().all()
    assert np.allclose(table["purity"], [0.59, 0.595, 0.5905])
    assert np.allclose(table["efficiency"], [0.45, 0.475, 0.4525])
    for name, factor in (("AUC", 1), ("purity", 0.1), ("efficiency", 0.5)):
        assert np.allclose(table[f"{name} ±"], np.array([0.01, 0.01, 0]) * factor * np.sqrt(2))  # n - 1 = 1
    assert difference(runs, "better") == (table["difference"]["better"], table["error"]["better"])


def test_without_a_second_seed_nothing_is_clear():
    table = frame([run("baseline", 1, 0.5), run("other", 1, 0.9)])
    assert np.isnan(table["error"]["other"])
    assert not table["clear"].any()


def test_differences_need_a_baseline(runs):
    with pytest.raises(KeyError, match="no run of the baseline: differences are to it; there is better"):
        frame(runs[-2:])


def test_runs_are_read_as_they_were_written(runs, tmp_path: Path):
    file = tmp_path / "runs.jsonl"
    assert read_runs(file) == []
    file.write_text("".join(one.to_json() + "\n" for one in runs) + runs[0].to_json()[:40], encoding="utf-8")
    assert read_runs(file) == runs  # the last line was cut off in the middle
    file.write_text(runs[0].to_json() + "\n{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: not a run of an ablation"):
        read_runs(file)


@pytest.mark.parametrize(
    ("baseline", "clear"),
    [
        (
            "rotary",
            {"not rotary", "no attention", "no encodings", "fourier encodings", "layer_scale", "hepformer encodings"},
        ),
        (
            "not rotary",
            {"rotary", "distance_bias", "zero_start", "layer_scale", "gate", "drop_path", "no attention"},
        ),
    ],
)
def test_shipped_runs_say_what_notebook_09_does(baseline: ablation.Baseline, clear: set[str]):
    seeds = [sorted(run.seed for run in same) for same in ablation.variants(shipped_runs(baseline)).values()]
    assert seeds == [[1, 2, 3]] * len(seeds)
    table = frame(shipped_runs(baseline))
    assert set(table.index[table.clear]) == clear


@pytest.mark.parametrize("baseline", ["rotary", "not rotary"])
def test_shipped_runs_are_read_or_missed_with_the_command(
    baseline: ablation.Baseline, runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ablation, "data_directory", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"hepattn simulate .*; python -m .* --out data/results"):
        shipped_runs(baseline)
    file = tmp_path / ablation.SHIPPED[baseline]
    file.parent.mkdir()
    file.write_text("".join(one.to_json() + "\n" for one in runs), encoding="utf-8")
    assert shipped_runs(baseline) == runs == read_runs(file)
