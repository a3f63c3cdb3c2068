"""Attention weights of any call."""

import pytest
import torch
from hypothesis import given

from hepattn.attention import attend, attention_weights
from hepattn.masks import Window
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
