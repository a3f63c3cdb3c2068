"""Every switch that the decoder shares with the encoder, alone and together: by hand, in blocks, apart, learning."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from hepattn.attention.backends import flex
from hepattn.attention.module import Attention, record_attention
from hepattn.attention.rotation import Rotation
from hepattn.data import sample_events
from hepattn.data.track_dataset import track_batch
from hepattn.layers import Experts, mean_losses
from hepattn.masks import Strided
from hepattn.models.decoder import Decoded, Decoder
from hepattn.models.decoder_config import DecoderConfig
from hepattn.models.decoder_layer import CrossStep, DecoderLayer, DenseStep, Tokens
from hepattn.models.maskformer import MaskFormer, MaskFormerConfig
from hepattn.models.track_targets import TrackTruth, track_loss
from hepattn.sequence import Layout, Packed
from tests.models.test_decoder import DIM, Given, decoder
from tests.models.test_maskformer import DECODER, SMALL, tracker

SWITCHES: dict[str, dict[str, Any]] = {
    "hybrid norm": {"hybrid_norm": True},
    "norms of q, k and v": {"qk_norm": "layer", "v_norm": True},
    "value residual": {"value_residual": True},
    "experts": {"experts": 3},
    "rotary": {"rotary": True},
    "all": {
        "hybrid_norm": True,
        "value_residual": True,
        "experts": 3,
        "experts_per_token": 1,
        "rotary": True,
        "gate": True,
    },
}
BESIDE: dict[str, Any] = {"update_hits": 6, "cls": 1}


def where(hits: list[int], seed: int = 2) -> Tensor:
    """(T, 2) float32, phi, rising in each event, and eta."""
    generator = torch.Generator().manual_seed(seed)
    turns = [torch.rand(n, generator=generator).sort().values for n in hits]
    eta = 4 * torch.rand(sum(hits), generator=generator) - 2
    return torch.stack([2 * math.pi * torch.cat(turns) - math.pi, eta], dim=1)


def said(given: Given, found: Decoded) -> Tensor:
    """All that a decoder says, as one vector."""
    last = found.last
    more = [one.flatten() for one in (last.objects, last.parameters, last.iou, found.cls) if one is not None]
    return torch.cat([*(mask.flatten() for mask in given.masks(found)), *more])


# -- by hand -----------------------------------------------------------------------------------------------------------
def slow_turn(x: Tensor, angles: Tensor | None) -> Tensor:
    """One complex number a pair, times exp(i angle)."""
    if angles is None:
        return x
    turned = torch.complex(*x.chunk(2, -1)) * torch.exp(1j * angles.double())[:, None]
    return torch.cat([turned.real, turned.imag], -1)


def slow_attention(
    a: Attention,
    x: Tensor,
    context: Tensor,
    allowed: Tensor,
    angles: tuple[Tensor | None, Tensor | None],
    first: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Token by token and head by head; `allowed` (n, m) bool, `angles` of x and of the context."""
    heads, channels = a.num_heads, DIM // a.num_heads
    parts = zip((x, context, context), a.qkv.weight.chunk(3), a.qkv.bias.chunk(3), strict=True)
    q, k, v = ((of @ weight.T + bias).view(-1, heads, channels) for of, weight, bias in parts)
    q, k, v = slow_turn(a.q_norm(q), angles[0]), slow_turn(a.k_norm(k), angles[1]), a.v_norm(v)
    value = v
    if first is not None:
        assert a.mix is not None
        share = torch.sigmoid(a.mix(context))[..., None]
        v = share * v + (1 - share) * first
    rows = []
    for i in range(len(x)):
        keys = allowed[i].nonzero()[:, 0]
        scores = [torch.stack([q[i, h] @ k[j, h] for j in keys]) / channels**0.5 for h in range(heads)]
        rows.append(torch.cat([score.softmax(0) @ v[keys, h] for h, score in enumerate(scores)]))
    out = torch.stack(rows)
    return a.output(out if a.gate is None else torch.sigmoid(a.gate(x)) * out), value


