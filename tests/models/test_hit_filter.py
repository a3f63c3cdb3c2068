import json
import math
from typing import Any

import numpy as np
import pytest
import torch

import hepattn.models.hit_encoder as module
from hepattn.data import Event, Hits, sample_event
from hepattn.data.dataset import hit_inputs
from hepattn.encodings import Encoding, Periodic, RandomFourier, Sinusoidal
from hepattn.metrics.filter import roc_auc
from hepattn.models.encoder import Encoder
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_encoder import Octaves
from hepattn.models.hit_filter import HitFilter, HitFilterConfig
from hepattn.models.losses import RouterWeights, count_loss
from hepattn.sequence import Packed

SMALL: dict[str, Any] = {"features": ("x", "y", "z", "eta"), "window": 8, "encoder": EncoderConfig(16, 2, 2)}


def event(n: int, seed: int = 0) -> Event:
    rng = np.random.default_rng(seed)
    x, y, z = (rng.normal(0, s, n).astype(np.float32) for s in (300, 300, 900))
    ids = rng.choice([7, 8, 9, 13], n).astype(np.int32)
    return Event(Hits(x, y, z, ids, ids, ids), event_id=seed)


def model(**changes) -> HitFilter:
    torch.manual_seed(0)
    return HitFilter(**(SMALL | changes)).eval()


def packed(*sizes: int) -> Packed:
    parts = [hit_inputs(event(n, seed=n), SMALL["features"]) for n in sizes]
    return Packed(torch.cat(parts), torch.tensor(sizes))


@pytest.mark.parametrize("attention", [True, False])
def test_each_event_of_a_batch_as_if_alone(attention):
    net, x = model(attention=attention), packed(30, 5, 1, 17)
    together = net.logits(x)
    alone = [net.logits(Packed(part, torch.tensor([len(part)]))) for part in x.split()]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert together.dtype == torch.float32


def test_what_comes_in_comes_out():
    net, x = model(), packed(30, 5)
    out = net(x)
    padded, valid = x.to_padded()
    from_padded = net(padded, valid)
    torch.testing.assert_close(from_padded[valid], out.values)
    assert (from_padded[~valid] == 0).all()
    nested = x.to_nested()
    torch.testing.assert_close(net(nested).values(), out.values)
    assert net(nested).offsets() is nested.offsets()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="valid"):
        net(padded)
    with pytest.raises(ValueError, match="4 features and 4 coordinates"):
        net(x.with_values(x.values[:, 1:]))


def test_the_order_of_hits_does_not_matter():
    net, whole = model(), event(40)
    scores = net.score(whole)
    order = np.random.default_rng(1).permutation(40)
    torch.testing.assert_close(net.score(whole.keep(order)), scores[torch.from_numpy(order)], rtol=1e-4, atol=1e-5)
    x = packed(30).sort(torch.arange(30, 0, -1))
    torch.testing.assert_close(net(x).unsort().values, net(packed(30)).values, rtol=1e-4, atol=1e-5)


def test_each_hit_sees_its_window_in_phi_and_no_other():
    net, x = model(encoder=EncoderConfig(16, 1, 2), window=4), packed(30)
    order = x.values[:, 4].argsort()
    x.values.requires_grad_()
    place = 1
    net.logits(x)[order[place]].backward()
    assert x.values.grad is not None
    seen = x.values.grad[order].abs().sum(1) > 0
    assert seen.nonzero().flatten().tolist() == [0, 1, 2, 3, 29]
    alone = packed(30)
    alone.values.requires_grad_()
    model(attention=False).logits(alone)[3].backward()
    assert alone.values.grad is not None
    assert (alone.values.grad.abs().sum(1) > 0).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("attention", [True, False])
def test_encoder_compiles_as_one_graph(attention: bool):
    net, alone, more = model(attention=attention), packed(30), packed(25)
    expected = [net.logits(x) for x in (alone, more)]
    net.encoder.compile(backend="eager", fullgraph=True, dynamic=True)
    for x, right in zip((alone, more), expected, strict=True):
        torch.testing.assert_close(net.logits(x), right)


def test_the_comparison_network_is_of_like_size():
    sizes = [
        sum(p.numel() for p in model(attention=a, encoder=EncoderConfig(64, 2, 4)).parameters()) for a in (True, False)
    ]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02


def test_octaves_are_sines_and_cosines_of_powers_of_two():
    encoding = Octaves((3, 2, 1, 0), (1.0, 1.0, 50.0, 200.0))
    x = torch.tensor([[0.3, -1.2, 70.0, 500.0], [torch.pi, 0.0, 0.0, 0.0], [-torch.pi, 0.0, 0.0, 0.0]])
    out = encoding(x)
    assert out.shape == (3, 12)
    expected = sorted([f(k * 0.3) for k in (1, 2, 4) for f in (np.sin, np.cos)])
    np.testing.assert_allclose(sorted(out[0, :6].tolist()), expected, atol=1e-6)
    assert sorted(out[0, 10:].tolist()) == pytest.approx(sorted([np.sin(1.4), np.cos(1.4)]), abs=1e-6)
    assert torch.equal(out[1], out[2])


