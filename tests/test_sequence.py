"""`Packed` and `Layout`: three doors, one order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hepattn.sequence import Layout, Packed

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=5)


def make(lengths: list[int]) -> Packed:
    return Packed(torch.arange(2.0 * sum(lengths)).reshape(-1, 2), lengths)  # type: ignore[arg-type]


@given(LENGTHS)
def test_padded_there_and_back(lengths: list[int]) -> None:
    packed = make(lengths)
    padded, valid = packed.to_padded()
    assert padded.shape == (len(lengths), max(lengths), 2)
    assert valid.sum(1).tolist() == lengths
    assert (padded[~valid] == 0).all()
    back = Packed.from_padded(padded, valid)
    assert torch.equal(back.values, packed.values)
    assert back.lengths.tolist() == lengths


@given(LENGTHS)
def test_nested_there_and_back(lengths: list[int]) -> None:
    packed = make(lengths)
    nested = packed.to_nested()
    assert [len(part) for part in nested.unbind()] == lengths
    back = Packed.from_nested(nested)
    assert torch.equal(back.values, packed.values)
    assert back.lengths.tolist() == lengths


@given(LENGTHS, st.randoms(use_true_random=False))
def test_sort_is_stable_in_each_event_and_undone(lengths: list[int], random) -> None:  # type: ignore[no-untyped-def]
    packed = make(lengths)
    key = torch.tensor([random.choice([-1.0, 0.0, 0.5, 3.0]) for _ in range(sum(lengths))])
    ordered = packed.sort(key)
    start = 0
    for part, length in zip(ordered.split(), lengths, strict=True):
        tokens = sorted(range(start, start + length), key=lambda t: float(key[t]))  # Python's sort is stable
        assert torch.equal(part, packed.values[tokens])
        start += length
    assert torch.equal(ordered.unsort().values, packed.values)
    assert torch.equal(ordered.sort(torch.randn(sum(lengths))).unsort().values, packed.values)


def test_layout_tables() -> None:
    layout = Layout.of([3, 0, 2], "cpu")
    assert layout.event.tolist() == [0, 0, 0, 2, 2]
    assert layout.position.tolist() == [0, 1, 2, 0, 1]
    assert layout.max_length == 3
    assert layout.total == 5


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([2, 2], "sum to 4, but the tensor has 5"), ([6, -1], "negative"), ([2.5, 2.5], "one integer an event")],
)
def test_wrong_lengths(lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Packed(torch.zeros(5, 2), lengths)  # type: ignore[arg-type]


def test_values_that_are_no_tokens() -> None:
    with pytest.raises(TypeError, match="Packed got values of type list, expected a tensor"):
        Packed([1, 2], [2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Packed got one number .* expected values of shape \(T, ...\)"):
        Packed(torch.zeros(()), [1])  # type: ignore[arg-type]


def test_lengths_of_the_caller_are_not_changed() -> None:
    lengths = torch.tensor([2, 3], dtype=torch.int32)
    Packed(torch.zeros(5), lengths)
    assert lengths.dtype == torch.int32


def test_half_precision_keys_are_refused() -> None:
    packed = make([4])
    with pytest.raises(ValueError, match="float32 or finer"):
        packed.sort(torch.zeros(4, dtype=torch.float16))


def test_float32_key_keeps_the_order_of_57k_hits() -> None:
    phi = torch.linspace(-torch.pi, torch.pi, 57_344, dtype=torch.float64)[torch.randperm(57_344)]
    ordered = Packed(phi, [57_344]).sort(phi.float())  # type: ignore[arg-type]
    assert (ordered.values.diff() > 0).all()


def test_nan_in_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="1 NaN"):
        make([2]).sort(torch.tensor([0.0, torch.nan]))


def test_padding_is_never_cut() -> None:
    with pytest.raises(ValueError, match="would cut an event of 3"):
        make([3, 1]).to_padded(2)


def test_gradients_pass_every_door() -> None:
    values = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    packed = Packed(values, [3, 2])  # type: ignore[arg-type]
    padded, valid = packed.sort(torch.randn(5)).unsort().to_padded()
    (Packed.from_padded(padded, valid).to_nested().values() ** 2).sum().backward()
    assert torch.allclose(values.grad, 2 * values)  # type: ignore[arg-type]
