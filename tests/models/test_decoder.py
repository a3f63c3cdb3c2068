"""The decoder: against a loop over queries, block-local against dense, events alone against batches, empty masks."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from hepattn.models.decoder import Decoded, Decoder
from hepattn.models.decoder_config import DecoderConfig
from hepattn.models.decoder_layer import DecoderLayer
from hepattn.sequence import Layout

DIM = 32


def decoder(seed: int = 0, **settings) -> Decoder:
    torch.manual_seed(seed)
    config = DecoderConfig(**({"num_layers": 2, "num_heads": 2, "zero_start": False} | settings))
    made = Decoder(DIM, config).double()
    for part in made.modules():  # biases that are not zero, but where a layer begins as the identity
        if isinstance(part, nn.Linear) and part.bias is not None and not config.zero_start:
            nn.init.normal_(part.bias, std=0.2)
    return made


class Given:
    """Queries on hits of some events."""

    def __init__(self, queries: list[int], hits: list[int], seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.queries, self.hits = queries, hits
        self.q = torch.randn(sum(queries), DIM, generator=generator, dtype=torch.float64, requires_grad=True)
        self.x = torch.randn(sum(hits), DIM, generator=generator, dtype=torch.float64, requires_grad=True)
        places, start = [], 0
        for some, there in zip(queries, hits, strict=True):
            if some:
                places.append(start + torch.randperm(there, generator=generator)[:some].sort().values)
            start += there
        self.place = torch.cat(places) if places else torch.zeros(0, dtype=torch.int64)

    def run(self, made: Decoder, **more) -> Decoded:
        lengths = (Layout.of(n, self.x.device, total=sum(n)) for n in (self.queries, self.hits))
        query_layout, hit_layout = lengths
        return made(self.q, query_layout, self.x, hit_layout, self.place, own=self.place, **more)

    def moved(self, device: str, dtype: torch.dtype) -> "Given":
        """The same there, as leaves of their own."""
        other = copy.copy(self)
        other.q, other.x = (t.detach().to(device, dtype).requires_grad_() for t in (self.q, self.x))
        other.place = self.place.to(device)
        return other

    def masks(self, decoded: Decoded, layer: int = -1) -> list[Tensor]:
        """(Q_b, N_b) of each event."""
        ends = [0, *itertools.accumulate(self.hits)]
        prediction = decoded.predictions[layer]
        return [
            decoded.blocks.dense(prediction.masks, event, range(ends[event], ends[event + 1]), -99.0)
            for event in range(len(self.hits))
        ]


def test_one_layer_against_a_loop_over_queries():
    """Masked attention, dense network and self-attention by hand, in float64; the guard lets an empty mask see all."""
    made, given = decoder(num_layers=1, block=2, window=6, mask_bias=0.0, qk_norm=None), Given([5], [11])
    encoding, hit_encoding = torch.randn(5, DIM).double(), torch.randn(11, DIM).double()
    found = given.run(made, encoding=encoding, hit_encoding=hit_encoding)
    layer, blocks = made.layers[0], found.blocks
    assert isinstance(layer, DecoderLayer)
    before = given.masks(found, 0)[0]
    sees = blocks.dense(torch.ones(blocks.shape), 0, range(11), 0.0).bool()
    q = given.q
    cross = layer.cross
    assert cross.context_norm is not None
    normed, context = cross.residual.norm(q), cross.context_norm(given.x)
    weight, bias = cross.attention.qkv.weight, cross.attention.qkv.bias
    rows = []
    for i in range(5):
        allowed = (before[i].sigmoid() > 0.1) & sees[i]
        allowed[given.place[i]] |= sees[i, given.place[i]]
        allowed = allowed if allowed.any() else sees[i]
        query = (normed[i] + encoding[i]) @ weight[:DIM].T + bias[:DIM]
        keys = (context + hit_encoding) @ weight[DIM : 2 * DIM].T + bias[DIM : 2 * DIM]
        values = context @ weight[2 * DIM :].T + bias[2 * DIM :]
        heads = []
        for head in (slice(0, 16), slice(16, 32)):
            score = (keys[allowed][:, head] @ query[head]) / 16**0.5
            heads.append(score.softmax(0) @ values[allowed][:, head])
        rows.append(cross.attention.output(torch.cat(heads)))
    q = q + torch.stack(rows)
    q = q + layer.dense.dense(layer.dense.residual.norm(q))
    among = layer.among
    normed = among.residual.norm(q)
    weight, bias = among.attention.qkv.weight, among.attention.qkv.bias
    query, key = ((normed + encoding) @ weight[p].T + bias[p] for p in (slice(0, DIM), slice(DIM, 2 * DIM)))
    value = normed @ weight[2 * DIM :].T + bias[2 * DIM :]
    heads = [((query[:, h] @ key[:, h].T) / 16**0.5).softmax(1) @ value[:, h] for h in (slice(0, 16), slice(16, 32))]
    q = q + among.attention.output(torch.cat(heads, dim=1))
    masks = made.mask_query(made.norm(q)) @ made.mask_hit(given.x).T / DIM**0.5 + made.mask_bias
    assert torch.allclose(given.masks(found)[0][sees].double(), masks[sees], atol=1e-5)  # logits are float32
    assert torch.allclose(found.last.objects.double(), made.objects(made.norm(q))[:, 0], atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"update_hits": 6, "cls": 1}, {"gate": True, "laser": True}])
def test_blocks_agree_with_the_dense_decoder_where_they_see_all(settings):
    """Values and gradients."""
    local, dense = decoder(block=3, window=20, **settings), decoder(block=None, window=None, **settings)
    dense.load_state_dict(local.state_dict())
    given = Given([7, 0, 4, 1], [13, 5, 20, 1])
    results = []
    for made in (local, dense):
        found = given.run(made)
        last = torch.cat([m.flatten() for m in given.masks(found)])
        loss = last.square().sum() + found.last.objects.sum() + found.cls.square().sum()
        gradients = torch.autograd.grad(loss, [given.q, given.x, *made.parameters()], allow_unused=True)
        results.append([last, found.last.objects, found.cls, *(g for g in gradients if g is not None)])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_batch_is_its_events_alone():
    made = decoder(block=3, window=8, cls=2, update_hits=4)
    given = Given([6, 4], [15, 9])
    together = given.run(made)
    masks = given.masks(together)
    for event, (queries, hits) in enumerate(((slice(0, 6), slice(0, 15)), (slice(6, 10), slice(15, 24)))):
        alone = Given([given.queries[event]], [given.hits[event]])
        alone.q, alone.x, alone.place = given.q[queries], given.x[hits], given.place[queries] - hits.start
        found = alone.run(made)
        # a window is at most as long as the longest event: here 8 in both
        assert torch.allclose(alone.masks(found)[0], masks[event], atol=1e-6)
        assert torch.allclose(found.last.objects, together.last.objects[queries], atol=1e-6)
        assert torch.allclose(found.cls[0], together.cls[event], atol=1e-9)


def test_a_query_with_an_empty_mask_looks_at_all_it_sees():
    made, given = decoder(block=4, window=8, mask_bias=-60.0), Given([8], [30])
    unmasked = Decoder(DIM, DecoderConfig(2, 2, block=4, window=8, masked=False, mask_bias=-60.0)).double()
    unmasked.load_state_dict(made.state_dict())
    layouts = [Layout.of([n], "cpu", total=n) for n in (8, 30)]
    empty, free = (m(given.q, layouts[0], given.x, layouts[1], given.place) for m in (made, unmasked))
    assert torch.allclose(empty.last.masks, free.last.masks)
    (gradient,) = torch.autograd.grad(empty.last.masks.sum(), given.x)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_events_without_queries_or_hits():
    made = decoder(cls=1, update_hits=4)
    found = Given([0, 0], [5, 0]).run(made)
    assert found.last.objects.shape == (0,)
    assert found.cls.shape == (2, 1, DIM)
    assert found.cls.isfinite().all()


def test_cls_tokens_read_hits_and_queries():
    made, given = decoder(cls=1), Given([4], [9])
    found = given.run(made)
    for read in (given.q, given.x):
        (gradient,) = torch.autograd.grad(found.cls.square().sum(), read, retain_graph=True)
        assert (gradient.abs().sum(1) > 0).all()


def test_parameters_start_from_the_anchor_and_come_in_their_units():
    made, given = decoder(parameters=True, iou=True), Given([3], [8])
    anchor = torch.arange(18.0).view(3, 6).double()
    zero, moved = given.run(made), given.run(made, anchor=anchor)
    assert zero.last.parameters is not None
    assert moved.last.parameters is not None
    assert torch.allclose((moved.last.parameters - zero.last.parameters).double(), anchor, atol=1e-5)
    assert zero.last.iou is not None
    assert made.parameters_head is not None
    assert zero.predictions[0].parameters is not None
    raw = made.parameters_head(made.norm(given.q)) * torch.tensor([1, 1, 1, 5, 0.5, 1])
    assert torch.allclose(zero.predictions[0].parameters.double(), raw, atol=1e-5)


def test_zero_start_is_the_identity():
    made, given = decoder(zero_start=True, cls=1, update_hits=4), Given([5], [12])
    found = given.run(made)
    assert torch.equal(found.predictions[0].masks, found.last.masks)


def test_another_kernel_gives_the_same_numbers():
    made, given = decoder(block=None, window=None).float(), Given([6], [40])
    given.q, given.x = given.q.detach().float(), given.x.detach().float()
    with torch.no_grad():
        before = given.run(made).last.masks
        made.set_backend("flex")
        assert torch.allclose(given.run(made).last.masks, before, atol=1e-4)
    assert {part.backend for name, part in made.named_modules() if name.endswith("cross.attention")} == {"flex"}
    local = decoder(block=4)
    local.set_backend("flex")
    assert {part.backend for name, part in local.named_modules() if name.endswith("cross.attention")} == {"sdpa"}
    assert {part.backend for name, part in local.named_modules() if name.endswith("among.attention")} == {"flex"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_heads": 0}, "num_heads=0: give at least 1"),
        ({"window": 0}, "window=0: give at least 1, or None"),
        ({"mask_threshold": 1.0}, "expected a probability"),
        ({"layer_scale": 0.1}, "choose one"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        DecoderConfig(**settings)


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match="Decoder has no setting sound: it knows num_layers"):
        DecoderConfig.of({"sound": 1})
    assert str(DecoderConfig(gate=True, block=8)) == "3 layers, 4 heads, block=8, gate"
