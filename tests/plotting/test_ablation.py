"""The figure of an ablation: differences, seeds, what lies far away, and what was not measured."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from hepattn.metrics.ablation import Run, frame
from hepattn.plotting import ablation, style


def run(variant: str, seed: int, auc: float, speed: float | None = None) -> Run:
    return Run(variant, seed, 100, 7, auc, 0.5, 0.4, 0.9, 0.6, (1.0,), speed)


@pytest.fixture
def runs() -> list[Run]:
    means = {"baseline": 0.9, "gain": 0.93, "same": 0.901, "loss": 0.88, "worse": 0.87, "broken": 0.3}
    return [
        run(name, seed, mean + (seed - 2) * 0.004, 5.0 * i + 1 if seed == 1 else None)
        for i, (name, mean) in enumerate(means.items())
        for seed in (1, 2, 3)
    ]


def test_rows_differences_and_colours(runs):
    figure = ablation(runs)
    gain, speed, memory = figure.axes
    table = frame(runs)
    names = {round(y): label.get_text() for y, label in zip(gain.get_yticks(), gain.get_yticklabels(), strict=True)}
    assert [names[row] for row in sorted(names, reverse=True)] == list(table.index)
    points = [line for line in gain.lines if line.get_marker() == "o"]
    drawn = {}
    for line in points:
        ((x, y),) = np.asarray(line.get_xydata())
        drawn[names[round(y)]] = (x, line.get_color())
    assert set(drawn) == {"gain", "same", "loss", "worse"}
    for name, (at, colour) in drawn.items():
        assert np.isclose(at, table["difference"][name])
        assert colour == (style.GREY if name == "same" else style.BLUE)
    seeds = [np.asarray(line.get_xdata()) for line in gain.lines if line.get_marker() == "."]
    assert [len(one) for one in seeds] == [3] * 6
    assert np.isclose(seeds[0].mean(), 0.0)
    assert sorted(bar.get_bbox().width for bar in speed.patches if isinstance(bar, Rectangle)) == [
        1.0,
        6.0,
        11.0,
        16.0,
        21.0,
        26.0,
    ]
    assert [text.get_text() for text in memory.texts] == ["-"] * 6
    assert not memory.patches


def test_what_is_far_away_is_an_arrow_with_its_number(runs):
    gain = ablation(runs).axes[0]
    assert gain.get_xlim()[0] > -0.1
    (words,) = [text.get_text() for text in gain.texts]
    assert words.startswith("-0.6000 ±")
    assert [line.get_marker() for line in gain.lines].count("<") == 1


def test_a_baseline_alone_and_none():
    alone = ablation([run("baseline", 1, 0.9)])
    assert len(alone.axes) == 3
    with pytest.raises(KeyError, match="no run of the baseline"):
        ablation([run("other", 1, 0.9)])
