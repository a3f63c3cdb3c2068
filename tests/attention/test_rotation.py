"""Rotations and encodings at the attention module, against q, k and v written out."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hepattn.attention.module import Attention, record_attention
from hepattn.attention.reference import attend_reference
from hepattn.attention.rotation import Rotation
from hepattn.encodings import Periodic, Rotary
from hepattn.masks import Strided, Window
from hepattn.sequence import Layout, Packed

LENGTHS, KV_LENGTHS = [4, 3], [9, 6]


def pack(values: Tensor, lengths: list[int]) -> Packed:
    return Packed(values, torch.tensor(lengths))


def make(**options: Any) -> Attention:
    torch.manual_seed(0)
    return Attention(8, 2, **options).double()


def slow_turn(x: Tensor, angles: Tensor) -> Tensor:
    """One complex number a pair, times exp(i angle)."""
    pairs = angles.shape[1]
    out = x.clone()
    for p in range(pairs):
        turned = torch.complex(x[..., p], x[..., p + pairs]) * torch.exp(1j * angles[:, None, p])
        out[..., p], out[..., p + pairs] = turned.real, turned.imag
    return out


def project(a: Attention, q_input: Tensor, k_input: Tensor, v_input: Tensor) -> list[Tensor]:
    biases = [0.0] * 3 if a.qkv.bias is None else a.qkv.bias.split(8)
    weights = zip((q_input, k_input, v_input), a.qkv.weight.split(8), biases, strict=True)
    return [(x @ w.T + b).unflatten(-1, (2, 4)) for x, w, b in weights]


@pytest.mark.parametrize("channels", [2, 4, 5, 7])
def test_a_rotation_is_a_product_of_complex_numbers_that_keeps_norms(channels):
    x = torch.randn(6, 3, channels, dtype=torch.float64)
    angles = 10 * torch.randn(6, channels // 2, dtype=torch.float64)
    turned = Rotation.of(angles).turn(x)
    assert torch.allclose(turned, slow_turn(x, angles))
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.allclose(Rotation.of(-angles).turn(turned), x)
    assert torch.equal(Rotation.of(torch.zeros(6, channels // 2)).turn(x), x)


def test_gradients_of_a_rotation():
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, angles: Rotation.of(angles).turn(x), (x, angles))


def test_half_precision_is_turned_by_float32_angles_and_stays_half_precision():
    x, angles = torch.randn(50, 2, 8), 600 * torch.randn(50, 4)
    expected = Rotation.of(angles).turn(x.bfloat16().float()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = Rotation.of(angles).turn(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)


@pytest.mark.parametrize("laser", [False, True])
@pytest.mark.parametrize("norm", [None, "rms"])
def test_self_attention_turns_queries_and_keys_after_their_norm_and_never_values(norm, laser):
    a, x = make(qk_norm=norm, laser=laser), torch.randn(7, 8, dtype=torch.float64)
    angles = torch.randn(7, 2, dtype=torch.float64)
    q, k, v = project(a, x, x, x)
    q, k = slow_turn(a.q_norm(q), angles), slow_turn(a.k_norm(k), angles)
    layout = Layout.of(LENGTHS, "cpu")
    with record_attention(a) as calls:
        out, value = a.attend_values(x, layout, Window(3), rotation=Rotation.of(angles))
    assert torch.allclose(calls[0].q, q)
    assert torch.allclose(calls[0].k, k)
    assert torch.allclose(value, v)
    if not laser:
        expected, _ = attend_reference(q, k, v, mask=Window(3), lengths=LENGTHS)
        assert torch.allclose(out, a.output(expected.to(out.dtype).flatten(1)))


def test_cross_attention_turns_queries_by_theirs_and_keys_by_the_context_s():
    a, mask = make(), Strided(4, wrap=True)
    x, context = (torch.randn(n, 8, dtype=torch.float64) for n in (7, 15))
    here, there = (torch.randn(n, 2, dtype=torch.float64) for n in (7, 15))
    q, k, v = project(a, x, context, context)
    expected, _ = attend_reference(
        slow_turn(q, here), slow_turn(k, there), v, mask=mask, lengths=LENGTHS, kv_lengths=KV_LENGTHS
    )
    packed, other = pack(x, LENGTHS), pack(context, KV_LENGTHS)
    out = a(packed, other, mask=mask, rotation=here, context_rotation=pack(there, KV_LENGTHS))
    assert torch.allclose(out.values, a.output(expected.to(out.values.dtype).flatten(1)))


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_encodings_are_added_to_queries_and_keys_and_never_to_values(cross, bias):
    a = make(bias=bias)
    x, context = (torch.randn(n, 8, dtype=torch.float64, requires_grad=True) for n in (7, 15))
    encode = Periodic(8)
    here, there = encode(torch.randn(7)).double(), encode(torch.randn(15)).double()
    if not cross:
        context, there = x, here
    q, k, v = project(a, x + here, context + there, context)
    kv_lengths = KV_LENGTHS if cross else LENGTHS
    expected, _ = attend_reference(q, k, v, mask=None, lengths=LENGTHS, kv_lengths=kv_lengths)
    packed = pack(x, LENGTHS)
    beside = (pack(context, kv_lengths),) if cross else ()
    also: dict[str, Any] = {"context_encoding": pack(there, kv_lengths)} if cross else {}
    out = a(packed, *beside, encoding=here, **also).values
    wanted = a.output(expected.to(out.dtype).flatten(1))
    assert torch.allclose(out, wanted)
    weight = torch.randn(out.shape, dtype=out.dtype)
    for one, other in zip(
        torch.autograd.grad(out, (x, context), weight, retain_graph=True),
        torch.autograd.grad(wanted, (x, context), weight),
        strict=True,
    ):
        assert torch.allclose(one, other)


@pytest.mark.parametrize("which", ["encoding", "context_encoding"])
def test_one_of_queries_and_keys_may_be_encoded_alone(which):
    a = make()
    x, context = (pack(torch.randn(sum(n), 8).double(), n) for n in (LENGTHS, KV_LENGTHS))
    zero = {"encoding": torch.zeros(7, 8), "context_encoding": torch.zeros(15, 8)}
    given: dict[str, Any] = {which: torch.randn_like(zero[which])}
    assert torch.allclose(a(x, context, **given).values, a(x, context, **(zero | given)).values)
    assert not torch.allclose(a(x, context, **given).values, a(x, context).values)


def test_padded_and_nested_encodings_and_rotations_go_with_their_tokens():
    a = make()
    x, context = (pack(torch.randn(sum(n), 8).double(), n) for n in (LENGTHS, KV_LENGTHS))
    rotary = Rotary(4, periodic=True)
    beside: dict[str, Any] = {
        "encoding": pack(torch.randn(7, 8), LENGTHS),
        "context_encoding": pack(torch.randn(15, 8), KV_LENGTHS),
        "rotation": pack(rotary(torch.randn(7)), LENGTHS),
        "context_rotation": pack(rotary(torch.randn(15)), KV_LENGTHS),
    }
    expected = a(x, context, **beside).values
    padded, valid = x.to_padded(6)
    other, other_valid = context.to_padded(11)
    sized = {name: one.to_padded(11 if "context" in name else 6)[0] for name, one in beside.items()}
    out = a(padded, other, valid=valid, context_valid=other_valid, **sized)
    assert torch.allclose(out[valid], expected)
    nested = a(x.to_nested(), context.to_nested(), **{name: one.to_nested() for name, one in beside.items()})
    assert torch.allclose(nested.values(), expected)


def test_wrong_input_gets_one_sentence():
    a = make()
    x, context = (pack(torch.randn(sum(n), 8).double(), n) for n in (LENGTHS, KV_LENGTHS))
    with pytest.raises(ValueError, match="for one of queries and context only"):
        a(x, context, rotation=torch.zeros(7, 2))
    with pytest.raises(ValueError, match="without context="):
        a(x, context_encoding=torch.zeros(15, 8))
    with pytest.raises(ValueError, match=r"Attention's rotation got values of shape \(7, 3\), expected \(T, 2\)"):
        a(x, rotation=torch.zeros(7, 3))
    with pytest.raises(ValueError, match=r"events of \[3, 4\] rows beside events of \[4, 3\] tokens"):
        a(x, encoding=pack(torch.zeros(7, 8), [3, 4]))
    layout = Layout.of(LENGTHS, "cpu")
    with pytest.raises(ValueError, match=r"expected \(7, 2\): one angle for every two channels"):
        a.attend_values(x.values, layout, rotation=Rotation.of(torch.zeros(7, 4)))
    with pytest.raises(ValueError, match=r"got an encoding \(1, 8\) for tokens \(7, 8\)"):
        a.attend_values(x.values, layout, encoding=torch.zeros(1, 8))
