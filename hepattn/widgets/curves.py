"""Curves of several trainings in one static figure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hepattn.plotting import style
from hepattn.widgets.training import TrainingExplorer
from hepattn.widgets.training_panels import RUN_OF_LOSSES, name_axes, running_mean

__all__ = ["learning_curves"]


def learning_curves(trainings: Mapping[str, TrainingExplorer]) -> Figure:
    """Draw the loss and the area under the ROC curve of several trainings against their steps.

    Args:
        trainings: name -> explorer that has trained

    Returns:
        The figure, two panels: loss (mean of 50 steps), and AUC on the held-out events.
    """
    figure, (loss, auc) = style.canvas(2, width=5.6, height=4.2)
    with style.context():
        for i, (name, one) in enumerate(trainings.items()):
            look: dict[str, Any] = {
                "color": style.CYCLE[i % len(style.CYCLE)],
                "linestyle": ("-", "--", ":", "-.")[i % 4],
            }
            loss.plot(*running_mean(np.array(one.losses)), label=name, **look)
            auc.plot(*zip(*one.aucs, strict=True), marker=".", label=f"{name}, last {one.auc:.3f}", **look)
        name_axes(loss, f"training, mean of {RUN_OF_LOSSES} steps", "step", "loss")
        events = {len(one._held_out_events) for one in trainings.values()}  # noqa: SLF001
        name_axes(auc, f"{max(events, default=0)} held-out events", "step", "area under ROC curve")
        auc.set_ylim(0.45, 1.0)
        for panel in (loss, auc):
            panel.grid(color=style.PAPER)
            panel.legend()
    return figure
