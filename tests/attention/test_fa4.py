"""What flash-attn-4 is given, and what becomes of its gradients; its kernels are dense ones of the same meaning."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hepattn.attention.backends import fa4, flash
from hepattn.attention.functional import make_call
from hepattn.attention.reference import attend_reference
from hepattn.masks import GlobalTokens, Mask, Window
from hepattn.masks.blocks import block_relation
from hepattn.sequence import Layout

MASKS: list[Mask | None] = [
    None,
    Window(7),
    Window(64, wrap=True),
    Window(9, wrap=True),
    Window(1, wrap=True),
    Window(20, wrap=True) | GlobalTokens([0, 3]),
    Window(33) | GlobalTokens([2, 150]),
]
LENGTHS = [[300], [1], [130, 0, 1, 5, 260]]


class Dense4:
    """`flash_attn.cute.interface` by dense matrices; notes in which way it was called.

    Inside an operation there is no autograd, so its gradients are written out (FlashAttention-2, arXiv:2307.08691,
    section 2.3; the log-sum-exp's adds to those of the scores).
    """

    def __init__(self) -> None:
        self.called: list[str] = []

    def _flash_attn_fwd(self, q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool, **options: Any) -> Any:
        assert return_lse
        self.called.append("ring" if "mask_mod" in options else "one" if q.ndim == 4 else "packed")
        if q.ndim == 4:
            out, lse, _ = self.forward(q[0], k[0], v[0], **options)
            return out[None], lse[None], None, None, None
        return *self.forward(q, k, v, **options)[:2], None, None, None

    def _flash_attn_bwd(
        self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, grad: Tensor, lse: Tensor, *, dlse: Tensor | None,
        softmax_scale: float, **options: Any,
    ) -> Any:  # fmt: skip
        self.called.append("back")
        if q.ndim == 4:
            given = [x[0] for x in (q, k, v, out, grad, lse)]
            found = self.backward(given, None if dlse is None else dlse[0], softmax_scale, options)
            return [x[None] for x in found]
        return self.backward([q, k, v, out, grad, lse], dlse, softmax_scale, options)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores = torch.einsum("qhd,khd->hqk", q, k) * softmax_scale
        scores = scores.masked_fill(~pairs_of(len(q), len(k), **options), -torch.inf)
        weights = scores.softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v), scores.logsumexp(-1).float(), weights

    def backward(
        self, given: list[Tensor], dlse: Tensor | None, scale: float, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, grad, lse = given
        again, lse_again, weights = self.forward(q, k, v, softmax_scale=scale, **options)
        assert torch.allclose(again, out)
        assert torch.allclose(lse_again, lse)
        change = torch.einsum("qhd,khd->hqk", grad, v) - (grad * out).sum(-1).T[..., None]
        if dlse is not None:
            change = change + dlse[..., None]
        change = weights * change * scale
        to_q, to_k = torch.einsum("hqk,khd->qhd", change, k), torch.einsum("hqk,qhd->khd", change, q)
        return to_q, to_k, torch.einsum("hqk,qhd->khd", weights, grad)


def pairs_of(
    queries: int, keys: int, *, mask_mod: Any = None, aux_tensors: Any = None, block_sparse_tensors: Any = None,
    window_size_left: int | None = None, window_size_right: int | None = None, cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None, max_seqlen_q: int | None = None, max_seqlen_k: int | None = None,
) -> Tensor:  # fmt: skip
    """(queries, keys) bool, True = seen; windows are aligned at the last query and key of an event."""
    i, j = torch.arange(queries)[:, None], torch.arange(keys)[None, :]
    if mask_mod is not None:
        pairs = mask_mod(i, j, *(x[:, None] for x in aux_tensors or ()))
        return pairs & block_sparse_tensors(pairs)
    starts = [torch.tensor([0, n]) if x is None else x for x, n in ((cu_seqlens_q, queries), (cu_seqlens_k, keys))]
    for start, most in zip(starts, (max_seqlen_q, max_seqlen_k), strict=True):
        assert most is None or start.diff().max() <= most
    pairs = torch.zeros(queries, keys, dtype=torch.bool)
    left, right = (10**9 if side is None else side for side in (window_size_left, window_size_right))
    for event in range(len(starts[0]) - 1):
        (first_i, end_i), (first_j, end_j) = ((int(x[event]), int(x[event + 1])) for x in starts)
        step = (j - end_j) - (i - end_i)
        inside = (i >= first_i) & (i < end_i) & (j >= first_j) & (j < end_j)
        pairs |= inside & (step >= -left) & (step <= right)
    return pairs


def spread(numbers: Tensor, indices: Tensor) -> Tensor:
    """(rows, columns) bool of tiles named row by row."""
    rows, columns = indices.shape[-2:]
    found = torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        found[row, indices[0, 0, row, : int(numbers[0, 0, row])].long()] = True
    return found


def tiles_of(tiles: list[Tensor]) -> Any:
    """Pairs that a kernel visits: those of partly allowed tiles if the mask allows them, all of wholly allowed ones."""
    some, every = spread(tiles[0], tiles[1]), spread(tiles[2], tiles[3])

    def visited(pairs: Tensor) -> Tensor:
        big = [x.repeat_interleave(fa4.TILE, 0).repeat_interleave(fa4.TILE, 1) for x in (some, every)]
        if not all(x[: pairs.shape[0], : pairs.shape[1]].shape == pairs.shape for x in big):
            raise AssertionError(f"{some.shape} tiles for {pairs.shape} pairs")
        partly, wholly = (x[: pairs.shape[0], : pairs.shape[1]] for x in big)
        if pairs.T.equal(pairs):  # a ring looks the same from its keys
            assert pairs[wholly].all()
        return partly | wholly

    return visited


def one_ring(query: Tensor, key: Tensor, *, half: int) -> Tensor:
    return fa4.near_on_ring(query - key, len(query), half)


def rings(query: Tensor, key: Tensor, first: Tensor, length: Tensor, *, half: int) -> Tensor:
    return (key >= first) & (key < first + length) & fa4.near_on_ring(query - key, length, half)


@pytest.fixture
def dense4(monkeypatch: pytest.MonkeyPatch) -> Dense4:
    kernels = Dense4()
    monkeypatch.setattr(fa4, "_kernels", lambda: kernels)
    monkeypatch.setattr(fa4, "_one_ring", lambda half: partial(one_ring, half=half))
    monkeypatch.setattr(fa4, "_rings", lambda half: partial(rings, half=half))
    monkeypatch.setattr(fa4, "_sparse", tiles_of)
    return kernels


DOOR = flash.DOORS["flash_attn.cute"]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_values_lse_and_gradients_of_both(dense4: Dense4, mask: Mask | None, lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    total = sum(lengths)
    q, k, v = (torch.randn(total, 2, 8, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))
    leaves = (q, k, v)
    weights = [torch.randn(total, 2, *shape, generator=generator, dtype=torch.float64) for shape in ((8,), ())]
    found = flash.attend_varlen(make_call(q, k, v, mask, lengths, None, None, return_lse=True), DOOR)
    exact = attend_reference(q, k, v, mask=mask, lengths=lengths)
    assert all(torch.allclose(one.double(), other, atol=1e-6) for one, other in zip(found, exact, strict=True))
    # an lse alone, an output alone, and both
    for chosen in ([0], [1], [0, 1]):
        mine, right = (
            torch.autograd.grad(
                [pair[i] for i in chosen],
                leaves,
                [weights[i].to(pair[i].dtype) for i in chosen],
                retain_graph=True,
                materialize_grads=True,
            )
            for pair in (found, exact)
        )
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(mine, right, strict=True))
    ring = isinstance(mask, Window) and mask.wrap and mask.half
    assert dense4.called.count("ring") == bool(ring or mask == MASKS[5])


def test_one_event_is_run_without_offsets_and_several_with_them(dense4: Dense4) -> None:
    for lengths, way in (([9], "one"), ([4, 5], "packed")):
        x = torch.randn(9, 1, 8, dtype=torch.float64)
        flash.attend_varlen(make_call(x, x, x, Window(4), lengths, None, None), DOOR)
        assert dense4.called[-1] == way


@pytest.mark.parametrize("mask", [Window(8), Window(8, wrap=True)], ids=str)
def test_a_graph_holds_it_for_all_lengths(dense4: Dense4, mask: Mask) -> None:
    def work(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        return flash.attend_varlen(make_call(q, k, v, mask, layout, None, None), DOOR)[0]

    graph = torch.compile(work, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ([40, 200], [3, 71]):
        q, k, v = (torch.randn(sum(lengths), 2, 8, dtype=torch.float64).requires_grad_() for _ in range(3))
        out, exact = graph(q, k, v, Layout.of(lengths, "cpu")), attend_reference(q, k, v, mask=mask, lengths=lengths)[0]
        assert torch.allclose(out, exact, atol=1e-6)
        mine, right = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (out, exact))
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(mine, right, strict=True))
    assert "back" in dense4.called


def test_tiles_are_those_of_the_block_mask() -> None:
    """One that is left out of them would be found by the tests above."""
    layout = Layout.of([400], "cpu")
    some, every = block_relation(Window(20, wrap=True), layout, layout, fa4.TILE)
    pairs = Window(20, wrap=True).dense(400)
    with pytest.raises(AssertionError, match="tiles for"):
        tiles_of([torch.zeros(1, 1, 2, dtype=torch.int32), torch.zeros(1, 1, 2, 2, dtype=torch.int32)] * 2)(pairs)
    assert some.shape == (4, 4)
    assert not every[0, 3]
    assert some[0, 3]  # around the seam
