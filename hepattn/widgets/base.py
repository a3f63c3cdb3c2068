"""`Explorer`: a few controls, one picture, and a plain state that a script or a test can set.

The picture is one image widget whose bytes are replaced: never an output area, so there is never a second picture, and
nothing is loaded from a network. Artists are made once, in `__init__` of a subclass, and moved in `update`;
`OneDrawing` makes them a PNG, and draws axes and words anew only where they changed.
"""

import asyncio
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from hepattn.plotting import style

__all__ = ["Explorer", "OneDrawing", "choice", "log_slider", "slider"]

DELAY = 0.05
"""Seconds that a moved control waits for further moves before the picture is drawn."""


class OneDrawing(FigureCanvasAgg):
    """A canvas that draws what moves over a kept ground: axes with their words, drawn anew only where limits changed.

    matplotlib's own way to a PNG goes through all artists twice, and half of the time is spent on tick labels. The
    layout is found at the first picture and then kept. `figure.savefig` works as ever, and takes longer.

    The ground is put together from layers, one for each axes and one for the figure's own words, drawn on white: of
    each pixel the darkest, which is the same as drawing one over the other where they don't overlap.

    Args:
        figure: what is drawn, on white
        moving: its artists that change besides the limits, labels and titles of axes; they lie above all others, the
            last on top. None: all that there is, drawn anew each time.
    """

    def __init__(self, figure: Figure, moving: Sequence[Artist] | None = None) -> None:
        super().__init__(figure)
        self.moving = None if moving is None else list(moving)
        self._placed = False
        self._layers: dict[Axes | None, NDArray[np.uint8]] = {}
        self._words: dict[Axes, object] = {}
        self._ground: NDArray[np.uint8] | None = None

    def png(self, dpi: float) -> bytes:
        """The picture of the present state."""
        with style.context():
            self._size(dpi)
            if self.moving is None:
                self.draw()
            else:
                self._draw_ground()
                for artist in self.moving:
                    artist.draw(self.get_renderer())
        buffer = io.BytesIO()
        Image.fromarray(self._pixels()[..., :3]).save(buffer, format="png", compress_level=1)
        return buffer.getvalue()

    def forget(self) -> None:
        """The next picture is drawn as a whole."""
        self._ground = None

    def _size(self, dpi: float) -> None:
        if dpi != self.figure.dpi:
            self.figure.set_dpi(dpi)
            self.forget()
        engine = self.figure.get_layout_engine()
        if not self._placed and engine is not None:
            for _ in range(2):  # as matplotlib does: sizes of words depend on places, and places on sizes
                engine.execute(self.figure)
            self.figure.set_layout_engine("none")
        self._placed = True

    def _draw_ground(self) -> None:
        """Brings the ground up to date and onto the canvas."""
        if self._ground is None:
            self._words = {}
            with _hidden([*(self.moving or ()), *self.figure.axes]):
                self.draw()
            self._layers = {None: self._pixels().copy()}
        words = {ax: _words(ax) for ax in self.figure.axes}
        changed = [ax for ax in words if words[ax] != self._words.get(ax)]
        if changed or self._ground is None:
            with _hidden(self.moving or ()):
                for ax in changed:
                    self._pixels()[:] = 255
                    ax.draw(self.get_renderer())
                    self._layers[ax] = self._pixels().copy()
            self._ground = np.minimum.reduce(list(self._layers.values()))
            self._words = words
        self._pixels()[:] = self._ground

    def _pixels(self) -> NDArray[np.uint8]:
        """(height, width, 4) of the canvas, to be read and written."""
        return np.asarray(self.buffer_rgba())


@contextmanager
def _hidden(artists: Sequence[Artist]) -> Iterator[None]:
    """Without these artists."""
    shown = [artist for artist in artists if artist.get_visible()]
    for artist in shown:
        artist.set_visible(False)
    try:
        yield
    finally:
        for artist in shown:
            artist.set_visible(True)


def _words(ax: Axes) -> object:
    """What the drawing of some axes depends on, but for their moving artists."""
    titles = (ax.get_title("left"), ax.get_title(), ax.get_xlabel(), ax.get_ylabel())
    return (ax.get_xlim(), ax.get_ylim(), *titles)