class Slow:
    """A decoder of one event, `hybrid`: a layer in which attention norms nothing but q, k and v."""

    def __init__(self, made: Decoder, given: Given, sees: Tensor, angles: Tensor | None) -> None:
        self.made, self.place, self.sees = made, given.place, sees
        self.of_hits, self.of_queries = angles, None if angles is None else angles[given.place]
        assert made.cls is not None
        self.q: Tensor = given.q
        self.x: Tensor = given.x
        self.cls: Tensor = made.cls
        first: Tensor | None = None
        for index, layer in enumerate(made.layers):
            assert isinstance(layer, DecoderLayer)
            first = self.layer(layer, first, hybrid=made.config.hybrid_norm and index > 0)

    def masks(self) -> Tensor:
        made = self.made
        return made.mask_query(made.norm(self.q)) @ made.mask_hit(self.x).T / DIM**0.5 + made.mask_bias

    def layer(self, layer: DecoderLayer, first: Tensor | None, *, hybrid: bool) -> Tensor | None:
        own = self.place[:, None] == torch.arange(len(self.x))
        allowed = ((self.masks().sigmoid() > 0.1) | own) & self.sees
        allowed |= self.sees & ~allowed.any(1, keepdim=True)
        to_hits, to_queries = (self.of_queries, self.of_hits), (self.of_hits, self.of_queries)
        self.q = self.cross(layer.cross, self.q, self.x, allowed, to_hits, hybrid=hybrid)
        self.q = self.dense(layer.dense, self.q, hybrid=hybrid)
        given = self.q if hybrid else layer.among.residual.norm(self.q)
        everyone, angles = torch.ones(len(given), len(given), dtype=torch.bool), (self.of_queries, self.of_queries)
        update, value = slow_attention(layer.among.attention, given, given, everyone, angles, first)
        self.q = self.q + update
        assert layer.update is not None
        allowed = Strided(BESIDE["update_hits"], wrap=True).transpose.dense(len(self.x), len(self.q))
        self.x = self.cross(layer.update, self.x, self.q, allowed, to_queries, hybrid=hybrid)
        assert layer.cls is not None
        for step, read in ((layer.cls.hits, self.x), (layer.cls.queries, self.q)):
            everyone = torch.ones(len(self.cls), len(read), dtype=torch.bool)
            self.cls = self.cross(step, self.cls, read, everyone, (None, None), hybrid=hybrid)
        self.cls = self.dense(layer.cls.dense, self.cls, hybrid=hybrid)
        return value if first is None and self.made.config.value_residual else first

    def cross(
        self, step: CrossStep, x: Tensor, context: Tensor, allowed: Tensor, angles: Any, *, hybrid: bool
    ) -> Tensor:
        if hybrid:
            assert not [*step.residual.norm.parameters(), *step.context_norm.parameters()]
            return x + slow_attention(step.attention, x, context, allowed, angles)[0]
        normed = step.residual.norm(x)
        return x + slow_attention(step.attention, normed, step.context_norm(context), allowed, angles)[0]

    def dense(self, step: DenseStep, x: Tensor, *, hybrid: bool) -> Tensor:
        normed = step.residual.norm(x)
        update = step.dense(normed)[0] if isinstance(step.dense, Experts) else step.dense(normed)
        return (normed if hybrid else x) + update


@pytest.mark.parametrize("block", [2, None])
@pytest.mark.parametrize("switch", SWITCHES)
def test_layers_written_out(switch: str, block: int | None) -> None:
    """CLS tokens, which stand nowhere, see keys that are not turned."""
    made = decoder(block=block, window=None if block is None else 6, mask_bias=0.0, **BESIDE, **SWITCHES[switch])
    given, coordinates = Given([5], [11]), where([11])
    found = given.run(made, coordinates=coordinates)
    sees = found.blocks.dense(torch.ones(found.blocks.shape), 0, range(11), 0.0).bool()
    angles = None if made.rotary is None else made.rotary(coordinates)
    slow = Slow(made, given, sees, angles)
    assert torch.allclose(given.masks(found)[0][sees].double(), slow.masks()[sees], atol=1e-5)  # logits are float32
    assert torch.allclose(found.last.objects.double(), made.objects(made.norm(slow.q))[:, 0], atol=1e-5)
    assert torch.allclose(found.cls[0], made.norm(slow.cls), atol=1e-5)


