"""Encodings against the formula written out in float64, one number at a time."""

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hepattn.encodings import ENCODINGS, Encoding, Fields, Periodic, RandomFourier, Sinusoidal, make_encoding

coordinates = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=8)
widths = st.integers(2, 17)


def slow_sinusoidal(x: float, omegas: list[float], channels: int) -> list[float]:
    out = [math.sin(w * x) for w in omegas] + [math.cos(w * x) for w in omegas]
    return out + [0.0] * (channels - len(out))


def slow_periodic(x: float, omegas: list[float], channels: int) -> list[float]:
    out = [math.sin(w * math.sin(x)) for w in omegas] + [math.sin(w * math.cos(x)) for w in omegas]
    return out + [0.0] * (channels - len(out))


def geometric(channels: int, alpha: float = 64.0, base: float = 256.0) -> list[float]:
    return [alpha * base ** (-2 * k / channels) for k in range(channels // 2)]


@settings(deadline=None, max_examples=25)
@given(coordinates, widths)
def test_sinusoidal_formula(values, channels):
    expected = [slow_sinusoidal(x, geometric(channels), channels) for x in values]
    # 64 rad a unit times 4 units, in float32: 256 * 6e-8
    assert Sinusoidal(channels)(torch.tensor(values)).numpy() == pytest.approx(np.array(expected), abs=5e-5)


@settings(deadline=None, max_examples=25)
@given(coordinates, st.integers(4, 17))
def test_hepformer_formula(values, channels):
    half = channels // 2
    exponents = [(2 / channels - 1) * k / (half - 1) for k in range(half)]
    omegas = [1000.0 * 100.0**e for e in exponents]
    expected = [slow_sinusoidal(x, omegas, channels) for x in values]
    assert Sinusoidal.hepformer(channels)(torch.tensor(values)).numpy() == pytest.approx(np.array(expected), abs=6e-4)


@settings(deadline=None, max_examples=25)
@given(coordinates, widths)
def test_periodic_formula(values, channels):
    expected = [slow_periodic(x, geometric(channels), channels) for x in values]
    assert Periodic(channels)(torch.tensor(values)).numpy() == pytest.approx(np.array(expected), abs=5e-5)


@settings(deadline=None, max_examples=25)
@given(coordinates, widths, st.integers(0, 3))
def test_random_fourier_formula(values, channels, seed):
    encode = RandomFourier(channels, seed=seed)
    omegas = [2 * math.pi * float(b) for b in encode.B[0]]
    expected = [slow_sinusoidal(x, omegas, channels) for x in values]
    assert encode(torch.tensor(values)).numpy() == pytest.approx(np.array(expected), abs=2e-5)


def test_random_fourier_of_three_coordinates_is_a_matrix_product():
    encode = RandomFourier(10, coordinates=3, seed=1)
    x = torch.randn(7, 3)
    angle = 2 * math.pi * x.double() @ encode.B.double()
    assert torch.allclose(encode(x).double(), torch.cat([angle.sin(), angle.cos()], 1), atol=1e-5)
    with pytest.raises(ValueError, match=r"expected \(T, 3\)"):
        encode(torch.randn(7, 2))


def reference(encode: Encoding, x: Tensor) -> Tensor:
    """The formulas in float64 torch, to be differentiated."""
    if isinstance(encode, Sinusoidal):
        angle = x[:, None] * encode.omega.double()
        return torch.cat([angle.sin(), angle.cos()], 1)
    if isinstance(encode, Periodic):
        omega = encode.omega.double()
        return torch.cat([(omega * x.sin()[:, None]).sin(), (omega * x.cos()[:, None]).sin()], 1)
    assert isinstance(encode, RandomFourier)
    angle = x[:, None] * encode.B.double() * (1 if encode.periodic else 2 * math.pi)
    return torch.cat([angle.sin(), angle.cos()], 1)


@pytest.mark.parametrize("name", list(ENCODINGS))
def test_gradient_with_respect_to_the_coordinate(name):
    encode = make_encoding(name, 8)
    x = torch.tensor([-1.25, 0.3, 2.0], requires_grad=True)
    precise = x.detach().double().requires_grad_()
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    (encode(x) * weight).sum().backward()
    (reference(encode, precise) * weight).sum().backward()
    assert x.grad is not None
    assert precise.grad is not None
    assert torch.allclose(x.grad.double(), precise.grad, rtol=1e-3, atol=1e-3)


# -- angles --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "encode", [Periodic(32), Periodic(33, alpha=1000.0), RandomFourier(32, periodic=True, scale=30.0)], ids=str
)
def test_minus_pi_and_plus_pi_agree_exactly(encode):
    both = torch.atan2(torch.tensor([0.0, -0.0]), torch.tensor([-1.0, -1.0]))
    assert both[0] == -both[1]  # +pi and -pi in float32
    out = encode(both)
    assert torch.equal(out[0], out[1])
    precise = encode(torch.tensor([math.pi, -math.pi], dtype=torch.float64))
    assert torch.equal(precise[0], precise[1])


def test_neighbours_across_the_seam_are_neighbours_and_a_plain_encoding_jumps():
    phi = torch.tensor([math.pi - 1e-4, -math.pi + 1e-4])
    step = {e: (e(phi)[0] - e(phi)[1]).abs().max() for e in (Periodic(16), RandomFourier(16, periodic=True, scale=8))}
    assert all(s < 0.02 for s in step.values())
    plain = Sinusoidal(16)(phi)
    assert (plain[0] - plain[1]).abs().max() > 0.5


def test_periodic_encoding_is_unique_around_the_turn():
    phi = torch.linspace(-math.pi, math.pi, 720)[1:]
    distance = torch.cdist(Periodic(16)(phi), Periodic(16)(phi)) + 10 * torch.eye(719)
    assert distance.min() > 1e-2


def test_integer_frequencies_are_integers_and_never_constant():
    encode = RandomFourier(64, periodic=True, scale=0.5)
    assert torch.equal(encode.B, encode.B.round())
    assert (encode.B != 0).all()


# -- frequencies ---------------------------------------------------------------------------------------------------
def test_defaults_include_low_frequencies_and_hepformer_does_not():
    assert Sinusoidal(84).omega.min() < math.pi / 4  # eta in [-4, 4] is less than one turn
    assert Periodic(84).omega.min() < math.pi / 2
    assert (2 * math.pi * RandomFourier(84).B).abs().min() < math.pi / 4
    low = float(Sinusoidal.hepformer(84).omega.min())
    assert 11 < low < 11.2


# -- precision -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", list(ENCODINGS))
def test_float32_under_autocast_and_after_a_cast_of_the_model(name):
    x = torch.linspace(-3, 3, 50)
    encode = make_encoding(name, 10)
    expected = encode(x)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode(x), expected)
    assert torch.equal(encode(x.double()), expected)
    for dtype in (torch.bfloat16, torch.float64):
        assert torch.equal(torch.nn.Sequential(encode).to(dtype)(x), expected)


