"""The loss with which a hit filter trains."""

import pytest
import torch

from hepattn.data.dataset import HitBatch, collate, hit_batch
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilterConfig
from hepattn.models.losses import RouterWeights, count_loss, hit_loss
from hepattn.training.filtering import HitFilterModule

from .conftest import toy_event

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")  # there is no trainer


@pytest.fixture
def batch() -> HitBatch:
    network = HitFilterConfig(features=("x", "y", "z"))
    return collate([hit_batch(toy_event(i), network.features, network.selection) for i in range(2)])


def module(balance: float, z: float, count: float) -> HitFilterModule:
    torch.manual_seed(0)
    encoder = EncoderConfig(16, 2, 2, cls=1, experts=4)
    network = HitFilterConfig(features=("x", "y", "z"), window=8, encoder=encoder, count=True)
    return HitFilterModule(network, router_weights=RouterWeights(balance, z), count_weight=count)


def test_loss_is_of_hits_and_of_routers_and_of_the_count(batch: HitBatch):
    made = module(balance=0.5, z=0.25, count=2.0)
    judged = made.model.judge(batch.inputs)
    assert judged.losses is not None
    assert judged.log_count is not None
    by_hand = hit_loss(judged.logits, batch.target, made.pos_weight)
    by_hand = by_hand + 0.5 * judged.losses.balance + 0.25 * judged.losses.z
    by_hand = by_hand + 2.0 * count_loss(judged.log_count, batch.num_reconstructable)
    torch.testing.assert_close(made.training_step(batch), by_hand)


def test_routers_learn_from_each_of_their_losses(batch: HitBatch):
    without, balanced, small = module(0, 0, 0), module(1.0, 0, 0), module(0, 1.0, 0)
    grads = []
    for made in (without, balanced, small):
        made.training_step(batch).backward()
        routers = [p for name, p in made.model.named_parameters() if "router" in name]
        assert routers
        grads.append(torch.cat([p.grad.flatten() for p in routers if p.grad is not None]))
    assert not torch.allclose(grads[0], grads[1], rtol=1e-2)
    assert not torch.allclose(grads[0], grads[2], rtol=1e-2)
