"""The model that a training begins with."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported

from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilter, HitFilterConfig
from hepattn.training.base import begin

from .conftest import toy_event


class Untraceable(nn.Module):
    """What no graph can hold: a step that reads a value on the host."""

    def forward(self, x: Tensor) -> Tensor:
        """Itself."""
        torch._dynamo.graph_break()
        return x


def test_an_encoder_that_cannot_be_compiled_whole_says_so_instead_of_running_uncompiled():
    network = HitFilterConfig(features=("x", "y", "z"), window=8, encoder=EncoderConfig(16, 1, 2))
    for compiled in (False, True):
        model = begin(HitFilter, network, compile=compiled)
        model.encoder.norm = Untraceable()
        if compiled:
            with pytest.raises(Unsupported, match="graph_break"):
                model.score(toy_event(0))
        else:
            assert len(model.score(toy_event(0))) == 72
