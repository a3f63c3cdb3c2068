import itertools
import math

import pytest
import torch
from torch import nn

from hepattn.training.optimise import OptimiserConfig, learning_rate_factor, make_optimiser, make_schedule


def test_schedule_by_hand():
    config = OptimiserConfig(warmup_steps=4, final_fraction=0.1)
    factors = [learning_rate_factor(step, 15, config) for step in range(15)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4] == 1.0
    assert factors[9] == pytest.approx(0.55)
    assert factors[14] == pytest.approx(0.1)
    assert learning_rate_factor(99, 15, config) == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors[4:]))


@pytest.mark.parametrize("total", [1, 2, 3])
def test_short_schedules_stay_finite(total):
    for step in range(total):
        assert 0 < learning_rate_factor(step, total, OptimiserConfig(warmup_steps=50)) <= 1


def test_optimiser_decays_matrices_only_and_follows_the_schedule():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    config = OptimiserConfig(learning_rate=1.0, warmup_steps=1, weight_decay=0.3)
    optimiser = make_optimiser(model, config)
    decays = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert len(decays) == 4
    assert [decays[id(p)] for p in model.parameters()] == [0.3, 0.0, 0.0, 0.0]
    schedule = make_schedule(optimiser, config, 3)
    rates = []
    for _ in range(3):
        rates.append(optimiser.param_groups[0]["lr"])
        model(torch.ones(2, 3)).sum().backward()
        optimiser.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1.0, 0.01])


@pytest.mark.parametrize("changes", [{"learning_rate": 0.0}, {"clip_norm": -1.0}, {"final_fraction": 2.0}])
def test_impossible_settings(changes):
    with pytest.raises(ValueError, match="not"):
        OptimiserConfig(**changes)
    with pytest.raises(ValueError, match="number of steps"):
        make_schedule(make_optimiser(nn.Linear(1, 1), OptimiserConfig()), OptimiserConfig(), 0)
    assert math.isfinite(OptimiserConfig().learning_rate)
