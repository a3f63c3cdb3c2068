import math

import pytest
import torch

from hepattn.models.losses import balance_weight, count_loss, hit_loss


def slow(logits, target, weight):
    total = 0.0
    for x, y in zip(logits.tolist(), target.tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        total -= weight * math.log(p) if y else math.log(1 - p)
    return total / len(logits)


def test_against_a_loop():
    torch.manual_seed(0)
    logits, target = torch.randn(50), torch.rand(50) < 0.2
    assert hit_loss(logits, target, 3.0).item() == pytest.approx(slow(logits, target, 3.0), rel=1e-5)
    weight = 50 / int(target.sum())
    assert balance_weight(target).item() == pytest.approx(weight)
    assert hit_loss(logits, target).item() == pytest.approx(slow(logits, target, weight), rel=1e-5)


@pytest.mark.parametrize("target", [torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)])
def test_finite_with_one_class_only(target):
    logits = torch.tensor([0.0, 100.0, -100.0, 3.0], requires_grad=True)
    loss = hit_loss(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_no_hit_at_all():
    logits = torch.zeros(0, requires_grad=True)
    loss = hit_loss(logits, torch.zeros(0, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0


def test_half_precision_is_summed_in_float32():
    loss = hit_loss(torch.full((70_000,), 5.0, dtype=torch.float16), torch.zeros(70_000, dtype=torch.bool), 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log1p(math.exp(5)), rel=1e-3)


def test_refusals():
    with pytest.raises(ValueError, match="one logit a hit"):
        hit_loss(torch.zeros(3), torch.zeros(2, dtype=torch.bool))
    for weight in (0.0, -1.0, float("inf"), "median"):
        with pytest.raises(ValueError, match="pos_weight"):
            hit_loss(torch.zeros(3), torch.zeros(3, dtype=torch.bool), weight)  # type: ignore[arg-type]


def test_count_loss_is_relative_and_bounded_in_slope():
    number = torch.tensor([0, 9, 1000])
    estimate = torch.tensor([0.25, math.log(10) + 3, math.log(1001)], requires_grad=True)
    loss = count_loss(estimate, number)
    assert loss.item() == pytest.approx((0.25**2 / 2 + 2.5 + 0) / 3, rel=1e-5)
    loss.backward()
    assert estimate.grad is not None
    torch.testing.assert_close(estimate.grad, torch.tensor([0.25, 1.0, 0.0]) / 3, atol=1e-6, rtol=1e-5)
    assert count_loss(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).item() == 0
    with pytest.raises(ValueError, match="one number an event"):
        count_loss(torch.zeros(2), torch.zeros(3, dtype=torch.int64))
