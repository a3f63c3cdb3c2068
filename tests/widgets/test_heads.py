"""The explorer of heads by its state: what it draws is what the pattern says of one hit."""

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

from hepattn.data import sample_events
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilter
from hepattn.plotting.attention_numbers import strongest
from hepattn.plotting.attention_pattern import filter_patterns
from hepattn.plotting.head_numbers import own_of_hit
from hepattn.widgets import HeadExplorer


@pytest.fixture(scope="module")
def events():
    shipped = sample_events()
    return sorted((shipped[index] for index in range(5)), key=lambda event: len(event.hits))[:2]


@pytest.fixture(scope="module")
def net() -> HitFilter:
    torch.manual_seed(0)
    return HitFilter(window=32, encoder=EncoderConfig(16, 2, 2)).eval()


def test_every_control_changes_the_picture_and_no_artist_is_made(events, net):
    explorer = HeadExplorer(events, net)
    explorer.draw()
    made = [id(artist) for ax in explorer.figure.axes for artist in ax.get_children()]
    seen = {bytes(explorer.picture.value)}
    for name, value in [("hit", -2.0), ("layer", 2), ("head", 2), ("count", 3), ("event", 1)]:
        setattr(explorer, name, value)
        assert bytes(explorer.picture.value) not in seen, name
        seen.add(bytes(explorer.picture.value))
        assert [id(artist) for ax in explorer.figure.axes for artist in ax.get_children()] == made, name


def test_lines_rings_and_shares_are_those_of_the_hit(events, net):
    explorer = HeadExplorer(events, net)
    explorer.layer, explorer.head, explorer.count, explorer.hit = 2, 1, 7, 0.5
    patterns = filter_patterns(net, events[0])
    pattern, row = patterns[1], patterns[1].nearest(0.5)
    weights, keys = strongest(pattern, row, 7, 0)
    drawn = {int(key) for key, weight in zip(keys, weights, strict=True) if weight > 0 and key != row}
    across, along = explorer.detectors
    for panel, places in (
        (across, pattern.key_xy),
        (along, np.stack([pattern.key_phi - pattern.query_phi[row], np.hypot(*pattern.key_xy.T)], axis=1)),
    ):
        (lines,) = (one for one in panel.ax.collections if isinstance(one, LineCollection))
        ends = np.array([segment[1] for segment in lines.get_segments()])
        assert {int(np.abs(places - end).sum(axis=1).argmin()) for end in ends} == drawn
        assert len(np.asarray(panel.rings.get_offsets())) == pattern.mine(row).sum()
    shown = explorer.grid.image.get_array()
    assert shown is not None
    assert np.allclose(shown, np.nan_to_num(100 * own_of_hit(patterns, row)))
    assert explorer.grid.box.get_xy() == (-0.5, 0.5)
    assert f"φ = {pattern.query_phi[row]:.3f}" in explorer.numbers.value


def test_a_hit_that_is_alone_on_its_particle_has_no_share(events, net):
    explorer = HeadExplorer(events, net)
    pattern = filter_patterns(net, events[0])[0]
    alone = int(np.flatnonzero(np.bincount(pattern.query_particle)[pattern.query_particle] == 1)[0])
    explorer.hit = float(pattern.query_phi[alone])
    assert explorer.row() == alone
    assert {text.get_text() for row in explorer.grid.words for text in row} == {"–"}


def test_what_can_not_be_explored_is_said(net, events):
    with pytest.raises(ValueError, match="there is no event"):
        HeadExplorer([], net)
    with pytest.raises(ValueError, match="nothing to record"):
        HeadExplorer(events, HitFilter(attention=False, encoder=EncoderConfig(16, 1, 2)))
    with pytest.raises(ValueError, match="layer lies between 1 and 2"):
        HeadExplorer(events, net).layer = 3
