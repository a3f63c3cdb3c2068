"""`Explorer`: a few controls, one picture, and a plain state that a script or a test can set.

The picture is one image widget whose bytes are replaced: never an output area, so there is never a second picture, and
nothing is loaded from a network. Artists are made once, in `__init__` of a subclass, and moved in `update`.
"""

import asyncio
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

__all__ = ["Explorer", "choice", "slider"]

DELAY = 0.05
"""Seconds that a moved control waits for further moves before the picture is drawn."""


class Explorer(ABC):
    """Controls above one picture; `explorer.NAME` is the value of the control NAME, and setting it moves the control.

    Moves of controls are gathered for `DELAY` seconds where an event loop runs (in a notebook), so that fast moves draw
    once with the newest state; without a loop (in a script or a test) every change draws at once.

    Args:
        figure: what is drawn; its layout is fixed after the first drawing
        controls: name -> widget with a value; the names become attributes
        dpi: dots an inch of the picture
    """

    controls: dict[str, Any]

    def __init__(self, figure: Figure, controls: Mapping[str, Any], *, dpi: int = 90) -> None:
        object.__setattr__(self, "controls", dict(controls))
        self.figure = figure
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
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=self.dpi)
        if not self.drawings:
            self.figure.set_layout_engine("none")  # a layout a drawing would take longer than the drawing
        self.drawings += 1
        self.picture.value = buffer.getvalue()
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


def choice(label: str, options: Mapping[str, Any] | list[Any], value: Any = None) -> Any:
    """A drop-down list of names (with their values); the first is chosen unless `value` is given."""
    pairs = list(options.items()) if isinstance(options, Mapping) else [(str(one), one) for one in options]
    chosen = pairs[0][1] if value is None else value
    return ipywidgets.Dropdown(options=pairs, value=chosen, description=label, style={"description_width": "initial"})
