"""Every switch of the encoder, alone and together: doors, events apart, kernels, compiled, gradients, refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hepattn.attention.backends import flex
from hepattn.attention.record import record_attention
from hepattn.layers.experts import Experts, mean_losses
from hepattn.masks import Dense, GlobalTokens, Mask, Window
from hepattn.models.encoder import Encoder
from hepattn.models.encoder_config import EncoderConfig
from hepattn.sequence import Layout, Packed, Role

SWITCHES: dict[str, dict[str, Any]] = {
    "hybrid norm": {"hybrid_norm": True},
    "norms of q, k and v": {"qk_norm": "layer", "v_norm": True},
    "layer scale": {"layer_scale": 0.5},
    "value residual": {"value_residual": True},
    "gate": {"gate": True},
    "laser": {"laser": True},
    "distance bias": {"distance_bias": "circular"},
    "plain dense": {"activation": "gelu", "dense_ratio": 3.0},
    "registers": {"registers": 3},
    "global registers": {"global_registers": 2},
    "cls": {"cls": True},
    "experts": {"experts": 4},
    "all": {
        "hybrid_norm": True,
        "layer_scale": 0.5,
        "value_residual": True,
        "gate": True,
        "laser": True,
        "registers": 3,
        "global_registers": 1,
        "cls": 1,
        "experts": 3,
        "experts_per_token": 1,
    },
}
MASKS = [None, Window(6), Window(8, wrap=True)]
LENGTHS = [17, 1, 0, 8, 24]


def make(mask: Mask | None, heads: int = 2, dim: int = 16, **switches: Any) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(dim=dim, num_layers=2, num_heads=heads, mask=mask, **switches)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder.eval()


def hits(lengths: list[int] = LENGTHS, dim: int = 16) -> Packed:
    return Packed(torch.randn(sum(lengths), dim, generator=torch.Generator().manual_seed(1)), torch.tensor(lengths))


def gradients(encoder: Encoder, out: Tensor, x: Tensor) -> dict[str, Tensor]:
    weights = dict(encoder.named_parameters())
    found = torch.autograd.grad(out.square().sum(), [x, *weights.values()], allow_unused=True)
    return {n: g for n, g in zip(["x", *weights], found, strict=True) if g is not None}


def apart(found: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """Norm of the difference over that of what is expected, or over `least` where that is more."""
    difference = found.detach().float().cpu() - expected.detach()
    return float(difference.norm()) / max(float(expected.detach().norm()), least)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("switch", SWITCHES)
def test_three_doors_and_events_alone(switch: str, mask: Mask | None) -> None:
    encoder, x = make(mask, **SWITCHES[switch]), hits()
    out = encoder.encode(x)
    padded, valid = x.to_padded()
    assert torch.allclose(encoder(padded, valid=valid)[valid], out.tokens.values, atol=1e-5)
    assert torch.allclose(encoder(x.to_nested()).values(), out.tokens.values, atol=1e-5)
    parts = [encoder.encode(Packed(part, torch.tensor([len(part)]))) for part in x.split()]
    assert torch.allclose(torch.cat([one.tokens.values for one in parts]), out.tokens.values, atol=1e-5)
    assert torch.allclose(torch.cat([one.cls for one in parts]), out.cls, atol=1e-5)
    assert out.cls.shape == (len(LENGTHS), encoder.config.cls, 16)


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_weight_learns(switch: str) -> None:
    encoder, x = make(Window(8, wrap=True), **SWITCHES[switch]), hits()
    values = x.values.requires_grad_()
    out = encoder.encode(x)
    found = gradients(encoder, torch.cat([out.tokens.values, out.cls.flatten(0, 1)]), values)
    assert set(found) == {"x", *(name for name, _ in encoder.named_parameters())}
    assert all(grad.isfinite().all() and (grad != 0).any() for grad in found.values())


@pytest.mark.slow
def test_compiled_as_eager() -> None:
    torch._dynamo.reset()  # the limit of graphs counts those of all encoders of a process
    encoder = make(Window(8, wrap=True), **SWITCHES["all"])
    expected = []
    for lengths in (LENGTHS, [9, 30], [40, 3, 11]):
        x = hits(lengths)
        values = x.values.requires_grad_()
        out = encoder.encode(x)
        expected.append((x, out, gradients(encoder, out.tokens.values, values)))
    encoder.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    for x, plain, grads in expected:
        out = encoder.encode(x)
        assert torch.allclose(out.tokens.values, plain.tokens.values, atol=1e-4)
        assert torch.allclose(out.cls, plain.cls, atol=1e-4)
        found = gradients(encoder, out.tokens.values, x.values)
        assert found.keys() == grads.keys()
        assert all(torch.allclose(found[n], grads[n], atol=1e-3, rtol=1e-3) for n in grads)


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["registers", "all"])
def test_flex_gives_the_same_numbers(switch: str) -> None:
    if reason := flex.missing("cpu"):
        pytest.skip(reason)
    encoder, x = make(Window(8, wrap=True), heads=1, **SWITCHES[switch]), hits([40, 25])
    with torch.no_grad():
        expected = encoder.encode(x)
        encoder.set_backend("flex")
        found = encoder.encode(x)
    assert torch.allclose(found.tokens.values, expected.tokens.values, atol=1e-4)
    assert torch.allclose(found.cls, expected.cls, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("backend", ["sdpa", "flex", "flash", "auto"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_on_a_gpu_as_on_the_cpu(switch: str, backend: str) -> None:
    """Flash takes half precision and no bias."""
    if backend == "flash" and "bias" in switch:
        pytest.skip("flash refuses, see its matrix")
    torch.set_float32_matmul_precision("highest")
    half = backend in {"flash", "auto"}
    encoder, x = make(Window(64, wrap=True), dim=64, **SWITCHES[switch]), hits([700, 30, 300], 64)
    values = x.values.requires_grad_()
    expected = encoder.encode(x)
    grads = gradients(encoder, expected.tokens.values, values)
    encoder.to("cuda").set_backend(backend)
    there = values.detach().cuda().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        out = encoder.encode(Packed(there, x.lengths))
    found = gradients(encoder, out.tokens.values.float(), there)
    if half and "experts" in SWITCHES[switch]:  # a rounded token may choose other experts
        assert out.tokens.values.isfinite().all()
        return
    assert apart(out.tokens.values, expected.tokens.values) < (0.03 if half else 1e-4)
    least = 0.01 * max(float(grad.norm()) for grad in grads.values())  # a bias of all keys has no gradient but noise
    far = {n: apart(found[n], grads[n], least) for n in grads}
    assert all(distance < (0.1 if half else 1e-3) for distance in far.values()), far


@pytest.mark.parametrize("mask", [None, Window(6), Window(8, wrap=True)], ids=str)
def test_registers_written_out(mask: Mask | None) -> None:
    """A plain encoder over the sequence with the learned tokens put in by hand, one event."""
    encoder = make(mask, registers=3, global_registers=1, cls=1)
    x = hits([7]).values
    assert encoder.extra is not None
    learned = encoder.extra.register_token, encoder.extra.global_tokens, encoder.extra.cls_tokens
    r, g, c = (one.detach() for one in learned if one is not None)
    longer = torch.cat([c, g, x[:3], r, x[3:6], r, x[6:], r])
    plain = make(None if mask is None else mask | GlobalTokens([0, 1]))
    plain.load_state_dict({n: w for n, w in encoder.state_dict().items() if not n.startswith("extra.")})
    expected = plain(Packed(longer, torch.tensor([len(longer)]))).values
    out = encoder.encode(Packed(x, torch.tensor([7])))
    assert torch.allclose(out.tokens.values, expected[[2, 3, 4, 6, 7, 8, 10]], atol=1e-6)
    assert torch.allclose(out.cls[0], expected[:1], atol=1e-6)
    assert torch.equal(encoder.run(x, Layout.of([7], "cpu")).tokens, out.tokens.values)  # no plan: made inside
    with record_attention(encoder) as calls:
        encoder(Packed(x, torch.tensor([7])))
    roles = calls[0].layout.roles
    assert roles is not None
    named = {"h": Role.HIT, "r": Role.REGISTER, "g": Role.GLOBAL_REGISTER, "c": Role.CLS}
    assert roles.tolist() == [named[letter] for letter in "cghhhrhhhrhr"]


def test_a_rotation_goes_along_with_its_hits() -> None:
    """Turning all hits by one angle changes no score among hits and registers, whatever stands between them."""
    encoder, x = make(Window(8, wrap=True), registers=2), hits([15])
    angles = torch.randn(15, 4)
    found, turned = encoder(x, rotation=angles).values, encoder(x, rotation=angles + 0.7).values
    assert torch.allclose(found, turned, atol=1e-5)
    assert not torch.allclose(found, encoder(x).values, atol=1e-2)


def test_losses_of_routers_are_the_mean_over_layers() -> None:
    encoder, x = make(Window(8, wrap=True), experts=4), hits()
    seen = []
    for module in encoder.modules():
        if isinstance(module, Experts):
            module.register_forward_hook(lambda *told: seen.append(told[2][1]))
    losses = encoder.encode(x).losses
    assert losses is not None
    assert len(seen) == 2
    assert torch.equal(torch.stack(losses), torch.stack(mean_losses(seen)))
    assert make(None).encode(x).losses is None


def test_experts_have_the_active_width_of_a_dense_network() -> None:
    def width(encoder: Encoder, k: int) -> int:
        experts = [module for module in encoder.modules() if isinstance(module, Experts)]
        return sum(k * module.output.shape[1] for module in experts)

    for k in (1, 2, 4):
        assert width(make(None, experts=4, experts_per_token=k, dense_ratio=2.0), k) == 2 * 2 * 16


def test_zero_start_is_the_identity_with_every_switch() -> None:
    for switches in ({}, {"experts": 4}, {"gate": True, "value_residual": True}):
        encoder = Encoder(dim=16, num_layers=2, num_heads=2, zero_start=True, **switches)
        x = hits()
        assert torch.allclose(encoder(x).values, encoder.norm(x.values), atol=1e-6)


# -- configuration -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dim": 10, "num_heads": 4}, "make dim a multiple of num_heads"),
        ({"norm": "batch"}, "norm='batch', expected one of 'rms', 'layer'"),
        ({"activation": "tanh"}, "activation='tanh', expected one of"),
        ({"drop_path": 1.0}, "expected a probability"),
        ({"dense_ratio": 0.0}, "no channel would be left"),
        ({"num_layers": 1, "value_residual": True}, "with one layer, leave it out"),
        ({"zero_start": True, "layer_scale": 1e-5}, "choose one"),
        ({"hybrid_norm": True, "v_norm": True}, "leave v_norm out"),
        ({"experts": 2, "experts_per_token": 3}, "no more than there are"),
        ({"experts_per_token": 1}, "with experts alone"),
        ({"registers": 0}, "hits between two registers"),
        ({"cls": -1}, "give 0 or more"),
        ({"colour": 1}, "no setting colour: it knows dim, num_layers"),
    ],
)
def test_wrong_settings_get_one_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Encoder(**settings)
    assert "\n" not in str(caught.value)


def test_masks_without_room_for_learned_tokens() -> None:
    for mask in (Dense(torch.ones(3, 3, dtype=torch.bool)), Window(8) | GlobalTokens([0])):
        with pytest.raises(ValueError, match="which moves the tokens that"):
            Encoder(dim=8, num_heads=2, mask=mask, cls=1)
    with pytest.raises(ValueError, match="some hit sees no register: make the window 40 or more"):
        Encoder(dim=8, num_heads=2, mask=Window(30), registers=20)
    assert Encoder(dim=8, num_heads=2, mask=Window(40), registers=20).extra is not None


def test_a_config_or_settings() -> None:
    config = EncoderConfig(dim=8, num_heads=2, gate=True, registers=4)
    assert Encoder(config).config == Encoder(dim=8, num_heads=2, gate=True, registers=4).config
    with pytest.raises(ValueError, match=r"a config and single settings \(gate\)"):
        Encoder(config, gate=True)
    assert str(config) == "4 x 8, 2 heads, gate, registers=4"
    assert EncoderConfig.of(config.changed()) == config
    assert isinstance(Encoder(config).layers, nn.ModuleList)
