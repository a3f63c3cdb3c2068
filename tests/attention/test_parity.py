"""Every kernel against the dense reference in float64: values, log-sum-exp and gradients."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hepattn.attention import DistanceBias, KernelRefusal, attend
from hepattn.attention.agreement import expect
from hepattn.attention.backends import flash, flex, sdpa
from hepattn.attention.backends.base import Call
from hepattn.attention.backends.local import local_attention
from hepattn.attention.backends.sparse import pair_share
from hepattn.attention.functional import make_call
from hepattn.attention.reference import attend_reference
from hepattn.masks import Dense, GlobalTokens, Strided, Window
from tests.attention.cases import CASES, GPU_CASES, Case
from tests.attention.matrix import Cell, run

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
)


def compare(case: Case, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    q, k, v, upstream = case.tensors(dtype, device)
    out, lse = attend(q, k, v, mask=case.mask, lengths=case.lengths, backend=backend, return_lse=True)
    assert out.shape == v.shape
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    found = expect(q, k, v, mask=case.mask, lengths=case.lengths, upstream=upstream).ask(backend, lse=True)
    assert found.agrees, found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(CASES)
@settings(max_examples=60)
@example(Case([1], 1, 8, Window(1, wrap=True), 0))
@example(Case([5, 0, 3], 2, 8, Window(50, wrap=True), 0))  # rings shorter than the window
@example(Case([6], 1, 8, Window(7, wrap=True), 0))  # n = 2h
@example(Case([7], 1, 8, Window(7, wrap=True), 0))  # n = 2h + 1
@example(Case([513, 300], 1, 8, Window(256), 0))  # several blocks, with edges apart
@example(Case([700], 2, 8, Window(97, wrap=True), 0))
def test_sdpa(dtype: torch.dtype, case: Case) -> None:
    compare(case, dtype, "sdpa")


@given(CASES.filter(lambda case: isinstance(case.mask, Window)), st.booleans())
@settings(max_examples=60)
@example(Case([5, 0, 3], 2, 8, Window(50, wrap=True), 0), False)  # the linear distance over the seam of short rings
@example(Case([513, 300], 2, 8, Window(256), 0), True)
def test_windows_by_blocks_take_a_bias(case: Case, wrap: bool) -> None:
    q, k, v, upstream = case.tensors(torch.float64)
    slopes = torch.rand(case.heads, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (q, k, v, slopes)]
    bias = DistanceBias(slopes, wrap=wrap)
    call = make_call(q, k, v, case.mask, case.lengths, None, None, return_lse=True, bias=bias)
    out, lse = local_attention(call)
    exact, exact_lse = attend_reference(q, k, v, mask=case.mask, lengths=case.lengths, bias=bias)
    assert lse is not None
    assert torch.allclose(out, exact)
    assert torch.allclose(lse.double(), exact_lse, atol=1e-5)
    found, right = (torch.autograd.grad(one, leaves, upstream) for one in (out, exact))
    assert all(torch.allclose(one, other) for one, other in zip(found, right, strict=True))


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("backend", ["flex", "flash", "sdpa", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(GPU_CASES)
@settings(max_examples=40)
@example(Case([5, 0, 3], 2, 32, Window(50, wrap=True), 0))  # rings shorter than the window
@example(Case([1], 2, 32, Window(1), 0))
@example(Case([1, 30], 3, 32, Window(2), 0))
@example(Case([129], 2, 32, Window(129, wrap=True), 0))  # n = 2h + 1
@example(Case([128, 1], 2, 32, Window(129, wrap=True), 0))  # n = 2h
@example(Case([2000, 1500], 2, 32, Window(256), 0))
@example(Case([3000], 2, 32, Window(97, wrap=True), 0))
def test_cuda(device: str, backend: str, dtype: torch.dtype, case: Case) -> None:
    torch.set_float32_matmul_precision("highest")
    q, k, v = (x.requires_grad_() for x in case.tensors(dtype, device)[:3])  # `compare` asks for gradients
    call = make_call(q, k, v, case.mask, case.lengths, None, None, return_lse=True)
    if (backend == "flash" and flash.refusal(call)) or (backend == "flex" and flex.refusal(call)):
        return
    compare(case, dtype, backend, device)


def test_flex_forward_on_a_cpu() -> None:
    mask = Window(16, wrap=True) | GlobalTokens([0, 5])
    if reason := flex.missing("cpu"):
        pytest.skip(reason)
    for lengths in ([150, 170], [301]):
        case = Case(lengths, 2, 16, mask, 3)
        q, k, v, _ = case.tensors(torch.float32)
        exact, _ = attend_reference(q.double(), k.double(), v.double(), mask=mask, lengths=lengths)
        out = attend(q, k, v, mask=mask, lengths=lengths, backend="flex")
        assert float((out.double() - exact).abs().max()) < 1e-5


def test_flash_gives_nothing_to_queries_of_an_event_without_keys() -> None:
    """Whatever a kernel leaves in their rows; flash-attention says +inf for their log-sum-exp."""
    lengths, kv_lengths = [5, 0, 3, 2], [7, 4, 0, 1]

    def careless(x: flash.Varlen) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = dense_varlen(x)
        rows = slice(int(x.q_offsets[2]), int(x.q_offsets[3]))
        noise = torch.zeros_like(out[..., :1])
        noise[rows] = torch.nan
        return out + noise, lse + noise[..., 0].nan_to_num(torch.inf)

    q, k, v = leaves = [torch.randn(n, 2, 8, dtype=torch.float64, requires_grad=True) for n in (10, 12, 12)]
    upstream = torch.randn(10, 2, 8, dtype=torch.float64)
    call = make_call(q, k, v, None, lengths, kv_lengths, None, return_lse=True)
    out, lse = flash.attend_varlen(call, flash.Door("careless", careless))
    exact, exact_lse = attend_reference(q, k, v, lengths=lengths, kv_lengths=kv_lengths)
    assert torch.equal(out[5:8], torch.zeros(3, 2, 8, dtype=torch.float64))
    assert lse[5:8].isneginf().all()
    assert torch.allclose(out, exact)
    assert torch.allclose(lse, exact_lse)
    found, right = (torch.autograd.grad(one, leaves, upstream) for one in (out, exact))
    assert all(torch.allclose(one, other) for one, other in zip(found, right, strict=True))


def dense_varlen(x: flash.Varlen) -> tuple[torch.Tensor, torch.Tensor]:
    """flash-attention's meaning: query i of n_q sees key j of n_k when i + n_k - n_q - left <= j <= ... + right."""
    outs, lses = [], []
    for event in range(len(x.q_offsets) - 1):
        q = x.q[x.q_offsets[event] : x.q_offsets[event + 1]]
        rows = slice(int(x.k_offsets[event]), int(x.k_offsets[event + 1]))
        shift = len(x.k[rows]) - len(q)
        distance = torch.arange(len(x.k[rows]))[None, :] - torch.arange(len(q))[:, None] - shift
        left, right = (10**9 if side < 0 else side for side in x.window)
        pairs = (distance >= -left) & (distance <= right)
        assert len(q) <= x.max_q
        assert len(x.k[rows]) <= x.max_k
        out, lse = attend_reference(
            q, x.k[rows], x.v[rows], mask=Dense(pairs), kv_lengths=[len(x.k[rows])], scale=x.scale
        )
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def test_a_row_without_true_gives_zeros_and_no_gradient() -> None:
    pairs = torch.rand(6, 9) > 0.5
    pairs[2] = False
    q, k, v, g = (torch.randn(n, 2, 8, dtype=torch.float64, requires_grad=True) for n in (6, 9, 9, 6))
    out, lse = attend(q, k, v, mask=Dense(pairs), kv_lengths=[9], return_lse=True)
    out.backward(g.detach())
    assert (out[2] == 0).all()
    assert lse[2].isneginf().all()
    assert q.grad is not None
    assert (q.grad[2] == 0).all()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (q, k, v))


