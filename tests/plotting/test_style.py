import subprocess
import sys

import matplotlib as mpl
import numpy as np

from hepattn.plotting import style


def test_import_and_drawing_leave_matplotlib_as_it_was():
    code = (
        "import sys, matplotlib as mpl; before = mpl.rcParams.copy()\n"
        "import hepattn.plotting as p\n"
        "from hepattn.masks import Window\n"
        "p.mask(Window(4), 8)._repr_png_()\n"
        "changed = [key for key in before if key != 'backend' and mpl.rcParams[key] != before[key]]\n"
        "assert not changed, changed\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot was imported'\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_context_gives_back_what_was_set():
    before = mpl.rcParams["font.size"]
    with style.context():
        assert mpl.rcParams["font.size"] == style.RC["font.size"]
    assert mpl.rcParams["font.size"] == before


def test_a_figure_shows_itself_as_a_png():
    figure, _ = style.canvas()
    assert isinstance(figure, style.Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_palette_survives_every_kind_of_colour_blindness():
    # Machado, Oliveira, Fernandes (2009), severity 1: protanopia, deuteranopia, tritanopia, on linear RGB
    kinds = np.array(
        [
            np.eye(3),
            [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
            [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
            [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
        ]
    )
    colours = np.array([mpl.colors.to_rgb(colour) for colour in style.CYCLE])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for kind in kinds:
        seen = np.clip(linear @ kind.T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 9 * np.eye(len(seen))
        assert apart.min() > 0.1
