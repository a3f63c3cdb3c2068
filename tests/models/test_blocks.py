"""Blocks of queries and their windows of hits, against loops over events."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hepattn.models.blocks import Blocks

Case = tuple[list[int], list[int], int | None, int | None, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    events = draw(st.integers(1, 3))
    hits = [draw(st.integers(0, 12)) for _ in range(events)]
    queries = [draw(st.integers(0, 9)) if n else 0 for n in hits]
    sizes = st.one_of(st.none(), st.integers(1, 14))
    return queries, hits, draw(sizes), draw(sizes), draw(st.integers(0, 1000))


def places(queries: list[int], hits: list[int], seed: int) -> Tensor:
    """Rising rows of packed hits, event after event."""
    generator = torch.Generator().manual_seed(seed)
    parts, start = [torch.zeros(0, dtype=torch.int64)], 0
    for some, there in zip(queries, hits, strict=True):
        if some:
            parts.append(start + torch.randint(there, (some,), generator=generator).sort().values)
        start += there
    return torch.cat(parts)


def by_loop(place: Tensor, queries: list[int], hits: list[int], block: int, window: int) -> list[tuple[int, set[int]]]:
    """(query, the hits that it sees), query after query."""
    seen, query, first = [], 0, 0
    for some, there in zip(queries, hits, strict=True):
        for begin in range(0, some, block):
            members = range(query + begin, query + min(begin + block, some))
            middle = (int(place[members[0]]) + int(place[members[-1]])) // 2 - first
            reach = min(window, max([*hits, 1]))
            if there <= reach:
                window_hits = set(range(first, first + there))
            else:
                window_hits = {first + (middle - reach // 2 + slot) % there for slot in range(reach)}
            seen += [(member, window_hits) for member in members]
        query, first = query + some, first + there
    return seen


@given(cases())
@settings(max_examples=200, deadline=None)
def test_every_query_sees_the_window_of_its_block(case: Case):
    queries, hits, block, window, seed = case
    place = places(queries, hits, seed)
    blocks = Blocks.of(place, queries, hits, block, window)
    expected = by_loop(place, queries, hits, block or 100, window or 100)
    found = []
    for g, k in blocks.query_valid.nonzero().tolist():
        mine = blocks.hit[g][blocks.hit_valid[g]].tolist()
        assert len(mine) == len(set(mine))  # no hit twice
        found.append((int(blocks.query[g, k]), set(mine)))
    assert found == expected
    number = torch.arange(sum(queries))
    assert torch.equal(blocks.packed(number[blocks.query] if len(number) else blocks.query), number)
    assert blocks.event.tolist() == sorted(blocks.event.tolist())


@given(cases())
@settings(max_examples=100, deadline=None)
def test_dense_puts_each_logit_where_its_hit_is(case: Case):
    queries, hits, block, window, seed = case
    blocks = Blocks.of(places(queries, hits, seed), queries, hits, block, window)
    values = torch.arange(2 * torch.Size(blocks.shape).numel(), dtype=torch.float64).view(2, *blocks.shape)
    first_query, first_hit = 0, 0
    for event, (some, there) in enumerate(zip(queries, hits, strict=True)):
        dense = blocks.dense(values, event, range(first_hit, first_hit + there), -7.0)
        slow = torch.full((2, some, there), -7.0, dtype=torch.float64)
        for g, k in blocks.query_valid.nonzero().tolist():
            if int(blocks.event[g]) == event:
                for w in blocks.hit_valid[g].nonzero()[:, 0].tolist():
                    slow[:, int(blocks.query[g, k]) - first_query, int(blocks.hit[g, w]) - first_hit] = values[
                        :, g, k, w
                    ]
        assert torch.equal(dense, slow)
        first_query, first_hit = first_query + some, first_hit + there


def test_the_drawing_in_the_docstring():
    blocks = Blocks.of(torch.tensor([1, 2, 5, 7]), [4], [8], block=2, window=4)
    drawn = blocks.dense(torch.ones(blocks.shape), 0, range(8), 0.0).int().tolist()
    assert drawn == [[1, 1, 1, 0, 0, 0, 0, 1]] * 2 + [[0, 0, 0, 0, 1, 1, 1, 1]] * 2


def test_impossible_blocks_are_refused():
    place = torch.tensor([0])
    with pytest.raises(ValueError, match="at least 1, or None"):
        Blocks.of(place, [1], [2], block=0)
    with pytest.raises(ValueError, match="1 places for 2 queries"):
        Blocks.of(place, [2], [2])
    with pytest.raises(ValueError, match="event 0 has 1 queries and no hit"):
        Blocks.of(place, [1], [0])
