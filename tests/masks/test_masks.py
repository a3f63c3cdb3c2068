"""Every mask against the sentence that defines it, pair by pair."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask
from torch.utils._sympy.functions import FloorDiv

from hepattn.masks import Dense, GlobalTokens, Mask, Strided, Window
from hepattn.masks.base import PackedPairs, Place
from hepattn.masks.blocks import block_mask, block_relation
from hepattn.sequence import Layout

SIZE = st.integers(1, 13)
COUNT = st.integers(1, 12)


def by_hand(queries: int, keys: int, rule) -> torch.Tensor:  # type: ignore[no-untyped-def]
    return torch.tensor([[bool(rule(i, j)) for j in range(keys)] for i in range(queries)]).reshape(queries, keys)


@given(SIZE, COUNT)
def test_window(size: int, n: int) -> None:
    assert torch.equal(Window(size).dense(n), by_hand(n, n, lambda i, j: abs(i - j) <= size // 2))


@given(SIZE, COUNT)
def test_wrapped_window(size: int, n: int) -> None:
    expected = by_hand(n, n, lambda i, j: min(abs(i - j), n - abs(i - j)) <= size // 2)
    assert torch.equal(Window(size, wrap=True).dense(n), expected)


@given(SIZE, COUNT, COUNT, st.booleans())
def test_strided(size: int, queries: int, keys: int, wrap: bool) -> None:
    def rule(i: int, j: int) -> bool:
        distance = abs(j * queries - i * keys)  # in units of 1 / queries
        distance = min(distance, queries * keys - distance) if wrap else distance
        return 2 * distance <= size * queries

    mask = Strided(size, wrap=wrap)
    assert torch.equal(mask.dense(queries, keys), by_hand(queries, keys, rule))
    assert torch.equal(mask.transpose.dense(keys, queries), mask.dense(queries, keys).T)


def test_keys_of_an_inner_query() -> None:
    assert [int(Window(size).dense(21)[10].sum()) for size in (1, 2, 3, 4, 5)] == [1, 3, 3, 5, 5]


def test_drawn_as_in_the_docstring() -> None:
    for mask in (Window(2), Window(2, wrap=True)):
        rows = mask.draw(6).splitlines()
        column = 0 if not mask.wrap else 1
        drawn = [
            line.split("        ") for line in (Window.__doc__ or "").splitlines() if line.strip()[:1] in ("0", "1")
        ]
        assert rows == [parts[1 + column] if len(parts) == 3 else parts[column].strip() for parts in drawn]


def test_each_event_of_a_batch_is_drawn() -> None:
    mask = Dense([torch.ones(1, 1, dtype=torch.bool), torch.tensor([[True, False, True], [False, True, False]])])
    assert mask.draw(1) == "1"
    assert mask.draw(2, 3, event=1) == "1 0 1\n0 1 0"
    assert (Strided(1) & mask).draw(2, 3, event=1) == "1 0 0\n0 1 0"
    with pytest.raises(ValueError, match="none for event 2"):
        mask.draw(2, 3, event=2)


def test_composition() -> None:
    both = Window(4) & Dense(torch.eye(5, dtype=torch.bool))
    assert torch.equal(both.dense(5), torch.eye(5, dtype=torch.bool))
    either = (Window(2) | GlobalTokens([0])).dense(6)
    expected = by_hand(6, 6, lambda i, j: abs(i - j) <= 1 or i == 0 or j == 0)
    assert torch.equal(either, expected)


def test_masks_are_values() -> None:
    assert Window(4, wrap=True) == Window(4, wrap=True)
    assert len({Window(4), Window(4), Window(4) | GlobalTokens([1, 0]), Window(4) | GlobalTokens((0, 1))}) == 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Window(0), ValueError, "at least 1 token"),
        (
            lambda: Window(2.0),  # type: ignore[arg-type]
            TypeError,
            "whole number",
        ),
        (lambda: GlobalTokens([]), ValueError, "at least one position"),
        (lambda: GlobalTokens([-1]), ValueError, "counted from the start"),
        (lambda: Dense(torch.zeros(2, 2)), ValueError, "bool matrix"),
        (lambda: Dense(torch.ones(2, 3, dtype=torch.bool)).dense(2, 2), ValueError, "of 2 queries and 2 keys"),
    ],
)
def test_wrong_masks(make, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        make()


LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(lambda lengths: sum(lengths) > 0)
MASKS = st.one_of(
    st.none(),
    st.builds(Window, st.integers(1, 30), wrap=st.booleans()),
    st.builds(
        lambda w, g: Window(w, wrap=True) | GlobalTokens(g), st.integers(1, 9), st.sets(st.integers(0, 9), min_size=1)
    ),
    st.builds(lambda a, b: Window(a) & Window(b, wrap=True), st.integers(1, 20), st.integers(1, 20)),
    st.builds(Strided, st.integers(1, 9), wrap=st.booleans()),
)


def packed_pairs(mask: Mask | None, queries: Layout, keys: Layout) -> torch.Tensor:
    pairs = torch.zeros(queries.total, keys.total, dtype=torch.bool)
    i = j = 0
    for event, (n_q, n_k) in enumerate(zip(queries.host_lengths, keys.host_lengths, strict=True)):
        here = torch.ones(n_q, n_k, dtype=torch.bool) if mask is None else mask.dense(n_q, n_k, event=event)
        pairs[i : i + n_q, j : j + n_k] = here
        i, j = i + n_q, j + n_k
    return pairs


@given(LENGTHS, MASKS, st.sampled_from([4, 8, 16]))
def test_mask_mod_and_blocks_agree_with_all_pairs(lengths: list[int], mask: Mask | None, size: int) -> None:
    layout = Layout.of(lengths, "cpu")
    check_blocks(mask, layout, layout, size)


@given(LENGTHS, st.integers(1, 9), st.booleans(), st.data())
def test_blocks_of_cross_attention(lengths: list[int], width: int, wrap: bool, data: st.DataObject) -> None:
    other = data.draw(st.lists(st.integers(1, 40), min_size=len(lengths), max_size=len(lengths)))
    check_blocks(Strided(width, wrap=wrap), Layout.of(lengths, "cpu"), Layout.of(other, "cpu"), 8)


def check_blocks(mask: Mask | None, queries: Layout, keys: Layout, size: int) -> None:
    pairs = packed_pairs(mask, queries, keys)
    i, j = torch.arange(queries.total)[:, None], torch.arange(keys.total)[None, :]
    from hepattn.masks.base import MaskMod

    mod = MaskMod(mask, queries, keys)
    assert torch.equal(mod(torch.tensor(0), torch.tensor(0), i, j), pairs)
    some, every = block_relation(mask, queries, keys, size)
    for row in range(some.shape[0]):
        for column in range(some.shape[1]):
            block = pairs[row * size : (row + 1) * size, column * size : (column + 1) * size]
            assert bool(some[row, column]) or not block.any(), "a block with an allowed pair was left out"
            assert not every[row, column] or (block.all() and block.shape == (size, size))


def test_window_blocks_are_sparse() -> None:
    layout = Layout.of([4096], "cpu")
    some, every = block_relation(Window(256, wrap=True), layout, layout)
    assert some.sum(1).tolist() == [3] * 32
    some, every = block_relation(Window(1024, wrap=True), layout, layout)
    assert every.sum(1).tolist() == [7] * 32


def test_block_mask_is_kept_for_a_layout_only() -> None:
    layout, other = Layout.of([300, 100], "cpu"), Layout.of([200, 200], "cpu")
    first = block_mask(Window(64), layout, layout)
    assert block_mask(Window(64), layout, layout) is first
    assert block_mask(Window(65, wrap=True), layout, layout) is not first
    assert block_mask(Window(64), other, other) is not first


BOTH_WAYS: list[tuple[Mask | None, list[int], list[int] | None]] = [
    *product([Window(64, wrap=True), Window(16) | GlobalTokens([0]), None], [[700], [300, 0, 500]], [None]),
    *product([Strided(40, wrap=True), None], [[150]], [[450]]),
    *product([Strided(40).transpose, None], [[300, 0, 500]], [[30, 9, 200]]),
]


@pytest.mark.parametrize(("mask", "lengths", "kv_lengths"), BOTH_WAYS, ids=str)
def test_block_mask_holds_both_directions(mask: Mask | None, lengths: list[int], kv_lengths: list[int] | None) -> None:
    """What the backward pass reads, the blocks of each key, is what torch finds from the blocks of each query.

    Kernels take it for granted that the columns of a row stand side by side.
    """
    queries = Layout.of(lengths, "cpu")
    ours = block_mask(mask, queries, queries if kv_lengths is None else Layout.of(kv_lengths, "cpu"))
    theirs = BlockMask.from_kv_blocks(
        ours.kv_num_blocks, ours.kv_indices, ours.full_kv_num_blocks, ours.full_kv_indices, BLOCK_SIZE=128,
        mask_mod=ours.mask_mod, seq_lengths=ours.seq_lengths,
    )  # fmt: skip
    for name in ("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert getattr(ours, name).is_contiguous()


@pytest.mark.parametrize("lengths", [[100_000], [3, 100_000]], ids=["one event", "two events"])
@pytest.mark.parametrize("mask", [Strided(4), Strided(4).transpose, Strided(4, wrap=True).transpose], ids=str)
def test_positions_are_multiplied_in_64_bits(mask: Strided, lengths: list[int]) -> None:
    layout = Layout.of(lengths, "cpu")
    row = torch.tensor([[layout.total - 1]], dtype=torch.int32)
    mod = mask.mask_mod(layout, layout)
    zero = torch.tensor(0)
    assert mod(zero, zero, row, torch.arange(layout.total, dtype=torch.int32)[None]).sum() == (5 if mask.wrap else 3)


def test_dense_of_a_batch() -> None:
    masks = (torch.rand(3, 4) > 0.5, torch.rand(2, 5) > 0.5)
    queries, keys = Layout.of([3, 2], "cpu"), Layout.of([4, 5], "cpu")
    check_blocks(Dense(masks), queries, keys, 4)


@pytest.mark.parametrize("some", [slice(0, 6), slice(2, 5), slice(6, 6)], ids=str)
def test_rows_are_those_of_all_queries(some: slice) -> None:
    drawn = Dense([torch.rand(3, 4) > 0.5, torch.rand(6, 8) > 0.5])
    for mask in (drawn, Strided(3, wrap=True), Strided(5) & drawn, drawn | Strided(2)):
        assert torch.equal(mask.rows(some, Place(6, 8, 1), "cpu"), mask.dense(6, 8, event=1)[some])


def test_the_mask_of_one_event_of_a_batch() -> None:
    first, second = torch.rand(3, 3) > 0.5, torch.rand(5, 5) > 0.5
    both = Window(2) & (Dense([first, second]) | GlobalTokens([1]))
    assert torch.equal(both.of_event(1).dense(5), both.dense(5, event=1))
    assert torch.equal(both.of_event(0).dense(3), both.dense(3))
    window = Window(2) | GlobalTokens([0])
    assert window.of_event(1) is window


@given(st.lists(st.integers(0, 30), min_size=1, max_size=3), st.integers(0, 2**31))
def test_dense_blocks_are_exact(lengths: list[int], seed: int) -> None:
    """Only blocks with a pair are kept, and blocks with all pairs are known as such."""
    lengths = [*lengths, 9]
    generator = torch.Generator().manual_seed(seed)
    others = [max(1, n - 3) for n in lengths]
    coarse = [torch.rand(n // 4 + 1, m // 4 + 1, generator=generator) for n, m in zip(lengths, others, strict=True)]
    masks = [
        (c > 0.6).repeat_interleave(4, 0)[:n].repeat_interleave(4, 1)[:, :m]
        for c, n, m in zip(coarse, lengths, others, strict=True)
    ]
    queries, keys = Layout.of(lengths, "cpu"), Layout.of(others, "cpu")
    mask = Dense(masks)
    check_blocks(mask, queries, keys, 4)
    pairs = torch.block_diag(*(m.int() for m in masks)).bool()
    some, every = block_relation(mask, queries, keys, 4)
    blocks = (
        torch.nn.functional.pad(pairs, (0, -pairs.shape[1] % 4, 0, -pairs.shape[0] % 4)).unfold(0, 4, 4).unfold(1, 4, 4)
    )
    assert torch.equal(some, blocks.any(-1).any(-1))
    assert torch.equal(every, blocks.all(-1).all(-1))


def test_dense_goes_to_a_device_once() -> None:
    mask = Dense(torch.ones(2, 3, dtype=torch.bool))
    assert mask.to(torch.device("cpu")) is mask
    both = Window(2) & mask
    assert both.to(torch.device("cpu")) is both
    moved = both.to(torch.device("meta"))
    assert moved is not both
    assert mask.to(torch.device("meta")) is mask.to(torch.device("meta"))


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_graph_reads_the_same_positions_of_several_events(mode: type, cross: bool) -> None:
    """Without gradients the tables of events come from an operation that the graph does not look into."""

    def read(queries: Layout, keys: Layout, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor | int, ...]:
        pairs = PackedPairs(queries, keys)
        i, j, place = pairs.positions(q, k)
        return i, j, place.queries, place.keys, place.event, pairs.same(q, k)

    def inside(queries: Layout, keys: Layout, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor | int, ...]:
        queries, other = queries.entered(q.shape[0]), keys.entered(k.shape[1])
        return read(queries, other if cross else queries, q, k)

    graph = torch.compile(inside, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ([3, 5, 2], [4, 4, 1, 7]):
        queries = Layout.of(lengths, "cpu")
        keys = Layout.of([2 * n + 1 for n in lengths], "cpu") if cross else queries
        q, k = torch.arange(queries.total)[:, None], torch.arange(keys.total)[None, :]
        right = read(queries, keys, q, k)
        # by the definition
        together = queries.event[:, None] == keys.event[None, :]
        assert torch.equal(right[-1], together)  # type: ignore[arg-type]
        at = torch.broadcast_tensors(*(torch.as_tensor(x) for x in right))
        expected = (
            queries.position[:, None], keys.position[None, :], queries.lengths[queries.event][:, None],
            keys.lengths[keys.event][None, :], keys.event[None, :],
        )  # fmt: skip
        for one, exact in zip(at, expected, strict=False):
            assert torch.equal(one[together].long(), exact.expand_as(together)[together])
        with mode():
            found = graph(queries, keys, q, k)
        for one, eager in zip(found, right, strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(eager))
    torch.library.opcheck(torch.ops.hepattn.event_table.default, (queries.offsets.to(torch.int32), queries.event))


@pytest.mark.parametrize("lengths", [[5], [5, 3]], ids=str)
@pytest.mark.parametrize("cross", [False, True])
def test_no_tensor_of_a_mask_mod_has_two_names(lengths: list[int], cross: bool) -> None:
    """Else dynamo may ask one mask for the tensors of another, and raise AttributeError."""
    queries, keys = Layout.of(lengths, "cpu"), Layout.of([2 * n for n in lengths], "cpu")
    pairs = PackedPairs(queries, keys if cross else queries)
    tensors = [one for one in vars(pairs).values() if isinstance(one, torch.Tensor)]
    assert len({id(one) for one in tensors}) == len(tensors) >= 2


def test_a_graph_can_divide_by_its_number_of_blocks() -> None:
    """Else code generated for a GPU fails where it splits a map of blocks into rows."""
    found: list[Any] = []

    def look(graph: torch.fx.GraphModule, _: object) -> object:
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        found.extend(size.node.expr for size in output.args[0][0].meta["example_value"].shape[2:])
        return graph

    def indices(x: torch.Tensor, lengths: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        layout = Layout(lengths, offsets, len(x)).entered(len(x))
        return block_mask(Window(9), layout, layout).kv_indices

    layout = Layout.of([300, 90], "cpu")
    graph = torch.compile(indices, fullgraph=True, dynamic=True, backend=look)
    assert graph(torch.zeros(390), layout.lengths, layout.offsets).shape == (1, 1, 5, 5)
    rows, columns = found
    assert FloorDiv(rows * columns, columns) == rows
