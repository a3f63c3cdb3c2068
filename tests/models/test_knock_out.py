"""Heads that tell all hits the same, and hits that see a part only: against what it means, written out."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hepattn import Attention, Encoder
from hepattn.data import sample_event
from hepattn.data.schema import Event
from hepattn.masks import Window
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilter
from hepattn.models.knock_out import attention_layers, heads_silenced, score_seeing, sight
from hepattn.sequence import Layout


@pytest.fixture(scope="module")
def wedge() -> Event:
    event = sample_event()
    return event.keep(np.abs(event.hits.phi) < 0.3)


@pytest.fixture(scope="module")
def net() -> HitFilter:
    torch.manual_seed(0)
    return HitFilter(window=32, encoder=EncoderConfig(16, 2, 2)).eval()


def test_a_silent_head_tells_its_mean() -> None:
    torch.manual_seed(0)
    attention = Attention(12, 3).double()
    x, layout, told = torch.randn(7, 12, dtype=torch.float64), Layout.of([7], "cpu"), []
    hook = attention.output.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    whole = attention.attend_values(x, layout)[0]
    hook.remove()
    (each,) = told
    with heads_silenced(attention, [(0, 1)]):
        found = attention.attend_values(x, layout)[0]
    expected = each.clone()
    expected[:, 4:8] = each[:, 4:8].mean(dim=0)
    assert torch.allclose(found, expected @ attention.output.weight.T + attention.output.bias, atol=1e-14)
    assert torch.equal(attention.attend_values(x, layout)[0], whole)  # nothing is left behind


def test_a_silent_layer_says_the_same_to_all_hits(net, wedge) -> None:
    said: list[torch.Tensor] = []
    hook = attention_layers(net)[1].output.register_forward_hook(lambda _, __, out: said.append(out.detach()))
    with heads_silenced(net, [(1, 0), (1, 1)]):
        net.score(wedge)
    hook.remove()
    assert torch.allclose(said[0], said[0][:1].expand_as(said[0]), atol=1e-6)


def test_heads_speak_again_after_an_error(net, wedge) -> None:
    before = net.score(wedge)
    with suppress(KeyError), heads_silenced(net, [(0, 0)]):
        assert not torch.equal(net.score(wedge), before)
        raise KeyError
    assert torch.equal(net.score(wedge), before)


@pytest.mark.parametrize("head", [(2, 0), (0, 2), (-1, 0), (0, -1)])
def test_there_is_no_such_head(net, head) -> None:
    with (
        pytest.raises(ValueError, match=r"there is no head .* the layers have 2, 2 heads"),
        heads_silenced(net, [head]),
    ):
        pass


def test_a_graph_goes_on_as_it_was_traced(net) -> None:
    compiled = HitFilter(window=32, encoder=EncoderConfig(16, 1, 2))
    assert isinstance(compiled.encoder, Encoder)
    compiled.encoder.compile(backend="eager")
    wrapped = torch.compile(net, backend="eager")
    assert isinstance(wrapped, torch.nn.Module)
    for one in (compiled, wrapped):
        with pytest.raises(ValueError, match="as it was before it was compiled"), heads_silenced(one, [(0, 0)]):
            pass


def test_no_attention_no_heads(wedge) -> None:
    alone = HitFilter(attention=False, encoder=EncoderConfig(16, 1, 2))
    with pytest.raises(ValueError, match="HitFilter contains no Attention"):
        attention_layers(alone)
    with pytest.raises(ValueError, match="looks at each hit alone"):
        score_seeing(alone, wedge, "itself")


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=14), st.integers(1, 15), st.integers(0, 2**31))
def test_who_is_seen(particles: list[int], width: int, seed: int) -> None:
    particle, window = torch.tensor(particles), Window(width, wrap=True)
    n, allowed = len(particles), Window(width, wrap=True).dense(len(particles))
    own, others, itself = (sight(particle, seen) for seen in ("own particle", "other particles", "itself"))
    fewer = sight(particle, "fewer others", window, seed=seed)
    for i in range(n):
        for j in range(n):
            same = particles[i] == particles[j] >= 0
            assert own[i, j] == (same or i == j)
            assert others[i, j] == (not same or i == j)
            assert itself[i, j] == (i == j)
            if same or i == j or not allowed[i, j]:
                assert fewer[i, j]
        mine = sum(bool(allowed[i, j]) and particles[i] == particles[j] >= 0 and i != j for j in range(n))
        strangers = sum(bool(allowed[i, j]) and i != j for j in range(n)) - mine
        assert int((~fewer[i]).sum()) == min(mine, strangers)
    assert torch.equal(fewer, sight(particle, "fewer others", window, seed=seed))


def test_what_is_drawn_depends_on_the_seed() -> None:
    particle = torch.arange(60) % 6
    first, second = (sight(particle, "fewer others", Window(30), seed=seed) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_seeing_itself_alone_is_a_window_of_one(net, wedge) -> None:
    alone = HitFilter(window=1, encoder=EncoderConfig(16, 2, 2)).eval()
    alone.load_state_dict(net.state_dict())
    assert torch.allclose(score_seeing(net, wedge, "itself"), alone.score(wedge), atol=1e-6)


def test_hits_see_each_other_by_particle_and_not_by_place_in_the_file(net, wedge) -> None:
    """The order of hits in the event does not matter, and the filter's mask is as it was."""
    assert wedge.hits.particle is not None
    mask = net.encoder.mask
    shuffled = wedge.keep(np.random.default_rng(0).permutation(len(wedge.hits)))
    order = np.argsort(shuffled.hits.phi, kind="stable")
    again = np.argsort(wedge.hits.phi, kind="stable")
    found = score_seeing(net, wedge, "own particle")[again], score_seeing(net, shuffled, "own particle")[order]
    assert torch.allclose(*found, atol=1e-5)
    assert net.encoder.mask is mask
    assert not torch.allclose(found[0], net.score(wedge)[again], atol=1e-3)


def test_what_can_not_be_seen_is_said(net, wedge) -> None:
    with pytest.raises(ValueError, match="'own particle', 'other particles', 'fewer others', 'itself', not 'all'"):
        score_seeing(net, wedge, "all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="20,000 hits are 400,000,000 pairs"):
        sight(torch.zeros(20_000, dtype=torch.int64), "own particle")
    blind = replace(wedge, hits=replace(wedge.hits, particle=None))
    with pytest.raises(ValueError, match="give an event with truth"):
        score_seeing(net, blind, "itself")
    tokens = HitFilter(window=32, encoder=EncoderConfig(16, 1, 2, registers=8))
    assert isinstance(tokens.encoder, Encoder)
    with pytest.raises(ValueError, match="inserts registers or CLS tokens"):
        score_seeing(tokens, wedge, "itself")
    assert tokens.encoder.mask == Window(32, wrap=True)