@pytest.mark.parametrize("kind", ["octaves", "none", "hepformer", "periodic", "fourier"])
def test_a_filter_encodes_as_its_setting_says(kind, tmp_path):
    net = model(encoding=kind, r_unit=1000.0)
    phi, eta, r = (made if isinstance(made, Encoding) else None for made in net.encoding.parts[:3])
    kinds = {"octaves": Sinusoidal, "hepformer": Sinusoidal, "periodic": Periodic, "fourier": RandomFourier}
    assert isinstance(phi, kinds.get(kind, type(None)))
    assert isinstance(eta, Sinusoidal if kind == "periodic" else kinds.get(kind, type(None)))
    assert net.encoding(torch.rand(3, 4)).shape == (3, 0 if kind == "none" else 30)
    if kind == "hepformer":
        assert isinstance(phi, Sinusoidal)
        assert torch.equal(phi.omega, Sinusoidal.hepformer(14).omega)
    if kind == "fourier":
        assert isinstance(eta, RandomFourier)
        assert isinstance(r, RandomFourier)
        assert not torch.equal(eta.B[:, :3], r.B)
    again = HitFilter.load(net.save(tmp_path / "net.safetensors"))
    assert again.config.encoding == kind
    hits = event(30)
    assert torch.equal(again.score(hits), net.eval().score(hits))


def test_another_window_and_cut_keep_the_weights():
    net, made = model(), model(window=4, pt_min=0.5)
    net.change(window=4, pt_min=0.5)
    assert net.config == made.config
    assert torch.equal(net.score(event(30)), made.score(event(30)))
    for wrong in ({"window": 0}, {"pt_min": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            net.change(**wrong)
    assert net.config == made.config


def test_weights_without_the_setting_are_octaves():
    saved = json.loads(HitFilterConfig().to_json())
    del saved["encoding"]
    assert HitFilterConfig.from_json(json.dumps(saved)).encoding == "octaves"


def test_an_unknown_encoding_of_hits_is_refused():
    with pytest.raises(ValueError, match="encoding is one of octaves, none, hepformer, periodic, fourier, not"):
        HitFilterConfig(encoding="rotary")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="they differ in encoding; make"):
        model(encoding="none").take_encoder(model())


def test_score_and_volumes():
    whole = event(40)
    scores = model().score(whole)
    assert scores.shape == (40,)
    assert scores.dtype == torch.float32
    assert ((scores > 0) & (scores < 1)).all()
    pixels = model(volumes=(7, 8, 9)).score(whole)
    inside = torch.from_numpy(np.isin(whole.hits.volume_id, (7, 8, 9)))
    assert torch.equal(pixels.isnan(), ~inside)
    assert not (pixels[~inside] > 0.1).any()
    net = model().train()
    net.score(whole)
    assert net.training


@pytest.mark.parametrize("attention", [True, False])
def test_nothing_to_score(attention):
    net = model(attention=attention)
    assert net.score(event(0)).shape == (0,)
    net.logits(packed(0)).sum().backward()


def test_losses_of_routers_come_with_the_logits():
    x = packed(30, 5)
    assert model().judge(x).losses is None
    net = model(encoder=EncoderConfig(16, 2, 2, experts=3))
    judged = net.judge(x)
    assert judged.losses is not None
    assert torch.equal(judged.logits, net.logits(x))
    weights = RouterWeights(balance=2.0, z=3.0)
    total = weights.total(judged.losses)
    assert torch.isclose(torch.as_tensor(total), 2 * judged.losses.balance + 3 * judged.losses.z)
    assert weights.total(None) == 0
    with pytest.raises(ValueError, match="at least 0"):
        RouterWeights(z=-1)


def test_rotary_sees_differences_of_phi_alone():
    """Without phi among inputs: an event turned about the beam scores alike, and hits' order and seam move with it."""
    net = model(features=("z",), phi_octaves=0, eta_octaves=0, r_octaves=0, rotary=True)
    without = model(features=("z",), phi_octaves=0, eta_octaves=0, r_octaves=0)
    parts = [hit_inputs(event(n, seed=n), ("z",)) for n in (30, 7)]
    x = Packed(torch.cat(parts), torch.tensor([30, 7]))
    turned = x.values.clone()
    phi = turned[:, 1] + 2.5
    turned[:, 1] = torch.atan2(phi.sin(), phi.cos())
    torch.testing.assert_close(net.logits(x.with_values(turned)), net.logits(x), rtol=1e-4, atol=1e-4)
    assert (net.logits(x) - without.logits(x)).abs().max() > 1e-3
    alone = [net.logits(Packed(part, torch.tensor([len(part)]))) for part in x.split()]
    torch.testing.assert_close(net.logits(x), torch.cat(alone), rtol=1e-4, atol=1e-5)
    for parameter in net.parameters():
        parameter.grad = None
    net.logits(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_the_count_reads_cls_tokens_and_the_number_of_hits():
    net, x = model(count=True, encoder=EncoderConfig(16, 2, 2, cls=2)), packed(30, 5)
    count = net.judge(x).log_count
    assert count is not None
    assert count.shape == (2,)
    alone = [net.judge(Packed(part, torch.tensor([len(part)]))).log_count for part in x.split()]
    torch.testing.assert_close(count, torch.cat([one for one in alone if one is not None]), rtol=1e-4, atol=1e-5)
    count_loss(count, torch.tensor([20, 3])).backward()
    assert isinstance(net.encoder, Encoder)
    assert net.encoder.extra is not None
    learned = net.encoder.extra.cls_tokens
    assert learned is not None
    assert learned.grad is not None
    assert learned.grad.abs().max() > 0
    whole = event(30, seed=30)
    assert net.count(whole) == pytest.approx(max(0.0, math.expm1(count[0].item())), rel=1e-4)
    nothing = net.judge(packed(0)).log_count
    assert nothing is not None
    assert nothing.shape == (1,)
    assert model().judge(x).log_count is None
    with pytest.raises(ValueError, match="count=True"):
        model().count(whole)


def test_saved_and_loaded(tmp_path):
    net = model(volumes=(7, 8, 9, 13), z_octaves=2, encoder=EncoderConfig(16, 2, 2, gate=True, value_residual=True))
    path = net.save(tmp_path / "deep" / "filter.safetensors", note="made by a test")
    back = HitFilter.load(path)
    assert back.config == net.config
    assert torch.equal(back.score(event(20)), net.score(event(20)))
    assert not back.training


def test_broken_weights_are_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        HitFilter.load(tmp_path / "none.safetensors")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match="not a safetensors file"):
        HitFilter.load(bad)
    other = json.dumps(json.loads(HitFilterConfig().to_json()) | {"colour": 1})
    with pytest.raises(ValueError, match="unknown settings colour"):
        HitFilterConfig.from_json(other)
    other = json.dumps({"encoder": {"dim": 8, "sound": 1}})
    with pytest.raises(ValueError, match="Encoder has no setting sound"):
        HitFilterConfig.from_json(other)


def test_pretrained_names_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "data_directory", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="there is none"):
        HitFilter.pretrained()
    model().save(tmp_path / "weights" / "hit_filter_toy.safetensors")
    assert HitFilter.pretrained("toy").config.encoder.dim == 16
    with pytest.raises(FileNotFoundError, match="there is toy"):
        HitFilter.pretrained("moon")


