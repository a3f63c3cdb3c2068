"""Grouped matrix products against each row's product in float64, values and gradients, whoever computes them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hepattn.layers.experts import _library, grouped_matmul

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def grouped(sizes: list[int], dims: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    x = torch.randn(sum(sizes), dims[0], generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(len(sizes), *dims, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return x, weight, torch.tensor(sizes).cumsum(0).int()


def slow_grouped(x: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
    expert = [e for e, size in enumerate(sizes) for _ in range(size)]
    return torch.stack([row @ weight[e] for row, e in zip(x, expert, strict=True)]) if expert else x @ weight[0]


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5),
    st.sampled_from([(8, 16), (16, 8), (3, 5), (1, 1)]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_grouped_product(sizes, dims, dtype, expanded):
    """Also for a gradient that is one number expanded, as that of a sum."""
    x, weight, offsets = grouped(sizes, dims, dtype)
    double_x, double_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    out, right = grouped_matmul(x, weight, offsets), slow_grouped(double_x, double_weight, sizes)
    gradient = torch.ones((), dtype=dtype).expand(out.shape) if expanded else torch.randn(out.shape).to(dtype)
    mine = torch.autograd.grad(out, (x, weight), gradient)
    expected = torch.autograd.grad(right, (double_x, double_weight), gradient.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.01}[dtype]
    for a, b in zip((out, *mine), (right, *expected), strict=True):
        assert a.dtype == dtype
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= tolerance * b.norm() + 1e-12


def test_grouped_product_has_a_second_derivative():
    x, weight, offsets = grouped([2, 0, 3], (3, 2), torch.float64)
    assert torch.autograd.gradcheck(grouped_matmul, (x, weight, offsets))
    assert torch.autograd.gradgradcheck(grouped_matmul, (x, weight, offsets))


def test_grouped_product_takes_any_strides():
    x, weight, offsets = (t.detach() for t in grouped([3, 5], (8, 16), torch.bfloat16))
    right = grouped_matmul(x, weight, offsets)
    flat = torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)  # an address that is no multiple of 16
    assert torch.equal(grouped_matmul(flat, weight, offsets), right)
    assert torch.equal(grouped_matmul(x.t().contiguous().t(), weight, offsets), right)
    assert torch.allclose(grouped_matmul(x, weight.mT.contiguous().mT, offsets), right, rtol=0.01)
    assert torch.equal(grouped_matmul(x, weight.permute(2, 1, 0).contiguous().permute(2, 1, 0), offsets), right)


def test_which_products_are_the_librarys():
    x = torch.zeros(4, 8)
    assert _library(x.bfloat16(), (8, 16))
    assert not _library(x.bfloat16(), (8, 12))
    assert not _library(x.bfloat16()[:0], (8, 16))
    assert not _library(x, (8, 16))


def test_grouped_product_refuses():
    x, weight, offsets = grouped([2, 3], (3, 2), torch.float32)
    with pytest.raises(ValueError, match=r"weight \(2, 3, 2\), .*expected \(N, D\), \(E, D, F\)"):
        grouped_matmul(x[:, :2], weight, offsets)
    with pytest.raises(ValueError, match="int32 offsets"):
        grouped_matmul(x, weight, offsets.long())
    for wrong in ([2, 4], [3, 6], [6, 5], [-1, 5]):
        with pytest.raises(ValueError, match="for 5 rows, expected them never to fall and to end in 5"):
            grouped_matmul(x, weight, torch.tensor(wrong, dtype=torch.int32))


@pytest.mark.cuda
@NO_GPU
def test_grouped_product_on_a_gpu():
    """Empty groups at both ends and in the middle; float32 takes a product a group."""
    torch.set_float32_matmul_precision("highest")
    sizes = [0, 130, 0, 1, 69, 0]
    for dtype, dims, tolerance in ((torch.bfloat16, (32, 64), 0.01), (torch.float32, (5, 7), 1e-5)):
        x, weight, offsets = grouped(sizes, dims, dtype)
        double_x, double_weight = (t.detach().double().requires_grad_() for t in (x, weight))
        right = slow_grouped(double_x, double_weight, sizes)
        there = x.detach().cuda().requires_grad_(), weight.detach().cuda().requires_grad_()
        out = grouped_matmul(there[0], there[1], offsets.cuda())
        mine = torch.autograd.grad(out.sum(), there)
        expected = torch.autograd.grad(right.sum(), (double_x, double_weight))
        for a, b in zip((out, *mine), (right, *expected), strict=True):
            assert (a.double().cpu() - b).norm() <= tolerance * b.norm()
