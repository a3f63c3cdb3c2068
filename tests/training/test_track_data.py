"""Events for a tracker: what the filter in front takes away, and what it must not touch."""

from typing import Any

import numpy as np
import pytest
import torch

from hepattn.data import open_events
from hepattn.data.schema import Event, Selection
from hepattn.models.decoder_config import DecoderConfig
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilter
from hepattn.models.maskformer import MaskFormerConfig, kept_hits
from hepattn.training import TrackDataModule, track_data
from hepattn.training.track_data import EventBatch, KeptHits, collate_events, judge_kept

from .conftest import toy_event

FEATURES = ("x", "y", "z")


def configuration(**changes) -> MaskFormerConfig:
    small: dict[str, Any] = {
        "encoder": EncoderConfig(8, 1, 2),
        "decoder": DecoderConfig(1, 2),
        "window": 8,
        "pt_min": 0.9,
    }
    return MaskFormerConfig(features=FEATURES, **(small | changes))


def opened(folder, config: MaskFormerConfig, stage: str = "fit", **settings) -> TrackDataModule:
    data = TrackDataModule(path=str(folder), validation=2, test=2, **settings)
    data.read_for(config)
    data.setup(stage)
    return data


def test_kept_hits_in_bits():
    rng = np.random.default_rng(0)
    masks = [rng.random(number) < 0.5 for number in (0, 1, 8, 13)]
    kept = KeptHits()
    for mask in masks:
        kept.append(mask)
    assert len(kept) == 4
    assert all(np.array_equal(a, b) for a, b in zip(kept, masks, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(kept[1:], masks[1:], strict=True))
    assert kept[0].dtype == np.bool_


def test_the_filter_takes_hits_away_and_reconstructable_is_decided_before(toy_folder, toy_filter, capsys):
    config = configuration(filter=str(toy_filter), filter_threshold=0.2835)
    data = opened(toy_folder, config, "fit", augmentation=None)
    model, events = HitFilter.load(toy_filter), open_events(toy_folder)
    kept, target, lost = 0, 0, 0
    train: Any = data.dataset("train")
    for i in range(6):
        batch, event = train[i], events[i]
        assert event.hits.particle is not None
        expected = model.score(event).numpy() >= 0.2835
        assert np.array_equal(batch.hits.row.numpy(), np.flatnonzero(expected))
        assert 0 < len(batch.hits.row) < len(event.hits)
        wanted = config.selection.particles(event)
        assert torch.equal(batch.hits.reconstructable.values, torch.from_numpy(wanted))
        left = np.bincount(event.hits.particle[expected], minlength=len(wanted))
        lost += int((wanted & (left < 3)).sum())
        kept, target = kept + len(batch.hits.row), target + int(batch.hits.target.sum())
    assert lost  # some of them can no longer be found, and stay in the denominator
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("train:"))
    assert f"keeps {kept / 6:,.0f} of 72 hits an event, {target / 216:.2%} of target hits" in said
    assert f"and {1 - lost / 36:.2%} of reconstructable particles with >= 3 hits" in said


def test_turning_an_event_changes_nothing_that_the_filter_decided(toy_folder, toy_filter):
    config = configuration(filter=str(toy_filter), filter_threshold=0.2835)
    data = opened(toy_folder, config)
    still = opened(toy_folder, config, augmentation=None)
    turned, as_it_is = data.dataset("train")[5, 3], still.dataset("train")[5, 3]
    assert torch.equal(turned.hits.row, as_it_is.hits.row)
    assert not torch.equal(turned.hits.inputs.values, as_it_is.hits.inputs.values)


def test_each_stage_scores_only_what_it_reads(toy_folder, toy_filter, monkeypatch):
    calls: list[int] = []

    def noted(event: Event, config: MaskFormerConfig, scores: torch.Tensor | None) -> np.ndarray:
        calls.append(event.event_id)
        return kept_hits(event, config, scores)

    monkeypatch.setattr(track_data, "kept_hits", noted)
    config = configuration(filter=str(toy_filter))
    data = opened(toy_folder, config, "test")
    assert calls == [8, 9]
    data.setup("test")
    data.setup("fit")
    assert calls == [8, 9, *range(8)]
    opened(toy_folder, config, "predict")
    assert calls == [8, 9, *range(8), *range(10)]


def test_held_out_events_come_whole_and_one_by_one(toy_folder, toy_filter):
    config = configuration(filter=str(toy_filter), filter_threshold=0.2835)
    data = opened(toy_folder, config, "test", batch_size=2)
    one, other = data.test_dataloader()
    assert [batch.given.hits.event_ids for batch in (one, other)] == [(8,), (9,)]
    batch = collate_events([data.dataset("test")[0], data.dataset("test")[1]])
    assert isinstance(batch, EventBatch)
    assert [event.event_id for event in batch.events] == list(batch.given.hits.event_ids) == [8, 9]
    assert [len(event.hits) for event in batch.events] == list(batch.given.num_hits) == [72, 72]
    assert batch.given.hits.inputs.lengths.tolist() == [int(kept.sum()) for kept in batch.kept]
    assert batch.to("cpu").given.hits.event_ids == batch.given.hits.event_ids
    with pytest.raises(ValueError, match="at least one"):
        collate_events([])


def test_without_a_filter_all_hits_in_the_volumes_go_in(toy_folder, capsys):
    data = opened(toy_folder, configuration(volumes=(8,)), "test")
    assert "no hit filter in front" in capsys.readouterr().err
    (batch,) = data.dataset("test")[0].kept
    assert batch.sum() == 36
    assert data.kept("test") is None


def test_features_of_the_data_are_those_of_the_tracker(toy_folder):
    with pytest.raises(ValueError, match=r"leave data\.features and data\.selection out"):
        opened(toy_folder, configuration(), features=("x",))
    with pytest.raises(ValueError, match=r"leave data\.features and data\.selection out"):
        opened(toy_folder, configuration(), selection=Selection(pt_min=2.0))


def test_opened_and_scored_events_are_shared(toy_folder, toy_filter, monkeypatch):
    config = configuration(filter=str(toy_filter))
    first = opened(toy_folder, config)
    second = TrackDataModule(path="nowhere")
    second.read_for(config)
    second.share(first)
    monkeypatch.setattr(HitFilter, "logits", None)
    second.setup("fit")
    assert second.kept("train") is first.kept("train")


def test_what_a_filter_keeps_is_judged_in_the_selected_volumes():
    event, selection = toy_event(0), Selection(volumes=(8,))
    kept = np.zeros(72, dtype=np.bool_)
    kept[:4] = True  # layers 1 to 3 (volume 8) and 4 (volume 13) of the first particle, which is stiff
    judged = judge_kept(event, kept, selection)
    assert judged.scores.tolist() == [1.0] * 3 + [0.0] * 33
    assert judged.target.tolist() == ([True] * 3 + [False] * 3) * 6
    assert int(judged.reconstructable.sum()) == 6
    assert not judge_kept(toy_event(0, truth=False), kept, selection, truth=False).target.any()
