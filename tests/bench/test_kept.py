"""What a sector of an event holds."""

import math

import pytest
import torch

from hepattn.bench.kept import sector
from hepattn.data import sample_events
from hepattn.data.dataset import hit_batch
from hepattn.data.features import DEFAULT_FEATURES
from hepattn.data.schema import Selection


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_sector_holds_all_hits_up_to_its_end_as_they_were(share: float) -> None:
    batch = hit_batch(sample_events("ttbar_mu0")[0], DEFAULT_FEATURES, Selection())
    part = sector(batch, share)
    phi = batch.inputs.values[:, -4]
    wanted = [row for row, angle in enumerate(phi.tolist()) if angle <= -math.pi + share * 2 * math.pi]
    assert part.row.tolist() == wanted
    assert part.inputs.lengths.tolist() == [len(wanted)]
    assert torch.equal(part.inputs.values, batch.inputs.values[wanted])
    assert torch.equal(part.target, batch.target[wanted])
    assert torch.equal(part.particle, batch.particle[wanted])
    assert part.reconstructable is batch.reconstructable  # decided on the whole event
