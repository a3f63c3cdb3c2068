"""Batches of hits that lie on disk, whole events or sectors of them, so that many trainings need not prepare them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from hepattn.data.dataset import COORDINATES, HitBatch, HitDataset, collate
from hepattn.sequence import Packed

__all__ = ["Kept", "Sectors", "keep", "sector"]


class Kept(Dataset[HitBatch]):
    """Batches of one event each, which lie on disk as `keep` left them; read where they lie."""

    def __init__(self, path: Path) -> None:
        tensors = torch.load(path, mmap=True, weights_only=True)
        self.whole = HitBatch(
            inputs=Packed(tensors["inputs"], tensors["hits"]),
            target=tensors["target"],
            particle=tensors["particle"],
            row=tensors["row"],
            reconstructable=Packed(tensors["reconstructable"], tensors["particles"]),
            event_ids=tuple(tensors["event_ids"].tolist()),
        )
        self.hits, self.particles = self.whole.inputs.offsets, self.whole.reconstructable.offsets

    def __len__(self) -> int:
        return len(self.whole.event_ids)

    def __getitem__(self, index: int) -> HitBatch:
        hits = slice(int(self.hits[index]), int(self.hits[index + 1]))
        particles = slice(int(self.particles[index]), int(self.particles[index + 1]))
        whole, inputs, truth = self.whole, self.whole.inputs, self.whole.reconstructable
        return HitBatch(
            inputs=Packed(inputs.values[hits], inputs.lengths[index : index + 1]),
            target=whole.target[hits],
            particle=whole.particle[hits],
            row=whole.row[hits],
            reconstructable=Packed(truth.values[particles], truth.lengths[index : index + 1]),
            event_ids=whole.event_ids[index : index + 1],
        )


def sector(batch: HitBatch, share: float) -> HitBatch:
    """The hits of an event in a sector about the beam; what is wanted stays as the whole event decided.

    Args:
        batch: of one event, turned at random
        share: of a full turn; the sector begins at phi = -pi
    """
    phi = batch.inputs.values[:, COORDINATES.index("phi") - len(COORDINATES)]
    inside = phi < (2 * share - 1) * math.pi
    values = batch.inputs.values[inside]
    return replace(
        batch,
        inputs=Packed(values, torch.tensor([len(values)])),
        target=batch.target[inside],
        particle=batch.particle[inside],
        row=batch.row[inside],
    )


class Sectors(Dataset[HitBatch]):
    """Batches of a dataset, each cut to a sector; asked for by (key of the dataset, share)."""

    def __init__(self, dataset: HitDataset) -> None:
        self.dataset = dataset

    @override
    def __getitem__(self, key: tuple[Any, float]) -> HitBatch:
        number, share = key
        return self.dataset[number] if share == 1 else sector(self.dataset[number], share)


def keep(dataset: Dataset[HitBatch], order: Sequence[Any], path: Path, workers: int) -> None:
    """Writes the dataset's batches in that order, so that no training has to prepare them again."""
    loader = DataLoader(dataset, sampler=order, batch_size=None, num_workers=workers)
    batch = collate([collate([one]) for one in loader])  # the inner one copies what a worker's open files hold
    tensors = {
        "inputs": batch.inputs.values,
        "hits": batch.inputs.lengths,
        "target": batch.target,
        "particle": batch.particle,
        "row": batch.row,
        "reconstructable": batch.reconstructable.values,
        "particles": batch.reconstructable.lengths,
        "event_ids": torch.tensor(batch.event_ids),
    }
    torch.save(tensors, path)