@pytest.mark.parametrize("mask", [None, Window(4), Window(4, wrap=True), GlobalTokens([0])], ids=str)
@pytest.mark.parametrize(("lengths", "kv_lengths"), [([], None), ([0], None), ([0, 0], None), ([2, 1], [0, 0])])
def test_nothing_to_attend_to_gives_zeros(mask, lengths, kv_lengths) -> None:  # type: ignore[no-untyped-def]
    keys = sum(lengths if kv_lengths is None else kv_lengths)
    mask = None if kv_lengths is not None else mask
    shapes = ((sum(lengths), 2, 8), (keys, 2, 8), (keys, 2, 16))
    q, k, v = (torch.randn(shape, requires_grad=True) for shape in shapes)
    out, lse = attend(q, k, v, mask=mask, lengths=lengths, kv_lengths=kv_lengths, return_lse=True)
    out.sum().backward()
    assert out.shape == (sum(lengths), 2, 16)
    assert (out == 0).all()
    assert lse.isneginf().all()
    assert all(t.grad is not None and (t.grad == 0).all() for t in (q, k, v))


@pytest.mark.parametrize("value", [1.0, torch.inf], ids=["ones", "an infinite key"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("mask", "lengths", "kv_lengths"),
    [
        (Dense(torch.zeros(3, 20_000, dtype=torch.bool)), [3], [20_000]),
        (GlobalTokens([30_000]), [20_000], None),  # names no token
        (None, [3, 0], [0, 20_000]),  # queries without keys beside keys without queries
        (None, [3], [0]),
        (None, [0], [20_000]),
    ],
    ids=str,
)
def test_nothing_to_attend_to_gives_zeros_whatever_tokens_hold(mask, lengths, kv_lengths, dtype, value) -> None:  # type: ignore[no-untyped-def]
    """Sums of 20,000 ones are infinite in float16, and zero times infinity is no zero."""
    keys = sum(lengths if kv_lengths is None else kv_lengths)
    q, k, v = (torch.ones(n, 2, 8, dtype=dtype) for n in (sum(lengths), keys, keys))
    k[-1:] = value
    for leaf in (q, k, v):
        leaf.requires_grad_()
    out, lse = attend(q, k, v, mask=mask, lengths=lengths, kv_lengths=kv_lengths, return_lse=True)
    assert torch.equal(out, torch.zeros_like(out))
    assert lse.isneginf().all()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_slopes_too_learn_nothing_from_nothing() -> None:
    slopes = torch.ones(2, requires_grad=True)
    q = torch.randn(5, 2, 8, dtype=torch.float16)
    for x, mask in ((q, Dense(torch.zeros(5, 5, dtype=torch.bool))), (q[:0], None)):
        out = attend(x, x, x, mask=mask, bias=DistanceBias(slopes))
        assert out.dtype == q.dtype
        assert torch.equal(torch.autograd.grad(out.sum(), slopes)[0], torch.zeros(2))


def test_flex_on_a_cpu_takes_dense_masks_of_several_events_a_bias_and_cross_attention() -> None:
    if reason := flex.missing("cpu"):
        pytest.skip(reason)
    calls = (("dense", "several events", "circular bias"), ("strided, wrapped", "cross, no keys in one", ""))
    for mask, layout, bias in calls:
        outcome = run(Cell("flex", "float32", mask, layout, bias, "cpu", gradients=False))
        assert not outcome.refusal
        assert outcome.worst <= 1


@pytest.mark.slow
def test_flex_on_a_cpu_compiles_in_vain_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch generates C++ that does not compile for any length, each length has a kernel of its own."""
    if reason := flex.missing("cpu"):
        pytest.skip(reason)
    tried: list[bool] = []
    compiled = flex._compiled

    def spied(*, dynamic: bool) -> Any:
        tried.append(dynamic)
        return compiled(dynamic=dynamic)

    monkeypatch.setattr(flex, "_compiled", spied)
    monkeypatch.setattr(flex, "STATIC_KINDS", set())
    mask = Window(16, wrap=True) | GlobalTokens([2, 5, 11])
    for length in (50, 70):
        q = torch.randn(length, 2, 32)
        out = attend(q, q, q, mask=mask, backend="flex")
        assert torch.allclose(out, attend(q, q, q, mask=mask, backend="sdpa"), atol=1e-5)
    assert tried in ([True, False, False], [True, True])  # the second where torch has mended it


@pytest.mark.parametrize("length", [8, 24, 40, 88, 264])
def test_flex_on_a_cpu_reads_no_stray_memory_with_heads_of_16(length: int) -> None:
    """torch 2.13 gives noise, or NaN, in eight rows of such lengths."""
    if reason := flex.missing("cpu"):
        pytest.skip(reason)
    for seed in range(3):
        case = Case([length], 1, 16, Window(8, wrap=True), seed)
        q, k, v, _ = case.tensors(torch.float32)
        memory = [torch.full((size,), torch.nan) for size in (1000, 20_000, 1 << 20)]
        del memory
        out = attend(q, k, v, mask=case.mask, lengths=case.lengths, backend="flex")
        assert torch.allclose(out, attend(q, k, v, mask=case.mask, lengths=case.lengths, backend="sdpa"), atol=1e-5)


def test_flex_never_runs_eagerly_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of graphs torch would run FlexAttention without compiling it, with an N x N matrix."""
    if reason := flex.missing("cpu"):
        pytest.skip(reason)
    monkeypatch.setattr(flex, "GRAPHS", 0)
    q = torch.randn(20, 1, 16)
    with pytest.raises(RuntimeError, match="flex has compiled 0 kernels"):
        attend(q, q, q, mask=Window(4), backend="flex", scale=0.123)


def test_cross_attention_of_several_events() -> None:
    q, k, v = (torch.randn(n, 2, 8, dtype=torch.float64) for n in (50, 1000, 1000))
    mask = Strided(32, wrap=True)
    out = attend(q, k, v, mask=mask, lengths=[30, 20], kv_lengths=[700, 300])
    exact, _ = attend_reference(q, k, v, mask=mask, lengths=[30, 20], kv_lengths=[700, 300])
    assert torch.allclose(out, exact)


def test_long_events_are_done_in_runs_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "PAIRS_AT_ONCE", 500)
    compare(Case([90, 20], 2, 8, Window(8) | GlobalTokens([3]), 0), torch.float64, "sdpa")


