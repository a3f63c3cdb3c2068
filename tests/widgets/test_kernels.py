"""The explorer of kernels by its state: its numbers are those of the calls, and nothing is compiled."""

import time

import pytest
import torch

from hepattn.attention import attend
from hepattn.attention.agreement import expect
from hepattn.attention.backends import flex
from hepattn.masks import Window
from hepattn.widgets import KernelExplorer, kernels


@pytest.fixture
def explorer() -> KernelExplorer:
    explorer = KernelExplorer()
    explorer.tokens = 192
    return explorer


def artists(explorer: KernelExplorer) -> list[int]:
    return [id(artist) for ax in explorer.figure.axes for artist in ax.get_children()]


@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize("wrap", [True, False])
def test_errors_are_those_of_the_calls(explorer, dtype, wrap):
    explorer.dtype, explorer.wrap, explorer.window, explorer.heads = dtype, wrap, 33, 2
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, 192, 2, kernels.DIM, generator=generator, dtype=torch.float64)
    q, k, v = drawn.to(kernels.DTYPES[dtype]).unbind(0)
    mask = Window(33, wrap=wrap)
    asked = expect(q, k, v, mask=mask)
    rows = torch.linspace(0, 191, kernels.ROWS).long()
    wanted = (attend(q, k, v, mask=mask, backend="sdpa").double() - asked.exact.out).abs()[rows].max()
    found = explorer.measured()
    assert found.sides["sdpa"].error == pytest.approx(float(wanted), rel=1e-3, abs=1e-15)
    assert all(one.ratio <= 1 for one in found.sides.values())
    assert set(found.sides) == {"sdpa", kernels.DENSE}
    x, y = explorer.dots.get_data()
    assert list(y) == [3, 1]
    assert list(x) == [max(one.error, kernels.LOWEST) for one in found.sides.values()]
    assert explorer.allowed.get_xdata()[0] == found.sides["sdpa"].allowed


def test_times_are_of_every_side_that_was_run(explorer):
    found = explorer.measured().milliseconds
    assert set(found) == {"sdpa", kernels.DENSE, kernels.GLOBAL}
    assert [words.get_text() for words in explorer.words] == [
        f"{found[side]:,.2f} ms" if side in found else "" for side in kernels.SIDES
    ]
    ends = [bar.get_x() + bar.get_width() for bar in explorer.bars]
    assert ends == pytest.approx([found.get(side, kernels.SHORTEST) for side in kernels.SIDES])


def test_refusals_are_the_kernels_sentences_and_flex_is_not_compiled(explorer, monkeypatch):
    monkeypatch.setattr(flex, "_run_compiled", None)
    explorer.tokens = 256
    assert "<b>flash</b>: needs CUDA, this is cpu" in explorer.numbers.value
    assert f"<b>flex</b>: {kernels.NOT_COMPILED}" in explorer.numbers.value
    explorer.dtype = "float64"
    assert "<b>flex</b>: takes float32, bfloat16 or float16, got torch.float64" in explorer.numbers.value


def test_every_control_moves_the_picture_and_no_artist_is_made(explorer):
    explorer.draw()
    made, seen = artists(explorer), {bytes(explorer.picture.value)}
    moves = [("tokens", 128), ("heads", 1), ("window", 9), ("wrap", False), ("dtype", "bfloat16")]
    for name, value in moves:
        setattr(explorer, name, value)
        assert bytes(explorer.picture.value) not in seen, name
        seen.add(bytes(explorer.picture.value))
        assert artists(explorer) == made, name


def test_what_was_measured_is_kept_and_drawn_at_once(explorer, monkeypatch):
    explorer.window = 16
    monkeypatch.setattr(kernels, "expect", None)
    times = []
    for window in (64, 16, 64, 16):
        start = time.process_time()
        explorer.window = window
        times.append(time.process_time() - start)
    assert min(times) < 0.25


def test_the_oldest_is_forgotten(explorer, monkeypatch):
    monkeypatch.setattr(kernels, "KEPT", 2)
    for window in (8, 16, 32):
        explorer.window = window
    assert [key[2] for key in explorer.kept] == [16, 32]


def test_refused_states(explorer):
    with pytest.raises(ValueError, match="tokens lies between 64 and 2048"):
        explorer.tokens = 4096
    with pytest.raises(ValueError, match="dtype is one of 'float64', 'float32', 'bfloat16'"):
        explorer.dtype = "float16"
