"""Attention weights of any call."""

import pytest
import torch
from hypothesis import given

from hepattn.attention import attend, attention_image, attention_top, attention_weights
from hepattn.attention import weights as weights_module
from hepattn.masks import Dense, Window
from tests.attention.cases import CASES, Case


@given(CASES)
def test_weights_give_the_output(case: Case) -> None:
    q, k, v, _ = case.tensors(torch.float32)
    weights = attention_weights(q, k, mask=case.mask, lengths=case.lengths)
    out = attend(q, k, v, mask=case.mask, lengths=case.lengths)
    assert torch.allclose(torch.einsum("hqk,khd->qhd", weights, v), out, atol=2e-6)
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)


def test_rows_are_rows_of_the_whole() -> None:
    q, k = torch.randn(2, 50, 2, 8)
    whole = attention_weights(q, k, mask=Window(6, wrap=True), lengths=[20, 30])
    some = attention_weights(q, k, mask=Window(6, wrap=True), lengths=[20, 30], rows=[41, 3])
    assert torch.allclose(some, whole[:, [41, 3]], atol=1e-6)


def test_too_many_weights_are_refused() -> None:
    q = torch.zeros(20_000, 1, 8)
    with pytest.raises(ValueError, match="choose rows"):
        attention_weights(q, q)
    assert attention_weights(q, q, rows=[7]).shape == (1, 1, 20_000)
    with pytest.raises(ValueError, match="rows must lie in"):
        attention_weights(q, q, rows=[20_000])


@given(CASES)
def test_the_largest_are_those_of_the_whole(case: Case) -> None:
    q, k, _, _ = case.tensors(torch.float32)
    whole = attention_weights(q, k, mask=case.mask, lengths=case.lengths)
    top = attention_top(q, k, 5, mask=case.mask, lengths=case.lengths)
    expected = torch.nn.functional.pad(whole, (0, 5)).topk(5).values
    assert torch.allclose(top.weights, expected, atol=1e-6)
    assert torch.equal(top.keys >= 0, top.weights > 0)
    named = whole.gather(-1, top.keys.clamp(min=0)).masked_fill(top.keys < 0, 0)
    assert torch.allclose(named, top.weights, atol=1e-6)


@pytest.mark.parametrize("few", [0, 2, 32])
@given(CASES)
def test_the_image_is_the_whole_map_in_bins(few: int, case: Case) -> None:
    """Added up one by one, or where keys lie in few bins, by a product."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(weights_module, "FEW_BINS", few)
        check_image(case)


def check_image(case: Case) -> None:
    q, k, _, _ = case.tensors(torch.float32)
    whole = attention_weights(q, k, mask=case.mask, lengths=case.lengths).double()
    rows, columns = torch.arange(len(q)) % 7, torch.arange(len(q)) % 4
    image = attention_image(q, k, rows, columns, mask=case.mask, lengths=case.lengths)
    one_hot = [torch.nn.functional.one_hot(b).double() for b in (rows, columns)]
    assert torch.allclose(image, torch.einsum("hqk,qa,kb->hab", whole, *one_hot), atol=1e-5)


@pytest.mark.parametrize("part", ["query", "key"])
def test_a_nan_is_seen(part: str) -> None:
    """And is no row that may attend to nothing, which gives zeros."""
    q, k = torch.randn(2, 9, 1, 8)
    pairs = torch.ones(9, 9, dtype=torch.bool)
    pairs[2], pairs[:4, 7] = False, False
    (q if part == "query" else k)[7, 0, 3] = torch.nan
    spoilt = torch.tensor([7] if part == "query" else [4, 5, 6, 7, 8])
    right = torch.tensor([row for row in range(9) if row not in spoilt])
    bins = torch.arange(9)
    whole = attention_weights(q, k, mask=Dense(pairs))
    image = attention_image(q, k, bins, bins, mask=Dense(pairs))
    top = attention_top(q, k, 1, mask=Dense(pairs)).weights
    for found in (whole, image, top):
        assert found[0, spoilt].isnan().any(-1).all()
        assert found[0, right].isfinite().all()
        assert (found[0, 2] == 0).all()
    assert torch.allclose(whole[0, right].sum(-1), (right != 2).float())


def test_large_maps_need_no_square_matrix() -> None:
    """50,000 x 50,000 weights would be 10 GB."""
    q, k = torch.randn(2, 50_000, 1, 8)
    bins = torch.arange(50_000) * 64 // 50_000
    image = attention_image(q, k, bins, bins, mask=Window(64, wrap=True))
    assert torch.allclose(image.sum((1, 2)), torch.tensor([50_000.0], dtype=torch.float64), rtol=1e-5)
    assert attention_top(q, k, 2, mask=Window(64)).keys.shape == (1, 50_000, 2)


def test_wrong_bins_and_counts() -> None:
    q = torch.randn(5, 1, 8)
    with pytest.raises(ValueError, match="query_bin takes one integer from 0 on"):
        attention_image(q, q, torch.zeros(4, dtype=torch.int64), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="count of at least 1"):
        attention_top(q, q, 0)