# -- alone and together ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("switch", SWITCHES)
def test_every_weight_learns(switch: str) -> None:
    made = decoder(block=4, window=12, parameters=True, iou=True, **BESIDE, **SWITCHES[switch])
    given = Given([17, 1, 0, 8], [30, 5, 4, 12])
    loss = said(given, given.run(made, coordinates=where(given.hits))).square().sum()
    weights = dict(made.named_parameters())
    found = torch.autograd.grad(loss, [given.q, given.x, *weights.values()])
    assert loss.isfinite()
    still = [name for name, g in zip(["q", "x", *weights], found, strict=True) if not g.isfinite().all() or not g.any()]
    assert not still


@pytest.mark.parametrize("switch", SWITCHES)
def test_blocks_agree_with_the_dense_decoder_where_they_see_all(switch: str) -> None:
    """Values and gradients, also those of the routers."""
    local = decoder(block=3, window=20, **BESIDE, **SWITCHES[switch])
    dense = decoder(block=None, window=None, **BESIDE, **SWITCHES[switch])
    dense.load_state_dict(local.state_dict())
    given = Given([7, 0, 4, 1], [13, 5, 20, 1])
    results = []
    for made in (local, dense):
        found = given.run(made, coordinates=where(given.hits))
        out = said(given, found)
        loss = out.square().sum() if found.losses is None else out.square().sum() + sum(found.losses)
        gradients = torch.autograd.grad(loss, [given.q, given.x, *made.parameters()], allow_unused=True)
        results.append([out, *(g for g in gradients if g is not None)])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_batch_is_its_events_alone(switch: str) -> None:
    made = decoder(block=3, window=8, cls=1, update_hits=4, **SWITCHES[switch])
    given, coordinates = Given([6, 4], [15, 9]), where([15, 9])
    together = given.run(made, coordinates=coordinates)
    for event, (queries, hits) in enumerate(((slice(0, 6), slice(0, 15)), (slice(6, 10), slice(15, 24)))):
        alone = Given([given.queries[event]], [given.hits[event]])
        alone.q, alone.x, alone.place = given.q[queries], given.x[hits], given.place[queries] - hits.start
        found = alone.run(made, coordinates=coordinates[hits])
        assert torch.allclose(alone.masks(found)[0], given.masks(together)[event], atol=1e-6)
        assert torch.allclose(found.last.objects, together.last.objects[queries], atol=1e-6)
        assert torch.allclose(found.cls[0], together.cls[event], atol=1e-9)


def test_events_without_queries_or_hits() -> None:
    made = decoder(**BESIDE, **SWITCHES["all"])
    found = Given([0, 0], [5, 0]).run(made, coordinates=where([5]))
    assert found.last.objects.shape == (0,)
    assert found.cls.isfinite().all()
    assert found.losses is not None
    assert all(loss == 0 for loss in found.losses)


@pytest.mark.parametrize("switch", SWITCHES)
def test_zero_start_is_the_identity(switch: str) -> None:
    """With HybridNorm but for the norm that the predictions begin with anyway."""
    made, given = decoder(zero_start=True, **BESIDE, **SWITCHES[switch]), Given([5], [12])
    found = given.run(made, coordinates=where([12]))
    assert torch.allclose(found.predictions[0].masks, found.last.masks, atol=1e-5)
    assert torch.allclose(found.predictions[0].objects, found.last.objects, atol=1e-5)


@pytest.mark.parametrize("switch", SWITCHES)
def test_half_precision_learns(switch: str) -> None:
    """Under autocast, with float32 weights."""
    made, given = decoder(block=4, window=12, **BESIDE, **SWITCHES[switch]).float(), Given([9], [30])
    given.q, given.x = given.q.detach().float(), given.x.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = given.run(made, coordinates=where([30]))
    said(given, found).float().square().sum().backward()
    assert found.last.masks.dtype == torch.float32
    gradients = {name: one.grad for name, one in made.named_parameters()}
    assert not [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()]