@pytest.mark.parametrize("name", list(ENCODINGS))
def test_half_precision_coordinates_are_refused(name):
    with pytest.raises(TypeError, match="give float32"):
        make_encoding(name, 10)(torch.zeros(3, dtype=torch.float16))


# -- state ---------------------------------------------------------------------------------------------------------
def test_random_fourier_is_saved_and_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    encode = RandomFourier(16, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(encode.B, RandomFourier(16, seed=3).B)
    other = RandomFourier(16, seed=4)
    assert not torch.equal(encode.B, other.B)
    file = io.BytesIO()
    torch.save(encode.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(encode.B, other.B)
    assert not list(encode.parameters())
    assert not Sinusoidal(8).state_dict()


# -- fields --------------------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=20)
@given(st.integers(6, 40), st.integers(1, 3), st.integers(0, 5))
def test_fields_share_the_channels_and_the_remainder_is_zero(dim, count, tokens):
    made: dict[str, Encoding | Callable[[int], Encoding]] = {
        "phi": Periodic,
        "eta": Sinusoidal,
        "r": lambda d: RandomFourier(d, seed=7),
    }
    names = list(made)[:count]
    encode = Fields({name: made[name] for name in names}, dim)
    x: dict[str, Tensor] = {name: torch.randn(tokens) for name in ("r", "phi", "eta", "unused")}
    out = encode(x)
    share = dim // count
    assert out.shape == (tokens, dim)
    for index, name in enumerate(names):
        part = out[:, index * share : (index + 1) * share]
        assert torch.equal(part, encode.encodings[name](x[name]))
    assert (out[:, count * share :] == 0).all()
    assert torch.equal(encode(torch.stack([x[name] for name in names], 1)), out)


def test_fields_take_ready_encodings_of_the_right_width():
    assert Fields({"phi": Periodic(8), "eta": Sinusoidal(8)}, 17).names == ("phi", "eta")
    with pytest.raises(ValueError, match="expected dim // F = 17 // 2 = 8"):
        Fields({"phi": Periodic(9), "eta": Sinusoidal(8)}, 17)


def test_wrong_input_gets_one_sentence():
    with pytest.raises(KeyError, match="misses eta among the coordinates phi"):
        Fields({"phi": Periodic, "eta": Sinusoidal}, 16)({"phi": torch.zeros(2)})
    with pytest.raises(ValueError, match="columns phi, eta"):
        Fields({"phi": Periodic, "eta": Sinusoidal}, 16)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least one"):
        Fields({}, 16)
    with pytest.raises(ValueError, match="channels >= 2"):
        Sinusoidal(1)
    with pytest.raises(ValueError, match="positive"):
        Sinusoidal(8, alpha=-1)
    with pytest.raises(ValueError, match="positive"):
        Periodic(8, base=0)
    with pytest.raises(ValueError, match="positive scale"):
        RandomFourier(8, scale=0)
    with pytest.raises(ValueError, match="expected one of sinusoidal"):
        make_encoding("rotary", 8)