ENCODED = ("none", "hepformer", "periodic", "fourier", "rotary")


@pytest.mark.parametrize("name", ENCODED)
def test_the_small_filters_have_the_encodings_of_their_names(name):
    config = HitFilter.pretrained(f"encoding_{name}").config
    assert (config.encoding, config.rotary) == (("none", True) if name == "rotary" else (name, False))
    path = module.data_directory() / "weights" / f"hit_filter_encoding_{name}.safetensors"
    assert path.stat().st_size < 120_000


@pytest.mark.parametrize(
    ("name", "sample", "least"),
    [
        ("mu200", "ttbar_mu200", 0.994),
        ("sample", "ttbar_mu0", 0.98),
        *((f"encoding_{name}", "ttbar_mu0", 0.9 if name == "rotary" else 0.8) for name in ENCODED),
    ],
)
def test_shipped_weights_do_what_their_card_says(name, sample, least):
    net, target = HitFilter.pretrained(name), sample_event(sample, -1)
    if len(target.hits) > 50_000:
        target = target.keep(np.abs(target.hits.phi) < 1.0)  # a third of it, for seconds
    score = net.score(target)
    judged = ~score.isnan()
    wanted = torch.from_numpy(net.config.selection.hits(target))
    assert roc_auc(score[judged].numpy(), wanted[judged].numpy()) > least
    folder = module.data_directory() / "weights"
    assert (folder / f"hit_filter_{name}.safetensors").stat().st_size < 16 * 2**20
    assert f"`{name}`" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window": 0}, "window must be at least 1"),
        ({"features": ("x", "colour")}, "colour"),
        ({"r_unit": 0.0}, "r_unit"),
        ({"volumes": ()}, "volume"),
        ({"rotary": True, "attention": False}, "rotary turns queries and keys"),
        ({"rotary": True, "encoder": EncoderConfig(8, 2, 4)}, "heads of at least 4 channels"),
        ({"count": True}, "encoder.cls=1"),
    ],
)
def test_impossible_configurations(changes, words):
    with pytest.raises(ValueError, match=words):
        HitFilterConfig(**changes)


def test_zero_start_is_the_identity():
    net = model(encoder=EncoderConfig(16, 2, 2, zero_start=True))
    x = Packed(torch.randn(9, 16), torch.tensor([9]))
    assert isinstance(net.encoder, Encoder)
    torch.testing.assert_close(net.encoder(x).values, net.encoder.norm(x.values))


def test_config_survives_json():
    config = HitFilterConfig(volumes=(7, 8), features=("x",))
    assert HitFilterConfig.from_json(config.to_json()) == config
