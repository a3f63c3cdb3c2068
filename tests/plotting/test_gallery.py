from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hepattn.data.schema import Selection
from hepattn.masks import Window
from hepattn.plotting.gallery import THUMBNAILS, WIDTH, main, middle_hit, overview, save_small, small


def test_the_picture_has_three_panels_with_legends(event):
    figure = overview(event, Window(20, wrap=True), Selection(pt_min=0.9))
    titles = [axes.get_title(loc="left").splitlines()[0] for axes in figure.axes]
    assert titles == ["who may look at whom, as data:", "on the detector:", "what is to be found:"]
    assert [axes.get_legend() is not None for axes in figure.axes] == [False, True, True]


def test_the_hit_that_looks_lies_half_way_along_a_selected_particle(event):
    hit = middle_hit(event, Selection(pt_min=0.9))
    assert event.hits.particle[hit] < 6
    assert np.isclose(event.hits.r[hit], 172.0)


def test_no_particle_to_show(event):
    with pytest.raises(ValueError, match="no particle of event 7 is reconstructable: pT > 50 GeV"):
        middle_hit(event, Selection(pt_min=50.0))


def test_a_thumbnail_is_small_and_bare(tmp_path):
    figure, panels = small(2)
    assert len(panels) == 2
    assert not any(panel.axison for panel in panels)
    save_small(figure, tmp_path / "some.png")
    with Image.open(tmp_path / "some.png") as picture:
        assert picture.size == (WIDTH, WIDTH // 2)


@pytest.mark.skipif(find_spec("acts") is None, reason="pyacts is missing (the extra sim)")
def test_the_command_writes_the_pictures(tmp_path, capsys):
    assert main(["--out", str(tmp_path)]) == 0
    written = capsys.readouterr().out.split()
    assert written == [str(tmp_path / f"{name}.png") for name in ("event", *THUMBNAILS)]
    for file in written:
        assert Path(file).read_bytes().startswith(b"\x89PNG")