@pytest.mark.slow
def test_flex_gives_the_same_numbers() -> None:
    if reason := flex.missing("cpu"):
        pytest.skip(reason)
    made, given = decoder(block=None, window=None, **BESIDE, **SWITCHES["all"]).float(), Given([6], [40])
    given.q, given.x = given.q.detach().float(), given.x.detach().float()
    with torch.no_grad():
        expected = said(given, given.run(made, coordinates=where([40])))
        made.set_backend("flex")
        assert torch.allclose(said(given, given.run(made, coordinates=where([40]))), expected, atol=1e-4)


@pytest.mark.slow
def test_steps_compile_as_one_graph() -> None:
    """All of a layer but the cross-attention in blocks, whose number depends on the events; values and gradients."""
    torch._dynamo.reset()
    made = decoder(**BESIDE, **SWITCHES["all"])
    layer = made.layers[1]
    assert isinstance(layer, DecoderLayer)
    heads = (made.config.num_heads, DIM // made.config.num_heads)

    def steps(q: Tensor, x: Tensor, cls: Tensor, place: Tensor, at: Tensor, layouts: list[Layout]) -> list[Tensor]:
        inside = [layout.entered(len(t)) for layout, t in zip(layouts, (q, x, cls), strict=True)]
        turned = made._rotation(at)
        queries = Tokens(q, inside[0], None, None if turned is None else turned.of_rows(place))
        hits = Tokens(x, inside[1], None, turned)
        queries, loss = layer.dense(queries)
        first = q.unflatten(-1, heads) if made.config.value_residual else None
        queries, _ = layer.among(queries, first)
        assert layer.update is not None
        assert layer.cls is not None
        hits = layer.update(hits, queries, Strided(6, wrap=True).transpose)
        read = layer.cls(Tokens(cls, inside[2]), hits, queries)
        return [queries.values, hits.values, read.values, *([] if loss is None else loss)]

    compiled = torch.compile(steps, fullgraph=True, dynamic=True, backend="aot_eager")
    before = counters["stats"]["unique_graphs"]
    for rows, columns in (([9, 3, 6], [30, 12, 25]), ([5, 14, 20], [40, 33, 61])):
        given, layouts = Given(rows, columns), [Layout.of(n, "cpu") for n in (rows, columns, [2] * 3)]
        cls = torch.randn(6, DIM, dtype=torch.float64, requires_grad=True)
        results = []
        for run in (steps, compiled):
            outs = run(given.q, given.x, cls, given.place, where(columns), layouts)
            loss = torch.stack([one.square().sum() for one in outs]).sum()
            grads = torch.autograd.grad(loss, [given.q, given.x, cls, *layer.parameters()], allow_unused=True)
            results.append([*outs, *(g for g in grads if g is not None)])
        for one, other in zip(*results, strict=True):
            assert torch.allclose(one, other, atol=1e-6)
    assert counters["stats"]["unique_graphs"] - before <= 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("block", [4, None])
@pytest.mark.parametrize("kind", ["sdpa", "flex", "auto", "auto in half precision"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_on_a_gpu_as_on_the_cpu(switch: str, kind: str, block: int | None) -> None:
    """Values and gradients, against float64; in half precision without masks from logits, which have thresholds."""
    torch.set_float32_matmul_precision("highest")
    half = "half" in kind
    window = None if block is None else 40
    made = decoder(block=block, window=window, masked=not half, **BESIDE, **SWITCHES[switch])
    given, coordinates = Given([60, 0, 25, 1], [300, 5, 90, 1]), where([300, 5, 90, 1])
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        made.to(device, dtype).set_backend("sdpa" if device == "cpu" else kind.split(maxsplit=1)[0])
        here = given.moved(device, dtype)
        with torch.autocast("cuda", torch.bfloat16, enabled=half and device == "cuda"):
            found = here.run(made, coordinates=coordinates.to(device))
        out = said(here, found).to(dtype)
        loss = out.square().mean() if found.losses is None else out.square().mean() + sum(found.losses)
        grads = torch.autograd.grad(loss, [here.q, here.x, *made.parameters()], allow_unused=True)
        results.append([x.detach().double().cpu() for x in (out, *grads) if x is not None])
    expected, found_there = results
    assert all(one.isfinite().all() for one in found_there)
    if half and SWITCHES[switch].get("experts"):  # a rounded token may choose other experts
        return
    least = 0.01 * max(float(one.norm()) for one in expected[1:])
    far = [
        float((one - other).norm()) / max(float(other.norm()), least)
        for one, other in zip(found_there, expected, strict=True)
    ]
    assert far[0] < (0.03 if half else 1e-4)
    assert max(far[1:]) < (0.1 if half else 1e-3)


# -- rotary ------------------------------------------------------------------------------------------------------------
def test_turning_the_detector_changes_nothing_that_rotary_sees() -> None:
    made, given = decoder(block=3, window=8, masked=False, rotary=True, **BESIDE), Given([6, 4], [15, 9])
    coordinates = where(given.hits)
    out = said(given, given.run(made, coordinates=coordinates))
    turned = coordinates.clone()
    turned[:, 0] = torch.remainder(coordinates[:, 0] + 2.3 + math.pi, 2 * math.pi) - math.pi
    assert not torch.allclose(said(given, given.run(made, coordinates=coordinates.flip(0))), out, atol=1e-2)
    # up to 512 turns in a turn of phi: float32 angles are good to 1e-4 rad
    assert torch.allclose(said(given, given.run(made, coordinates=turned)), out, atol=2e-3)
    seam = [coordinates.clone(), coordinates.clone()]
    for one, phi in zip(seam, (-math.pi, math.pi), strict=True):
        one[[0, 14, 15], 0] = phi
    one, other = (said(given, given.run(made, coordinates=at)) for at in seam)
    assert torch.equal(one, other)


def test_a_tracker_with_rotary_alone_does_not_see_where_phi_begins() -> None:
    """Its hits come in another order, too."""
    free = DecoderConfig(2, 2, block=None, window=None, masked=False, rotary=True, zero_start=False)
    made = tracker(
        features=("r", "z"),
        encoder=replace(SMALL, num_heads=2),
        decoder=replace(free, mask_bias=0.0),
        phi_octaves=0,
        query_octaves=0,
        query_threshold=0.999,
        rotary=True,
    )
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 6, generator=generator)
    inputs[:, 2:4] = where([40])[torch.randperm(40, generator=generator)]
    also = torch.arange(40) % 5 == 0
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(1.5)  # so that hits differ
    results = []
    for angle in (0.0, 1.0, 4.0):
        there = inputs.clone()
        there[:, 2] = torch.remainder(inputs[:, 2] + angle + math.pi, 2 * math.pi) - math.pi
        with torch.no_grad():
            seen = made.see(Packed(there, torch.tensor([40])), also)
        assert seen.hits.order is not None
        masks = seen.decoded.blocks.dense(seen.decoded.last.masks, 0, range(40), 0.0)
        whole = torch.full((40, 40), torch.nan)
        whole[seen.hits.order[seen.place][:, None], seen.hits.order] = masks
        results.append(whole[also])
    assert results[0].isfinite().all()
    for turned in results[1:]:
        assert torch.allclose(turned, results[0], atol=1e-3)
    assert results[0].std() > 0.1


def test_learned_queries_are_turned_as_the_hits_at_which_they_stand() -> None:
    """Layers begin as the identity, so that queries reach each other as they were learned."""
    event = sample_events("ttbar_mu0")[0]
    calls = []
    for rotary in (False, True):
        made = tracker(queries="learned", learned_queries=6, decoder=replace(DECODER, rotary=rotary))
        with torch.no_grad(), record_attention(made) as told:
            seen = made.see(made.inputs(event))
        calls.append(next(one for one in told if one.name.endswith("layers.0.among.attention")))
    assert made.decoder.rotary is not None
    rotation = Rotation.of(made.decoder.rotary(seen.coordinates[seen.place, :2]))
    assert torch.allclose(calls[1].q, rotation.turn(calls[0].q), atol=1e-6)
    assert torch.allclose(calls[1].k, rotation.turn(calls[0].k), atol=1e-6)
    assert not torch.allclose(calls[1].q, calls[0].q, atol=0.1)


# -- losses of routers -------------------------------------------------------------------------------------------------
def test_losses_of_routers_are_the_mean_over_layers() -> None:
    made, given = decoder(**BESIDE, experts=4), Given([9], [20])
    told = []
    for module in made.modules():
        if isinstance(module, Experts):
            module.register_forward_hook(lambda *seen: told.append(seen[2][1]))
    losses = given.run(made).losses
    assert losses is not None
    assert len(told) == 2  # CLS tokens have none
    assert torch.equal(torch.stack(losses), torch.stack(mean_losses(told)))
    assert given.run(decoder()).losses is None


@pytest.mark.parametrize("both", [False, True])
def test_routers_of_the_decoder_learn_from_the_loss_of_a_tracker(both: bool) -> None:
    made = tracker(
        encoder=replace(SMALL, experts=3 if both else None),
        decoder=replace(DECODER, num_layers=2, experts=3, zero_start=True),
    )
    event = sample_events("ttbar_mu0")[0]
    batch = track_batch(event, made.config.features, made.config.selection)
    truth = TrackTruth.of(batch)
    seen = made.see(batch.hits.inputs, truth.innermost)
    loss = track_loss(seen, truth.ordered(seen.hits.order), batch)
    own = seen.decoded.losses
    assert own is not None
    assert seen.losses is not None
    by_hand = 0.01 * seen.losses.balance + 0.001 * seen.losses.z
    assert torch.isclose(loss.routers, by_hand)
    assert loss.routers > 0.01 * own.balance
    others = [getattr(loss, name) for name in ("first_hit", "objects", "focal", "dice", "iou", "parameters", "count")]
    assert torch.isclose(loss.total, torch.stack([*others, loss.routers]).sum())
    assert (seen.losses.balance > own.balance) == both
    # a layer that begins as the identity gives its router no other gradient
    routers = [w for name, w in made.named_parameters() if name.endswith("router.weight")]
    assert len(routers) == 2 + both
    assert all(g.any() for g in torch.autograd.grad(loss.total, routers))


# -- configuration -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hybrid_norm": True, "v_norm": True}, "leave v_norm out"),
        ({"num_layers": 1, "value_residual": True}, "with one layer, leave it out"),
        ({"experts": 2, "experts_per_token": 3}, "Decoder got experts_per_token=3, experts=2: a token uses at least"),
        ({"experts": 0}, "no more than there are"),
        ({"experts_per_token": 1}, "with experts alone"),
        ({"rotary": 1}, "rotary=1, expected True or False"),
    ],
)
def test_wrong_settings_get_one_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        DecoderConfig(**settings)
    assert "\n" not in str(caught.value)