class Explorer(ABC):
    """Controls above one picture; `explorer.NAME` is the value of the control NAME, and setting it moves the control.

    Moves of controls are gathered for `DELAY` seconds where an event loop runs (in a notebook), so that fast moves draw
    once with the newest state; without a loop (in a script or a test) every change draws at once.

    Args:
        figure: what is drawn; its layout is fixed after the first drawing
        controls: name -> widget with a value; the names become attributes
        moving: the artists that `update` moves, see `OneDrawing`; None: all is drawn anew each time
        dpi: dots an inch of the picture
    """

    controls: dict[str, Any]

    def __init__(
        self,
        figure: Figure,
        controls: Mapping[str, Any],
        *,
        moving: Sequence[Artist] | None = None,
        dpi: int = 90,
    ) -> None:
        object.__setattr__(self, "controls", dict(controls))
        self.figure = figure
        self.canvas = OneDrawing(figure, moving)
        self.dpi = dpi
        self.drawings = 0
        # at its own size, not stretched to the page's width
        layout = ipywidgets.Layout(max_width="100%", height="auto", align_self="flex-start")
        self.picture = ipywidgets.Image(format="png", layout=layout)
        self.numbers = ipywidgets.HTML()
        self._waiting: asyncio.TimerHandle | None = None
        for control in self.controls.values():
            control.observe(self._moved, names="value")

    @abstractmethod
    def update(self) -> str:
        """Moves the artists to the state; returns the numbers that stand below the picture (HTML, may be empty)."""

    @property
    def view(self) -> ipywidgets.VBox:
        """All of it as one widget."""
        row = ipywidgets.Layout(flex_flow="row wrap")
        return ipywidgets.VBox([ipywidgets.HBox(list(self.controls.values()), layout=row), self.picture, self.numbers])

    def draw(self) -> None:
        """Draws the present state now."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        text = self.update()
        self.picture.value = self.canvas.png(self.dpi)
        self.drawings += 1
        self.numbers.value = text

    def _moved(self, _: Any) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.draw()
            return
        if self._waiting is None:
            self._waiting = loop.call_later(DELAY, self._draw_later)

    def _draw_later(self) -> None:
        """As `draw`, for an event loop, which would only log an exception: the reader sees it below the picture."""
        self._waiting = None
        try:
            self.draw()
        except Exception as error:
            self.numbers.value = f"<b>{type(error).__name__}</b>: {error}"
            raise

    def __getattr__(self, name: str) -> Any:
        controls = self.__dict__.get("controls", {})
        if name in controls:
            return controls[name].value
        raise AttributeError(f"{type(self).__name__} has no {name!r}; its controls are {', '.join(controls)}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a control's value, or an ordinary attribute.

        Raises:
            ValueError: the control cannot take that value; nothing is changed then
        """
        control = self.__dict__.get("controls", {}).get(name)
        if control is None:
            object.__setattr__(self, name, value)
            return
        low, high = getattr(control, "min", None), getattr(control, "max", None)
        if isinstance(control, ipywidgets.FloatLogSlider):  # whose bounds are exponents
            low, high = control.base**low, control.base**high
        if low is not None and high is not None and not low <= value <= high:
            raise ValueError(f"{name} lies between {low} and {high}, not {value!r}")  # a slider would clamp it
        options = getattr(control, "options", None)
        if options is not None:
            values = [one[1] if isinstance(one, tuple) else one for one in options]
            if value not in values:
                raise ValueError(f"{name} is one of {', '.join(map(repr, values))}, not {value!r}")
        control.value = value

    def _repr_mimebundle_(self, **options: Any) -> Any:
        if not self.drawings:
            self.draw()
        return self.view._repr_mimebundle_(**options)


def slider(label: str, value: float, low: float, high: float, step: float = 1) -> Any:
    """A slider that reports while it moves; whole numbers if value and step are whole."""
    whole = all(float(x).is_integer() for x in (value, low, high, step)) and not isinstance(value, float)
    kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    return kind(value=value, min=low, max=high, step=step, description=label, style={"description_width": "initial"})


def log_slider(label: str, value: float, low: float, high: float) -> Any:
    """A slider over powers of ten, in steps of a tenth of one, between low and high (> 0)."""
    ends = {"min": math.log10(low), "max": math.log10(high)}
    words = {"description_width": "initial"}
    return ipywidgets.FloatLogSlider(value=value, step=0.1, description=label, style=words, **ends)


def choice(label: str, options: Mapping[str, Any] | list[Any], value: Any = None) -> Any:
    """A drop-down list of names (with their values); the first is chosen unless `value` is given."""
    pairs = list(options.items()) if isinstance(options, Mapping) else [(str(one), one) for one in options]
    chosen = pairs[0][1] if value is None else value
    return ipywidgets.Dropdown(options=pairs, value=chosen, description=label, style={"description_width": "initial"})
