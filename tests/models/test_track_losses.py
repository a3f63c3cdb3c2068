"""Losses of tracks against loops in float64, in values and gradients; costs of pairs against the losses themselves."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional as F

from hepattn.models.matcher import Matcher
from hepattn.models.track_losses import (
    PARAMETERS,
    ParameterScale,
    TrackWeights,
    iou_loss,
    mask_dice,
    mask_focal,
    object_loss,
    pair_costs,
    parameter_loss,
)

LOGITS = st.floats(-8, 8, width=32)
BITS = st.booleans()


def slow_focal(logits, target, valid, size, gamma):
    """One mask, hit by hit."""
    total = 0.0
    for x, t, counts in zip(logits, target, valid, strict=True):
        p = 1 / (1 + math.exp(-x)) if t else 1 / (1 + math.exp(x))
        total -= (1 - p) ** gamma * math.log(p) if counts else 0.0
    return total / max(1, size)


def slow_dice(logits, target, valid, size):
    p = [1 / (1 + math.exp(-x)) if counts else 0.0 for x, counts in zip(logits, valid, strict=True)]
    return 1 - (2 * sum(x for x, t in zip(p, target, strict=True) if t) + 1) / (sum(p) + size + 1)


def slow_iou(logits, target, valid, size):
    mask = [x > 0 and counts for x, counts in zip(logits, valid, strict=True)]
    both = sum(m and t for m, t in zip(mask, target, strict=True))
    return both / max(1, sum(mask) + size - both)


def focal64(logits, target, gamma):
    """Plain formula, differentiable, in float64."""
    p = torch.where(target, logits.sigmoid(), 1 - logits.sigmoid())
    return (-((1 - p) ** gamma) * p.log()).sum(-1) / target.sum(-1).clamp(min=1)


def dice64(logits, target):
    p = logits.sigmoid()
    return 1 - (2 * (p * target).sum(-1) + 1) / (p.sum(-1) + target.sum(-1) + 1)


@settings(deadline=None)
@given(st.data())
def test_masks_against_loops(data):
    shape = (data.draw(st.integers(0, 4)), data.draw(st.integers(0, 6)))
    logits, target, valid = (data.draw(hnp.arrays(d, shape, elements=e)) for d, e in
                             ((np.float32, LOGITS), (np.bool_, BITS), (np.bool_, BITS)))  # fmt: skip
    outside = data.draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, 3)))
    gamma = data.draw(st.sampled_from([0.0, 0.5, 2.0]))
    size = (target & valid).sum(1) + outside
    x, t, v, s = (torch.from_numpy(one) for one in (logits, target, valid, size))
    rows = list(zip(logits.tolist(), target.tolist(), valid.tolist(), size.tolist(), strict=True))
    focal, dice = mask_focal(x, t, v, s, gamma), mask_dice(x, t, v, s)
    assert focal.shape == dice.shape == (shape[0],)
    np.testing.assert_allclose(focal, [slow_focal(*row, gamma) for row in rows], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(dice, [slow_dice(*row) for row in rows], rtol=1e-4, atol=1e-6)
    predicted = x.sum(1)
    iou = [(1 / (1 + math.exp(-p)) - slow_iou(*row)) ** 2 for p, row in zip(predicted.tolist(), rows, strict=True)]
    np.testing.assert_allclose(iou_loss(predicted, x, t, v, s), iou, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradients_of_masks_against_float64(gamma):
    torch.manual_seed(0)
    x, t = 3 * torch.randn(5, 20), torch.rand(5, 20) < 0.3
    t[0], t[1] = False, True
    for ours, exact in (
        (lambda x: mask_focal(x, t, gamma=gamma), lambda x: focal64(x, t, gamma)),
        (lambda x: mask_dice(x, t), lambda x: dice64(x, t)),
    ):
        single, double = x.clone().requires_grad_(), x.double().requires_grad_()
        value, reference = ours(single), exact(double)
        np.testing.assert_allclose(value.detach(), reference.detach(), rtol=1e-5, atol=1e-6)
        found, wanted = torch.autograd.grad(value.sum(), single)[0], torch.autograd.grad(reference.sum(), double)[0]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_window_agrees_with_all_hits():
    """Slots in another order, one repeated and two empty; what lies outside is -1e4, that is, probability 0."""
    torch.manual_seed(0)
    dense, target = torch.full((4, 50), -1e4), torch.zeros(4, 50, dtype=torch.bool)
    inside = torch.stack([torch.randperm(50)[:12] for _ in range(4)])
    slots = torch.cat([inside, inside[:, :1], inside[:, :2]], dim=1)
    valid = (torch.arange(15) < 12).expand(4, 15)
    dense.scatter_(1, inside, torch.randn(4, 12))
    target.scatter_(1, inside, torch.rand(4, 12) < 0.5)
    gather = (dense.gather(1, slots), target.gather(1, slots), valid)
    torch.testing.assert_close(mask_focal(*gather), mask_focal(dense, target))
    torch.testing.assert_close(mask_dice(*gather), mask_dice(dense, target))
    predicted = torch.randn(4)
    torch.testing.assert_close(iou_loss(predicted, *gather), iou_loss(predicted, dense, target))
    missed = target | (torch.arange(50) == (dense[0] < -1e3).nonzero()[0]) & (dense < -1e3)
    size = missed.sum(1)
    assert (size > target.sum(1)).any()
    torch.testing.assert_close(mask_dice(*gather, size), mask_dice(dense, missed))
    torch.testing.assert_close(iou_loss(predicted, *gather, size), iou_loss(predicted, dense, missed))
    assert (mask_dice(*gather, size) >= mask_dice(*gather)).all(), "hits outside the window count as missed"


@pytest.mark.parametrize("filler", [float("nan"), float("inf"), -float("inf"), 1e4])
def test_what_stands_in_slots_that_do_not_count_is_not_looked_at(filler):
    valid = torch.tensor([[True, True, False]])
    target = torch.tensor([[True, False, True]])
    logits = torch.tensor([[1.0, -1.0, filler]], requires_grad=True)
    short, at = torch.tensor([[1.0, -1.0]]), torch.tensor([[True, False]])
    torch.testing.assert_close(mask_focal(logits, target, valid), mask_focal(short, at))
    torch.testing.assert_close(mask_dice(logits, target, valid), mask_dice(short, at))
    (mask_focal(logits, target, valid) + mask_dice(logits, target, valid)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 2] == 0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_empty_and_full_masks_are_finite(gamma, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0, 50.0]], dtype=dtype).expand(4, 4).clone().requires_grad_()
    target = torch.tensor([[False] * 4, [True] * 4, [True, False, True, True], [False, True, False, False]])
    predicted, exists = (torch.full((4,), value, dtype=dtype, requires_grad=True) for value in (1e4, -1e4))
    terms = [
        mask_focal(logits, target, gamma=gamma),
        mask_dice(logits, target),
        iou_loss(predicted, logits, target),
        object_loss(exists, target[:, 0])[None],
        object_loss(exists, ~target[:, 0], 0.1)[None],
    ]
    loss = torch.cat(terms)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert pair_costs(exists, logits, target).isfinite().all()
    for grad in torch.autograd.grad(loss.sum(), (logits, predicted, exists)):
        assert grad.isfinite().all()
    assert terms[0][3] > 1e3, "a wrong hit at 1e4 is still punished in proportion"
    assert terms[1][2].item() == pytest.approx(0, abs=0.2)


def test_no_target_no_query_no_hit():
    for shape in ((0, 5), (3, 0), (0, 0)):
        logits = torch.zeros(shape, requires_grad=True)
        target = torch.zeros(shape, dtype=torch.bool)
        exists = torch.zeros(shape[0], requires_grad=True)
        focal, dice = mask_focal(logits, target), mask_dice(logits, target)
        assert focal.shape == dice.shape == (shape[0],)
        assert not focal.any()
        assert not dice.any(), "an empty mask on an empty target is right"
        loss = focal.sum() + dice.sum() + object_loss(exists, torch.zeros(shape[0], dtype=torch.bool))
        loss = loss + parameter_loss(exists[:, None].expand(-1, 6), torch.full((shape[0], 6), math.nan)).total
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert exists.grad is not None
        assert exists.grad.isfinite().all()


def test_half_precision_is_summed_in_float32():
    logits, target = torch.full((1, 70_000), 5.0), torch.zeros(1, 70_000, dtype=torch.bool)
    for dtype in (torch.float16, torch.bfloat16):
        torch.testing.assert_close(mask_focal(logits.to(dtype), target), mask_focal(logits, target))
        torch.testing.assert_close(mask_dice(logits.to(dtype), target), mask_dice(logits, target))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mask_focal(logits, target), mask_focal(logits.double(), target))


def test_object_loss():
    logits, target = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([True, False, False])
    exact = (math.log1p(math.exp(-2)) + 0.25 * (math.log1p(math.exp(-1)) + math.log1p(math.exp(0.5)))) / 3
    assert object_loss(logits, target, 0.25).item() == pytest.approx(exact, rel=1e-6)
    plain = F.binary_cross_entropy_with_logits(logits, target.float())
    torch.testing.assert_close(object_loss(logits, target), plain)


def test_iou_gives_the_mask_no_gradient():
    logits, predicted = torch.randn(2, 5, requires_grad=True), torch.zeros(2, requires_grad=True)
    iou_loss(predicted, logits, torch.ones(2, 5, dtype=torch.bool)).sum().backward()
    assert logits.grad is None
    assert predicted.grad is not None


# -- parameters --------------------------------------------------------------------------------------------------------


def test_parameters_by_hand():
    truth = torch.tensor([[math.e, 1.0, 3.0, 10.0, 0.2, -1.0], [math.nan] * 6])
    scale = ParameterScale(log_pt=0.5, eta=0.1, phi=0.2, z0=2.0, d0=0.1)
    found = parameter_loss(torch.tensor([[1.25, 1.02, 3.1, 30.0, 0.2, 2.0], [7.0] * 6]), truth, scale)
    sine, cosine = (math.sin(3.1) - math.sin(3)) / 0.2, (math.cos(3.1) - math.cos(3)) / 0.2
    parts = [0.5**2 / 2, 0.2**2 / 2, (sine**2 + cosine**2) / 2, 10 - 0.5, 0.0, math.log1p(math.exp(2.0))]
    np.testing.assert_allclose(found.parts, parts, rtol=1e-4, atol=1e-6)
    assert found.total.item() == pytest.approx(sum(parts), rel=1e-5)
    assert found.rows.tolist() == [1] * len(PARAMETERS)


def test_phi_has_no_seam():
    truth = torch.tensor([[1.0, 0.0, math.pi - 0.01, 0.0, 0.0, 1.0]])
    near = torch.tensor([[0.0, 0.0, -math.pi + 0.01, 0.0, 0.0, 0.0]])
    same = torch.tensor([[0.0, 0.0, math.pi - 0.03, 0.0, 0.0, 0.0]])
    assert parameter_loss(near, truth).parts[2].item() == pytest.approx(
        parameter_loss(same, truth).parts[2].item(), rel=1e-3
    )


def test_what_is_not_known_is_kept_out_of_values_and_gradients():
    torch.manual_seed(0)
    truth = torch.rand(5, 6) + 0.5
    truth[1] = math.nan
    truth[2, 4] = math.nan
    truth[3, 0], truth[3, 5] = 0.0, 0.0
    truth[4, 3] = math.inf
    known = torch.ones(5, 6, dtype=torch.bool)
    known[1] = known[2, 4] = known[3, 0] = known[3, 5] = known[4, 3] = False
    guess = torch.randn(5, 6)
    guess[1] = math.nan  # a query that says nothing sensible, and need not
    guess.requires_grad_()
    found = parameter_loss(guess, truth)
    assert found.rows.tolist() == known.sum(0).tolist()
    assert found.total.isfinite()
    grad = torch.autograd.grad(found.total, guess)[0]
    assert grad.isfinite().all()
    assert not grad[~known].any()
    assert grad[known].all()
    for column in range(6):  # each parameter as if only the rows that know it were there
        rows = known[:, column]
        alone = parameter_loss(guess[rows], truth[rows]).parts[column]
        torch.testing.assert_close(found.parts[column], alone)


def test_gradients_of_parameters_against_float64():
    torch.manual_seed(0)
    truth, guess = torch.rand(4, 6) + 0.1, torch.rand(4, 6)
    single, double, scale = guess.clone().requires_grad_(), guess.double().requires_grad_(), ParameterScale()
    t, g = truth.double().T, double.T

    def smooth(a, b, size):
        return F.smooth_l1_loss(a / size, b / size)

    exact = smooth(g[0], t[0].log(), scale.log_pt) + smooth(g[1], t[1], scale.eta)
    exact = exact + smooth(g[2].sin(), t[2].sin(), scale.phi) + smooth(g[2].cos(), t[2].cos(), scale.phi)
    exact = exact + smooth(g[3], t[3], scale.z0) + smooth(g[4], t[4], scale.d0)
    exact = exact + F.binary_cross_entropy_with_logits(g[5], torch.ones_like(g[5]))
    total = parameter_loss(single, truth).total
    assert total.item() == pytest.approx(exact.item(), rel=1e-5)
    wanted = torch.autograd.grad(exact, double)[0]
    np.testing.assert_allclose(torch.autograd.grad(total, single)[0], wanted, rtol=1e-3, atol=1e-5)


# -- costs -------------------------------------------------------------------------------------------------------------


def event_loss(event, weights, query, target):
    """The loss of an event whose queries are matched like this, as a model adds it up."""
    exists, masks, targets, size = event
    query, target = list(query), list(target)
    matched = torch.zeros(len(exists), dtype=torch.bool)
    matched[query] = True
    loss = weights.object * object_loss(exists, matched, weights.null_weight)
    focal = mask_focal(masks[query], targets[target], size=size[target], gamma=weights.gamma)
    dice = mask_dice(masks[query], targets[target], size=size[target])
    return loss + (weights.focal * focal.sum() + weights.dice * dice.sum()) / max(1, min(len(exists), len(targets)))


def made(queries, targets, hits, seed):
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(targets, hits, generator=generator) < 0.4
    extra = torch.randint(3, (targets,), generator=generator)
    masks = 3 * torch.randn(queries, hits, generator=generator)
    return 2 * torch.randn(queries, generator=generator), masks, on, on.sum(1) + extra


WEIGHTS = st.builds(TrackWeights, object=st.floats(0, 3), focal=st.floats(0, 3), dice=st.floats(0, 3),
                    null_weight=st.floats(0, 2), gamma=st.sampled_from([0.0, 1.0, 2.0]))  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 7), st.integers(0, 99), WEIGHTS)
def test_a_cost_is_what_the_loss_grows_by_pair_by_pair(queries, targets, hits, seed, weights):
    event = made(queries, targets, hits, seed)
    costs = pair_costs(event[0], event[1], event[2], weights, event[3])
    assert costs.shape == (queries, targets)
    assert costs.dtype == torch.float32
    pairs = min(queries, targets)
    nothing = event_loss(event, weights, [], [])
    for q, m in itertools.product(range(queries), range(targets)):
        grown = event_loss(event, weights, [q], [m]) - nothing
        assert costs[q, m].item() == pytest.approx(pairs * grown.item(), rel=1e-4, abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_the_least_cost_is_the_least_loss_of_all_assignments(queries, targets, seed):
    event, weights = made(queries, targets, 6, seed), TrackWeights(null_weight=0.5)
    matched = Matcher(workers=1).match([pair_costs(event[0], event[1], event[2], weights, event[3])])[0]
    pairs = min(queries, targets)
    every = [
        event_loss(event, weights, q, m).item()
        for q in itertools.combinations(range(queries), pairs)
        for m in itertools.permutations(range(targets), pairs)
    ]
    ours = event_loss(event, weights, matched.query.tolist(), matched.target.tolist()).item()
    assert ours == pytest.approx(min(every), rel=1e-5)


def test_costs_of_layers_under_autocast_and_in_half_precision():
    exists, masks, on, _ = made(6, 4, 30, 0)
    layers = torch.stack([masks, masks.flip(0), -masks]), torch.stack([exists, exists, -exists])
    costs = pair_costs(layers[1], layers[0].requires_grad_(), on)
    assert not costs.requires_grad
    for layer in range(3):
        torch.testing.assert_close(costs[layer], pair_costs(layers[1][layer], layers[0][layer], on))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(pair_costs(layers[1], layers[0], on), costs, rtol=0, atol=0)
    half = pair_costs(exists.bfloat16(), masks.bfloat16(), on)
    torch.testing.assert_close(half, pair_costs(exists.bfloat16().float(), masks.bfloat16().float(), on))


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_weights_are_those_that_learnt_and_refuse_others():
    one = TrackWeights()
    assert (one.object, one.focal, one.dice, one.first_hit, one.first_hit_pos_weight) == (1, 2, 2, 4, 4)
    assert one.iou == one.parameters == 0
    for name in ("object", "focal", "dice", "iou", "parameters", "first_hit", "null_weight", "gamma"):
        for wrong in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=name):
                TrackWeights(**{name: wrong})
    with pytest.raises(ValueError, match="pos_weight"):
        TrackWeights(first_hit_pos_weight=0.0)
    with pytest.raises(ValueError, match="z0=0"):
        ParameterScale(z0=0.0)


def test_refusals():
    masks, on = torch.zeros(3, 5), torch.zeros(3, 5, dtype=torch.bool)
    for call in (mask_focal, mask_dice, lambda *a: iou_loss(torch.zeros(3), *a)):
        with pytest.raises(ValueError, match=r"target torch.bool \(2, 5\)"):
            call(masks, on[:2])
        with pytest.raises(ValueError, match=r"target torch.float32"):
            call(masks, on.float())
        with pytest.raises(ValueError, match=r"valid torch.bool \(5,\)"):
            call(masks, on, on[0])
        with pytest.raises(ValueError, match="one size a target"):
            call(masks, on, None, torch.zeros(2))
    with pytest.raises(ValueError, match="gamma=-1"):
        mask_focal(masks, on, gamma=-1)
    with pytest.raises(ValueError, match="one IoU a mask"):
        iou_loss(torch.zeros(2), masks, on)
    with pytest.raises(ValueError, match="one boolean target a query"):
        object_loss(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="null_weight=-1"):
        object_loss(torch.zeros(3), torch.zeros(3, dtype=torch.bool), -1)
    for predicted, truth in (((3, 6), (2, 6)), ((3, 5), (3, 5)), ((6,), (6,))):
        with pytest.raises(ValueError, match="the columns pt, eta, phi"):
            parameter_loss(torch.zeros(predicted), torch.zeros(truth))
    with pytest.raises(ValueError, match="one object logit and one mask a query"):
        pair_costs(torch.zeros(2), masks, on)
    for wrong in (on[:, :4], on.float(), on[0]):
        with pytest.raises(ValueError, match="targets are boolean"):
            pair_costs(torch.zeros(3), masks, wrong)
    with pytest.raises(ValueError, match="one size a target"):
        pair_costs(torch.zeros(3), masks, on, size=torch.zeros(4))