@pytest.mark.parametrize("masked", [True, False], ids=["dense", "no mask"])
@pytest.mark.parametrize("return_lse", [True, False])
def test_large_events_keep_no_pairs_for_a_gradient(
    return_lse: bool, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor more than `PAIRS_AT_ONCE` at any time; values, log-sum-exp and all gradients are the reference's."""
    monkeypatch.setattr(sdpa, "PAIRS_AT_ONCE", 500)
    sizes: list[int] = []
    rows = Dense.rows

    def counted(*given: Any) -> torch.Tensor:
        found = rows(*given)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(Dense, "rows", counted)
    lengths, kv_lengths = [30, 20, 4], [60, 45, 0]
    q, k, v = leaves = [
        torch.randn(sum(n), 2, 4, dtype=torch.float64, requires_grad=True) for n in (lengths, kv_lengths, kv_lengths)
    ]
    pairs = [torch.rand(n, m) > 0.7 for n, m in zip(lengths, kv_lengths, strict=True)]
    pairs[0][3] = False
    given: dict[str, Any] = {"mask": Dense(pairs) if masked else None, "lengths": lengths, "kv_lengths": kv_lengths}
    outs: tuple[torch.Tensor, ...]
    kept: list[int] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        if return_lse:
            outs = attend(q, k, v, **given, backend="sdpa", return_lse=True)
        else:
            outs = (attend(q, k, v, **given, backend="sdpa"),)
    exact = attend_reference(q, k, v, **given)[: len(outs)]
    assert all(torch.allclose(one.double(), other, atol=1e-5) for one, other in zip(outs, exact, strict=True))
    assert not sizes or max(sizes) <= 500
    assert max(kept) <= 60 * 2 * 4  # q, k, v, outputs, rows; an event's pairs would be 1,800
    losses = [torch.stack([one[one.isfinite()].square().sum() for one in some]).sum() for some in (outs, exact)]
    grads = [torch.autograd.grad(loss, leaves) for loss in losses]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*grads, strict=True))


