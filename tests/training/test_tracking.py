"""The tracker's module without a command line: its report, and a step driven from outside."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hepattn.data import Event, Truth
from hepattn.data.schema import Selection
from hepattn.data.tracks import Tracks
from hepattn.models.decoder_config import DecoderConfig
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilter
from hepattn.models.maskformer import MaskFormerConfig
from hepattn.training import OptimiserConfig, TrackDataModule, TrackerModule, make_optimiser
from hepattn.training.tracking import JudgedEvent, TrackReport

from .conftest import toy_event

SMALL: dict[str, Any] = {
    "features": ("x", "y", "z"),
    "encoder": EncoderConfig(16, 1, 2),
    "decoder": DecoderConfig(1, 2, block=4, window=24),
    "window": 8,
    "pt_min": 0.9,
}


def weighted(number: int) -> Event:
    """A toy event whose hits all weigh the same."""
    event = toy_event(number)
    nothing = np.zeros(72, dtype=np.float32)
    return Event(event.hits, event.particles, number, truth=Truth(*[nothing] * 6, weight=nothing + 1 / 72))  # type: ignore[misc]


def judged(event: Event, kept: np.ndarray, selection: Selection) -> JudgedEvent:
    """The stiff particles (even rows): 0 whole, 2 and 4 without a hit each, 6 halved, 8 and 10 not found; a fake."""
    rows = [np.arange(6) + 6 * particle for particle in (0, 2, 4)]
    rows[1], rows[2] = rows[1][:5], rows[2][1:]
    fake = np.array([6 * 1, 6 * 3, 6 * 5])
    tracks = Tracks.from_hits([*rows, np.arange(36, 39), fake], 72)
    return JudgedEvent.of(event, tracks, selection, kept)


def test_the_report_counts_by_hand():
    config = MaskFormerConfig(**SMALL, filter="mine")
    kept = np.ones(72, dtype=np.bool_)
    kept[[17, 60, 61, 62, 63]] = False  # the hit that the second track lacks, and most of particle 10
    one = judged(weighted(0), kept, config.selection)
    report = TrackReport([one, judged(toy_event(1), kept, config.selection)], config, config.selection)
    record = report.record()
    assert record["all"]["efficiency"] == [6, 12]
    assert record["all"]["efficiency_perfect"] == [2, 12]
    assert record["kept"]["efficiency_perfect"] == [4, 12]
    assert record["all"]["fakes"] == [4, 10]  # one of three different particles, one that has half of its particle
    assert record["filter"]["kept"] == [134, 144]
    assert record["filter"]["efficiency"] == [62, 72]
    assert record["filter"]["retention"] == [10, 12]
    assert record["against"]["pt"]["edges"][:3] == [0.9, 1.0, 1.5]
    assert record["against"]["pt"]["double_majority"][3] == [6, 12]  # 2 to 3 GeV
    assert record["against"]["eta"]["edges"] == [-4 + 0.5 * i for i in range(17)]
    assert record["against"]["eta"]["perfect"][8] == [2, 12]
    score = record["trackml_score"]
    assert score["events"] == 1
    assert score["value"] == pytest.approx(16 / 72)
    assert score["best"] == pytest.approx(0.5)
    table = report.table()
    assert "2 events, 12 target particles" in table
    assert "TrackML score in the selected volumes, 1 events with weights: 0.2222" in table


def test_edges_without_a_cut_on_eta():
    config = MaskFormerConfig(**SMALL)
    report = TrackReport([], config, replace(config.selection, eta_max=float("inf"), pt_min=2.0))
    assert report.edges("eta")[0] == -4
    assert report.edges("pt")[:2] == [2.0, 3.0]
    assert report.record()["all"]["efficiency"] == [0, 0]


def test_a_tracker_is_judged_by_other_particles_than_it_is_trained_on():
    config = MaskFormerConfig(**SMALL)
    looser = replace(config.selection, pt_min=0.2)
    assert TrackerModule(config).selection == config.selection
    assert TrackerModule(config, judged=looser).selection == looser
    with pytest.raises(ValueError, match=r"reads hits of volumes None: it can't be judged by those of \(7, 8\)"):
        TrackerModule(config, judged=replace(looser, volumes=(7, 8)))
    kept = np.ones(72, dtype=np.bool_)
    record = TrackReport([judged(toy_event(0), kept, looser)], config, looser).record()
    assert record["all"]["efficiency"] == [3, 12]
    assert record["against"]["pt"]["edges"][:2] == [0.2, 1.0]


def driven(folder, config: MaskFormerConfig) -> tuple[TrackerModule, TrackDataModule, dict[str, Any]]:
    """A module to be driven without a trainer, its data, and what it logs."""
    data = TrackDataModule(path=str(folder))
    data.read_for(config)
    data.setup("fit")
    torch.manual_seed(0)
    module = TrackerModule(config)
    logged: dict[str, Any] = {}
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign]
    return module, data, logged


@pytest.mark.parametrize("queries", ["dynamic", "learned"])
def test_a_step_can_be_driven_from_outside_and_the_loss_falls(toy_folder, queries):
    config = MaskFormerConfig(**SMALL, queries=queries, learned_queries=9)
    module, data, logged = driven(toy_folder, config)
    assert (module.matcher is None) == (queries == "dynamic")
    optimiser = make_optimiser(module.model, OptimiserConfig(learning_rate=1e-2))
    losses = []
    for _, batch in zip(range(40), data.train_dataloader(), strict=False):
        loss = module.training_step(batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    parts = [logged[f"loss_{name}"].item() for name in ("first_hit", "objects", "focal", "dice")]
    assert sum(parts) == pytest.approx(losses[-1])
    assert logged["surplus"] == 0
    if queries == "learned":
        assert logged["queries"] == 9


@pytest.mark.parametrize("whose", ["encoder", "decoder"])
def test_losses_of_routers_are_trained_and_logged(toy_folder, whose):
    config = MaskFormerConfig(**SMALL)
    config = replace(config, **{whose: replace(getattr(config, whose), experts=3)})
    module, data, logged = driven(toy_folder, config)
    loss = module.training_step(next(iter(data.train_dataloader())))
    parts = [logged[f"loss_{name}"].item() for name in ("first_hit", "objects", "focal", "dice")]
    assert logged["loss_routers"] > 0.01  # its factor times 1 where all experts are used alike
    assert loss.item() == pytest.approx(sum(parts) + logged["loss_routers"].item())
    loss.backward()
    routers = [w.grad for name, w in module.named_parameters() if name.endswith("router.weight")]
    assert len(routers) == 1
    assert routers[0] is not None
    assert routers[0].any()


def test_too_few_learned_queries_are_counted(toy_folder):
    config = MaskFormerConfig(**SMALL, queries="learned", learned_queries=4)
    module, data, logged = driven(toy_folder, config)
    module.training_step(next(iter(data.train_dataloader())))
    assert logged["surplus"] == 2


def test_a_training_may_begin_with_the_encoder_of_its_filter(toy_filter):
    front = HitFilter.load(toy_filter)
    names = ("features", "encoder", "phi_octaves", "eta_octaves", "r_octaves", "z_octaves", "window")
    network = MaskFormerConfig(
        **{name: getattr(front.config, name) for name in names},
        decoder=DecoderConfig(num_layers=1, num_heads=2),
        filter=str(toy_filter),
    )
    begun = TrackerModule(network, begin_with_filter=True).model
    assert all(torch.equal(begun.encoder.state_dict()[name], x) for name, x in front.encoder.state_dict().items())
    with pytest.raises(ValueError, match="they differ in phi_octaves"):
        TrackerModule(replace(network, phi_octaves=1), begin_with_filter=True)
    with pytest.raises(ValueError, match="needs a hit filter in front of the tracker: name it"):
        TrackerModule(replace(network, filter=None), begin_with_filter=True)