def test_rotary_needs_coordinates_and_room() -> None:
    with pytest.raises(ValueError, match="got no coordinates: give phi and eta of the hits"):
        Given([2], [5]).run(decoder(rotary=True))
    with pytest.raises(ValueError, match="give heads of at least 4 channels, not 2"):
        decoder(rotary=True, num_heads=16)
    with pytest.raises(ValueError, match="give heads of at least 4 channels, not 2"):
        tracker(decoder=replace(DECODER, rotary=True, num_heads=8))


def test_a_tracker_of_before_has_every_switch_off() -> None:
    config = MaskFormerConfig(encoder=SMALL, decoder=DECODER)
    saved = json.loads(config.to_json())
    for name in ("hybrid_norm", "v_norm", "value_residual", "experts", "experts_per_token", "rotary"):
        assert saved["decoder"].pop(name) in {False, None, 2}
    assert MaskFormerConfig.from_json(json.dumps(saved)) == config


def test_weights_with_every_switch_come_back(tmp_path) -> None:
    made = tracker(decoder=replace(DECODER, num_layers=2, num_heads=2, **SWITCHES["all"]))
    other = MaskFormer.load(made.save(tmp_path / "maskformer_toy.safetensors"))
    assert other.config == made.config
    inputs = made.inputs(sample_events("ttbar_mu0")[0])
    with torch.no_grad():
        one, two = (m.see(inputs).decoded.last.masks for m in (made, other))
    assert torch.equal(one, two)