def test_a_full_mask_of_several_events_is_not_gathered_block_by_block() -> None:
    """Blocks of different events are never looked at, and count for nothing."""
    q, k = torch.zeros(300, 1, 8), torch.zeros(3000, 1, 8)
    given: dict[str, Any] = {"lengths": [100] * 3, "kv_lengths": [1000] * 3, "scale": None}
    full = Dense([torch.ones(100, 1000, dtype=torch.bool)] * 3)
    assert pair_share(make_call(q, k, k, full, **given)) >= 1
    assert pair_share(make_call(q, k, k, Strided(20), **given)) < sdpa.DENSE_FROM


@pytest.mark.parametrize(
    ("backend", "dtype", "grad", "message"),
    [
        ("flex", torch.float32, True, "no backward on a CPU"),
        ("flex", torch.float64, False, "takes float32"),
        ("flash", torch.float32, False, "needs CUDA"),
    ],
)
def test_refusals_say_why(backend: str, dtype: torch.dtype, grad: bool, message: str) -> None:
    q = torch.randn(8, 1, 16, dtype=dtype, requires_grad=grad)
    with pytest.raises(KernelRefusal, match=message):
        attend(q, q, q, mask=Window(4), backend=backend)


@pytest.mark.parametrize("mask", [Strided(4), Window(4) & GlobalTokens([0]), Dense(torch.ones(8, 8, dtype=torch.bool))])
def test_flash_never_approximates(mask) -> None:  # type: ignore[no-untyped-def]
    q = torch.randn(8, 1, 16, dtype=torch.bfloat16)
    call: Call = make_call(q, q, q, mask, None, None, None)
    assert "takes windows" in (flash.unsupported(call) or "")


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((4, 2, 8), (4, 2, 8), (5, 2, 8)), {}, "do not fit"),
        (((4, 8), (4, 8), (4, 8)), {}, "packed tensors"),
        (((4, 1, 8), (4, 1, 8), (4, 1, 8)), {"lengths": [3]}, "sum to 3"),
        (((4, 1, 8), (6, 1, 8), (6, 1, 8)), {"lengths": [2, 2]}, "need kv_lengths"),
        (((4, 1, 8), (6, 1, 8), (6, 1, 8)), {"mask": Window(2)}, "take Strided"),
        (((4, 1, 8), (4, 1, 8), (4, 1, 8)), {"backend": "xformers"}, "backend must be"),
    ],
)
def test_wrong_calls(shapes, options, message: str) -> None:  # type: ignore[no-untyped-def]
    q, k, v = (torch.randn(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        attend(q, k, v, **options)
