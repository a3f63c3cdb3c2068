"""The promises of every explorer, on a small one: plain state, one picture, gathered moves, refusals."""

import asyncio
import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from hepattn.plotting.style import canvas
from hepattn.widgets.base import DELAY, Explorer, choice, slider


class Line(Explorer):
    """y = slope * x, in a colour."""

    def __init__(self) -> None:
        figure, (self.ax,) = canvas()
        (self.line,) = self.ax.plot([0, 1], [0, 0])
        super().__init__(
            figure, {"slope": slider("slope", 1, 0, 5), "colour": choice("colour", {"blue": "b", "black": "k"})}
        )

    def update(self) -> str:
        if self.slope == 5:
            raise RuntimeError("too steep")
        self.line.set_ydata([0, self.slope])
        self.line.set_color(self.colour)
        return f"slope {self.slope}"


def test_setting_the_state_moves_the_control_and_the_one_picture():
    line = Line()
    line.draw()
    before, artists = line.picture.value, len(line.ax.get_children())
    line.slope = 3
    assert line.controls["slope"].value == 3
    assert line.picture.value != before
    assert bytes(line.picture.value).startswith(b"\x89PNG")
    assert line.numbers.value == "slope 3"
    assert len(line.ax.get_children()) == artists
    line.colour = "k"
    assert (line.slope, line.colour, line.drawings) == (3, "k", 3)


def test_the_view_holds_one_picture():
    line = Line()
    line._repr_mimebundle_()
    children = line.view.children
    assert sum(child is line.picture for child in children) == 1
    assert line.drawings == 1


class Curve(Explorer):
    """y = slope * x in axes that follow it, beside axes that stand still; only the line and the title move."""

    def __init__(self, *, parts: bool) -> None:
        figure, (self.ax, still) = canvas(2)
        (self.line,) = self.ax.plot([0, 1], [0, 0], label="a line")
        self.ax.legend(loc="upper left")
        still.imshow(np.eye(3))
        self.title = figure.suptitle("slope")
        figure.legend(loc="outside lower center")
        moving = [self.line, self.title] if parts else None
        super().__init__(figure, {"slope": slider("slope", 1, 0, 500)}, moving=moving)

    def update(self) -> str:
        self.line.set_ydata([0, self.slope])
        self.ax.set_ylim(0, 1.5 * self.slope + 1)
        self.title.set_text(f"slope {self.slope}")
        return ""


def pixels(explorer: Explorer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(explorer.picture.value)))


def test_parts_drawn_anew_make_the_picture_of_the_whole():
    parts, whole = Curve(parts=True), Curve(parts=False)
    for slope in (1, 400, 3, 3):
        for one in (parts, whole):
            one.slope = slope
            one.draw()
        assert np.array_equal(pixels(parts), pixels(whole)), slope


def test_axes_are_drawn_anew_only_where_they_changed(monkeypatch):
    curve = Curve(parts=True)
    curve.draw()
    drawn = []
    real = Axes.draw

    def draw(ax, renderer):
        drawn.append(ax)
        real(ax, renderer)

    monkeypatch.setattr(Axes, "draw", draw)
    curve.draw()
    assert drawn == []
    curve.slope = 300
    assert drawn == [curve.ax]


def test_a_figure_is_saved_with_all_that_moves(tmp_path, monkeypatch):
    curve = Curve(parts=True)
    curve.draw()
    seen = []
    monkeypatch.setattr(curve.line, "draw", lambda *_: seen.append("line"))
    monkeypatch.setattr(curve.title, "draw", lambda *_: seen.append("title"))
    curve.figure.savefig(tmp_path / "curve.pdf")
    assert {"line", "title"} <= set(seen)


def test_fast_moves_are_gathered_and_the_last_one_counts():
    async def move() -> Line:
        line = Line()
        line.draw()
        for _ in range(5):
            for value in (1, 2, 3, 4):
                line.controls["slope"].value = value
        assert line.drawings == 1
        await asyncio.sleep(4 * DELAY)
        return line

    line = asyncio.run(move())
    assert line.drawings == 2
    assert line.numbers.value == "slope 4"


def test_an_error_in_a_loop_is_shown_and_the_explorer_lives_on():
    async def move() -> Line:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        line = Line()
        line.controls["slope"].value = 5
        await asyncio.sleep(3 * DELAY)
        assert "too steep" in line.numbers.value
        line.controls["slope"].value = 2
        await asyncio.sleep(3 * DELAY)
        return line

    assert asyncio.run(move()).numbers.value == "slope 2"


@pytest.mark.parametrize(
    ("name", "value", "words"), [("slope", 6, "between 0 and 5"), ("colour", "r", "one of 'b', 'k'")]
)
def test_a_value_that_a_control_cannot_take_is_refused(name, value, words):
    line = Line()
    with pytest.raises(ValueError, match=words):
        setattr(line, name, value)
    assert (line.slope, line.colour, line.drawings) == (1, "b", 0)


def test_an_unknown_name_lists_the_controls():
    with pytest.raises(AttributeError, match="slope, colour"):
        _ = Line().slop
