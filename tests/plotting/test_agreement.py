"""Figures of kernels show the numbers and sentences that they were given."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from hepattn.attention.agreement import Agreement, Deviation
from hepattn.plotting.agreement import kernel_answers, kernel_costs, kernel_errors, slope

RIGHT, WRONG = Deviation(1e-7, 2e-7, 1e-5), Deviation(1e-3, 2e-7, 1e-5)


def x(line: Line2D) -> float:
    return float(np.asarray(line.get_xdata())[0])


def words(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def answers() -> list[Agreement]:
    return [
        Agreement("sdpa", "float32", "no mask", value=RIGHT, gradient=WRONG),
        Agreement("flex", "float32", "no mask", "flex: no backward on a CPU: detach q, k and v, or use sdpa"),
        Agreement("sdpa", "float64", "Window(8)", value=Deviation(0.0, 0.0, 1e-14)),
        Agreement("flex", "float32", "Window(8)"),
        Agreement("flash", "float32", "Window(8)", value=RIGHT),
    ]


def test_errors_a_panel_a_dtype_and_a_row_a_mask():
    figure = kernel_errors(answers())
    single, double = figure.axes
    assert [ax.get_title("left") for ax in figure.axes] == ["float32, eps 1e-07", "float64, eps 2e-16"]
    assert [label.get_text() for label in single.get_yticklabels()] == ["no mask", "Window(8)"]
    dots = {(line.get_fillstyle(), x(line)) for line in single.lines if line.get_marker() == "o"}
    assert dots == {("none", 1e-3), ("full", 1e-7)}
    bars = [x(line) for line in single.lines if line.get_marker() == "|"]
    assert bars == [2e-7, 1e-5] * 2
    zero, allowed = (x(line) for line in double.lines)  # and no bar of what float64 costs: nothing
    assert 0 < zero < 1e-16
    assert allowed == 1e-14
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["sdpa", "flash"]


def test_answers_are_words():
    (panel,) = kernel_answers(answers(), "some calls").axes
    cells = {key: " ".join(cell.get_text().get_text().split()) for key, cell in panel.tables[0].get_celld().items()}
    assert [cells[0, i] for i in range(4)] == ["mask", "sdpa", "flex", "flash"]
    assert cells[1, 1] == "differs: 100 times what is allowed"
    assert cells[1, 2] == "refuses: no backward on a CPU: detach q, k and v, or use sdpa"
    assert [cells[2, i] for i in range(4)] == ["Window(8)", "agrees", "takes it (not run)", "agrees"]
    assert cells[1, 3] == "-"
    assert panel.get_title("left") == "some calls"


def test_costs_carry_their_slopes():
    milliseconds = {256: {"a": 1.0, "b": 1.0}, 512: {"a": 4.0, "b": 1.5}, 1024: {"a": 16.0, "b": 3.0}}
    megabytes: dict[int, dict[str, float | None]] = {256: {"a": 10.0, "b": None}, 1024: {"a": 160.0, "b": 2.0}}
    time, memory = kernel_costs(milliseconds, megabytes, "title").axes
    assert words(time) == ["a: slope 2.0", "b: slope 1.0"]
    assert words(memory) == ["a: slope 2.0", "b"]
    assert np.asarray(time.lines[1].get_ydata()).tolist() == [1.0, 1.5, 3.0]
    assert np.asarray(memory.lines[1].get_xydata()).tolist() == [[1024.0, 2.0]]


def test_slope_is_that_of_the_end():
    assert slope([(1, 100.0), (10, 1.0), (100, 1000.0)]) == pytest.approx(1.5 * 2)


def test_refusals():
    with pytest.raises(ValueError, match="no kernel was run"):
        kernel_errors([answers()[1]])
    with pytest.raises(ValueError, match="no answer"):
        kernel_answers([], "none")
