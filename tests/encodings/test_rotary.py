"""Rotary angles against the formula, and what a rotation by them promises: seams closed, differences alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hepattn.attention.rotation import Rotation
from hepattn.encodings import Rotary, RotaryFields, rotary_of_hits


def scores(rotary: Rotary | RotaryFields, q: torch.Tensor, k: torch.Tensor, x, y) -> torch.Tensor:
    """(Tq, Tk) scores of q (Tq, 1, d) at x with k (Tk, 1, d) at y."""
    return Rotation.of(rotary(x)).turn(q)[:, 0] @ Rotation.of(rotary(y)).turn(k)[:, 0].T


def pair(channels: int, tokens: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, tokens, 1, channels, generator=generator)
    return q, k


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=8), st.integers(2, 17))
def test_formula(values, channels):
    expected = [[64.0 * 256.0 ** (-2 * k / channels) * x for k in range(channels // 2)] for x in values]
    found = Rotary(channels)(torch.tensor(values))
    assert found.dtype == torch.float32
    for row, wanted in zip(found.tolist(), expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("channels", [2, 9, 16, 64])
@pytest.mark.parametrize("alpha", [8.0, 64.0, 1000.0])
def test_frequencies_of_an_angle_are_whole_and_at_least_one(channels, alpha):
    omega = Rotary(channels, alpha=alpha, periodic=True).omega
    assert torch.equal(omega, omega.round())
    assert omega.min() >= 1
    assert omega[0] == alpha
    assert (omega.diff() <= 0).all()


# -- the seam ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("alpha", [8.0, 64.0, 1000.0])
def test_minus_pi_and_plus_pi_turn_alike_bit_for_bit(alpha):
    rotary = Rotary(32, alpha=alpha, periodic=True)
    both = torch.atan2(torch.tensor([0.0, -0.0]), torch.tensor([-1.0, -1.0]))
    assert both[0] == -both[1]  # +pi and -pi in float32
    q, _ = pair(32, 1)
    for x in (both, torch.tensor([math.pi, -math.pi], dtype=torch.float64)):
        turned = Rotation.of(rotary(x)).turn(q.expand(2, 1, 32))
        assert torch.equal(turned[0], turned[1])
    shared = RotaryFields({"phi": lambda d: Rotary(d, alpha=alpha, periodic=True), "eta": Rotary}, 33)
    turned = Rotation.of(shared({"phi": both, "eta": torch.ones(2)})).turn(torch.ones(2, 1, 33))
    assert torch.equal(turned[0], turned[1])


def test_neighbours_across_the_seam_score_as_neighbours_elsewhere_and_plain_frequencies_do_not():
    q, k = pair(32, 1)
    steps = {}
    for periodic in (True, False):
        rotary = Rotary(32, periodic=periodic)
        across = scores(rotary, q, k, torch.tensor([math.pi - 0.01]), torch.tensor([-math.pi + 0.01]))
        inside = scores(rotary, q, k, torch.tensor([0.49]), torch.tensor([0.51]))
        steps[periodic] = float((across - inside).abs())
    assert steps[True] < 1e-3
    assert steps[False] > 1.0


# -- what a rotation promises ------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=25)
@given(st.floats(-6, 6), st.booleans(), st.integers(2, 17))
def test_scores_depend_on_differences_alone(shift, periodic, channels):
    rotary = Rotary(channels, periodic=periodic)
    generator = torch.Generator().manual_seed(channels)
    x, y = 2 * math.pi * torch.rand(2, 5, generator=generator) - math.pi
    q, k = pair(channels)
    moved_x, moved_y = (x + shift, y + shift)
    if periodic:  # around the full turn, so that some cross the seam
        moved_x, moved_y = (torch.remainder(one + math.pi, 2 * math.pi) - math.pi for one in (moved_x, moved_y))
    # angles up to 64 * 10 rad in float32
    assert torch.allclose(scores(rotary, q, k, moved_x, moved_y), scores(rotary, q, k, x, y), atol=2e-3)


def test_several_coordinates_see_differences_of_each_and_the_rest_is_not_turned():
    rotary = RotaryFields({"phi": lambda d: Rotary(d, periodic=True), "eta": Rotary, "r": Rotary}, 17)
    generator = torch.Generator().manual_seed(1)
    here, there = ({name: torch.randn(5, generator=generator) for name in rotary.names} for _ in range(2))
    angles = rotary(here)
    assert angles.shape == (5, 8)
    for i, name in enumerate(rotary.names):
        assert torch.equal(angles[:, 2 * i : 2 * i + 2], rotary.rotaries[name](here[name]))
    assert torch.equal(angles[:, 6:], torch.zeros(5, 2))
    assert torch.equal(rotary(torch.stack([here[name] for name in rotary.names], 1)), angles)
    q, k = pair(17)
    turned = Rotation.of(angles).turn(q)
    for channel in (6, 7, 14, 15, 16):
        assert torch.equal(turned[..., channel], q[..., channel])
    moved = [{name: x[name] + 0.25 * i for i, name in enumerate(rotary.names)} for x in (here, there)]
    assert torch.allclose(scores(rotary, q, k, *moved), scores(rotary, q, k, here, there), atol=2e-3)
    other = {**there, "r": there["r"] + 0.25}
    assert not torch.allclose(scores(rotary, q, k, here, other), scores(rotary, q, k, here, there), atol=0.1)


def test_gradient_with_respect_to_the_coordinate():
    q, _ = pair(8, 3)
    weight = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(2)).double()
    rotary = Rotary(8)
    single = torch.tensor([-1.25, 0.3, 2.0], requires_grad=True)
    double = single.detach().double().requires_grad_()
    (Rotation.of(rotary(single)).turn(q) * weight).sum().backward()
    (Rotation.of(double[:, None] * rotary.omega.double()).turn(q.double()) * weight).sum().backward()
    assert single.grad is not None
    assert double.grad is not None
    assert torch.allclose(single.grad.double(), double.grad, rtol=1e-3, atol=1e-3)


# -- precision and forms -----------------------------------------------------------------------------------------------
def test_angles_stay_float32_under_autocast_and_after_a_cast_of_the_model():
    x = torch.linspace(-3, 3, 50)
    rotary = RotaryFields({"phi": lambda d: Rotary(d, alpha=1000.0, periodic=True), "eta": Rotary}, 16)
    expected = rotary({"phi": x, "eta": x})
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotary({"phi": x, "eta": x}), expected)
        assert Rotation.of(expected).cos.dtype == torch.float32
    assert torch.equal(torch.nn.ModuleList([rotary]).to(torch.bfloat16)[0]({"phi": x, "eta": x}), expected)
    assert not rotary.state_dict()
    with pytest.raises(TypeError, match="give float32"):
        Rotary(8)(x.bfloat16())


def test_padded_and_nested_coordinates_give_the_same_angles():
    x = torch.randn(2, 4)
    one, several = Rotary(8, periodic=True), RotaryFields({"phi": Rotary, "eta": Rotary}, 9)
    nested = torch.nested.nested_tensor([x[0, :3], x[1]], layout=torch.jagged)
    packed = torch.cat([x[0, :3], x[1]])
    assert torch.equal(one(x)[1], one(x[1]))
    assert torch.equal(one(nested).values(), one(packed))
    assert torch.equal(several({"phi": x, "eta": x})[1], several({"phi": x[1], "eta": x[1]}))
    assert torch.equal(several({"phi": nested, "eta": nested}).values(), several({"phi": packed, "eta": packed}))


def test_wrong_input_gets_one_sentence():
    with pytest.raises(ValueError, match="two channels or more"):
        Rotary(1)
    with pytest.raises(ValueError, match="positive frequencies"):
        Rotary(8, alpha=0)
    with pytest.raises(ValueError, match="at least one field"):
        RotaryFields({}, 8)
    with pytest.raises(ValueError, match="two channels or more for each"):
        RotaryFields({"phi": Rotary, "eta": Rotary}, 3)
    with pytest.raises(ValueError, match=r"expected 2 \(P // F\) = 4"):
        RotaryFields({"phi": Rotary(8), "eta": Rotary}, 8)
    with pytest.raises(KeyError, match="RotaryFields misses eta"):
        RotaryFields({"phi": Rotary, "eta": Rotary}, 8)({"phi": torch.zeros(2)})


def test_hits_are_turned_by_phi_in_whole_turns_and_by_eta():
    of, x = rotary_of_hits(18), torch.tensor([[math.pi, 0.3], [-math.pi, 0.3], [1.0, -2.0]])
    angles = of(x)
    assert of.names == ("phi", "eta")
    assert torch.equal(angles[0], angles[1])
    assert torch.equal(angles[2, :4], angles[2, :4].round())
    assert angles[2, 0] == 512
    assert torch.allclose(angles[2, 4:8], -2 * 64 * 256 ** -(torch.arange(4) / 4))
    assert (angles[:, 8] == 0).all()  # nine pairs: one is left over
    with pytest.raises(ValueError, match="heads of at least 4 channels, not 3"):
        rotary_of_hits(3)
