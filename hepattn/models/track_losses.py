"""Losses of tracks: masks over hits, objects, predicted IoU and parameters; and what each pair costs in a matching.

All of them compute in float32, whatever comes in, and are finite for finite predictions of any sensible size, also
without a target, a query or a hit. A NaN in a prediction stays a NaN in the loss: it is a fault to be seen.

A mask is a row of logits, one a hit. Rows lie over all N hits of an event (dense) or over a window of W gathered hits
(block-local): the same functions serve both, and agree where the window holds all that is not zero. Of a window,
`valid` says which slots count (False: a repeated hit, or none) and `size` how many hits the particle has in all, those
outside the window among them.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from hepattn.models.losses import PosWeight, check_pos_weight

PARAMETERS = ("pt", "eta", "phi", "z0", "d0", "charge")
"""Columns of track parameters; `parameter_loss` says in which units."""


@dataclass(frozen=True)
class TrackWeights:
    """Factors of the losses of tracks, and the two numbers that shape them; the defaults were seen to learn.

    Raises:
        ValueError: one is negative or not finite.
    """

    object: float = 1.0
    """Of `object_loss`, the mean over queries."""
    focal: float = 2.0
    """Of `mask_focal`, averaged over targets."""
    dice: float = 2.0
    """Of `mask_dice`, averaged over targets."""
    iou: float = 0.0
    """Of `iou_loss`, averaged over targets."""
    parameters: float = 0.0
    """Of `parameter_loss`."""
    first_hit: float = 4.0
    """Of `hepattn.models.losses.hit_loss` on "is the innermost hit of its particle"."""
    first_hit_pos_weight: PosWeight = 4.0
    """Weight of an innermost hit against any other hit."""
    null_weight: float = 1.0
    """Weight of a query without a target against one with a target, in `object_loss`."""
    gamma: float = 2.0
    """Exponent of the focal loss; 0 is plain cross-entropy."""

    def __post_init__(self) -> None:
        check_pos_weight(self.first_hit_pos_weight)
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name != "first_hit_pos_weight" and not 0.0 <= value < math.inf:
                raise ValueError(f"got {one.name}={value}: weights of track losses are finite and at least 0")


def mask_focal(
    logits: Tensor, target: Tensor, valid: Tensor | None = None, size: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """Focal loss of each mask (arXiv:1708.02002, eq. 4): sum over hits of (1 - p_t)^gamma BCE, over max(1, size).

    Divided by the hits of the particle and not of the event, so that a mask weighs the same in a small and in a large
    event, and in a window.

    Args:
        logits: (..., W) float
        target: (..., W) bool, True = the hit lies on the target particle
        valid: (..., W) bool, True = the slot counts; None: all do. What stands in the others is not looked at.
        size: (...) int or float, hits of the target particle; None: those in `target` that are valid
        gamma: exponent >= 0

    Returns:
        (...) float32, one number a mask

    Raises:
        ValueError: shapes differ, `target` or `valid` is not boolean, or gamma < 0
    """
    if not gamma >= 0:
        raise ValueError(f"got gamma={gamma}: the exponent of the focal loss is at least 0")
    logits, target, size = _prepared(logits, target, valid, size)
    terms = focal_terms(torch.where(target, logits, -logits), gamma)
    if valid is not None:
        terms = terms.masked_fill(~valid, 0.0)
    return terms.sum(-1) / size.clamp(min=1.0)


def mask_dice(logits: Tensor, target: Tensor, valid: Tensor | None = None, size: Tensor | None = None) -> Tensor:
    """Dice loss of each mask (arXiv:1606.04797), smoothed by 1: 1 - (2 sum(p t) + 1) / (sum p + size + 1).

    Hits of the particle outside the window count as missed: they are in `size`, and not in the sums.

    Args:
        logits: (..., W) float
        target: (..., W) bool, True = the hit lies on the target particle
        valid: (..., W) bool, True = the slot counts; None: all do. What stands in the others is not looked at.
        size: (...) int or float, hits of the target particle; None: those in `target` that are valid

    Returns:
        (...) float32 in [0, 1), one number a mask; 0 for an empty mask on an empty target

    Raises:
        ValueError: shapes differ, or `target` or `valid` is not boolean
    """
    logits, target, size = _prepared(logits, target, valid, size)
    p = logits.sigmoid()
    if valid is not None:
        p = p.masked_fill(~valid, 0.0)
    return 1.0 - (2.0 * (p * target).sum(-1) + 1.0) / (p.sum(-1) + size + 1.0)


def iou_loss(
    predicted: Tensor, logits: Tensor, target: Tensor, valid: Tensor | None = None, size: Tensor | None = None
) -> Tensor:
    """Squared error of a predicted IoU (arXiv:1903.00241; 2304.02643) against that of the mask cut at probability 0.5.

    The mask itself gets no gradient from it. A hit of the particle outside the window is in the union. An empty mask
    on an empty target has IoU 0: there is no track to be proud of.

    Args:
        predicted: (...) float, logits of the IoU
        logits: (..., W) float, the mask
        target: (..., W) bool, True = the hit lies on the target particle
        valid: (..., W) bool, True = the slot counts; None: all do
        size: (...) int or float, hits of the target particle; None: those in `target` that are valid

    Returns:
        (...) float32 in [0, 1], one number a mask

    Raises:
        ValueError: shapes differ, or `target` or `valid` is not boolean
    """
    if predicted.shape != logits.shape[:-1]:
        raise ValueError(f"one IoU a mask is needed: {tuple(predicted.shape)} predicted, masks {tuple(logits.shape)}")
    logits, target, size = _prepared(logits.detach(), target, valid, size)
    mask = logits > 0
    if valid is not None:
        mask = mask & valid
    both = (mask & target).sum(-1)
    iou = both / (mask.sum(-1) + size - both).clamp(min=1.0)
    return (predicted.float().sigmoid() - iou).square()


def object_loss(logits: Tensor, target: Tensor, null_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy "this query is a track", divided by the number of queries; 0 without a query.

    Args:
        logits: (Q,) float
        target: (Q,) bool, True = a target stands behind the query
        null_weight: factor >= 0 of queries without a target

    Returns:
        () float32

    Raises:
        ValueError: shapes differ, `target` is not boolean, or null_weight < 0
    """
    if logits.shape != target.shape or target.dtype != torch.bool:
        got = f"logits {tuple(logits.shape)}, target {target.dtype} {tuple(target.shape)}"
        raise ValueError(f"one boolean target a query is needed: {got}")
    if not null_weight >= 0:
        raise ValueError(f"got null_weight={null_weight}: the weight of queries without a target is at least 0")
    logits = logits.float()
    terms = torch.where(target, F.softplus(-logits), null_weight * F.softplus(logits))
    return terms.sum() / max(1, logits.numel())


@dataclass(frozen=True)
class ParameterScale:
    """Residuals at which the loss of a parameter turns from a square into a line, and is 1/2.

    Raises:
        ValueError: one is not a finite number > 0.
    """

    log_pt: float = 0.1
    """Of ln(pT): 0.1 is 10 % of pT."""
    eta: float = 0.05
    phi: float = 0.05
    """Of sin(phi) and of cos(phi): rad, where small."""
    z0: float = 5.0
    """mm"""
    d0: float = 0.5
    """mm"""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not 0.0 < value < math.inf:
                raise ValueError(f"got {one.name}={value}: a scale of track parameters is a finite number > 0")


@dataclass(frozen=True)
class ParameterLoss:
    """What `parameter_loss` found."""

    total: Tensor
    """() float32, the sum of the parts."""
    parts: Tensor
    """(6,) float32, the mean loss of each of `PARAMETERS` over the rows that know it; 0 where none does."""
    rows: Tensor
    """(6,) int64, how many rows know it."""


_DEFAULT_SCALE = ParameterScale()


def parameter_loss(predicted: Tensor, truth: Tensor, scale: ParameterScale = _DEFAULT_SCALE) -> ParameterLoss:
    """Smooth L1 loss (arXiv:1504.08083) of residuals over their scales, and cross-entropy of the charge.

    phi enters as its sine and cosine, so that +-pi is no seam. What is not known is kept out, with zero gradients:
    NaN or infinite truth, pT <= 0, charge 0. A query without a target is a row of NaN.

    Args:
        predicted: (Q, 6) float: ln(pT / GeV), eta, phi (rad), z0 (mm), d0 (mm), logit of "the charge is positive"
        truth: (Q, 6) float: pT (GeV), eta, phi (rad), z0 (mm), d0 (mm), charge (its sign counts)
        scale: of each residual

    Raises:
        ValueError: one is not (Q, 6), or their Q differ
    """
    if predicted.shape != truth.shape or predicted.dim() != 2 or predicted.shape[1] != len(PARAMETERS):
        got = f"{tuple(predicted.shape)} predicted, {tuple(truth.shape)} true"
        raise ValueError(f"both are (queries, {len(PARAMETERS)}), the columns {', '.join(PARAMETERS)}: {got}")
    truth = truth.float()
    known = truth.isfinite()
    known[:, 0] &= truth[:, 0] > 0
    known[:, 5] &= truth[:, 5] != 0
    # replaced before anything is computed: a NaN times zero is a NaN, in the gradient, too
    pt, eta, phi, z0, d0, charge = truth.where(known, truth.new_tensor(1.0)).unbind(1)
    guess = predicted.float().where(known, truth.new_tensor(0.0)).unbind(1)
    terms = torch.stack(
        [
            _smooth(guess[0] - pt.log(), scale.log_pt),
            _smooth(guess[1] - eta, scale.eta),
            _smooth(guess[2].sin() - phi.sin(), scale.phi) + _smooth(guess[2].cos() - phi.cos(), scale.phi),
            _smooth(guess[3] - z0, scale.z0),
            _smooth(guess[4] - d0, scale.d0),
            F.softplus(torch.where(charge > 0, -guess[5], guess[5])),
        ],
        dim=1,
    )
    rows = known.sum(0)
    parts = terms.masked_fill(~known, 0.0).sum(0) / rows.clamp(min=1)
    return ParameterLoss(parts.sum(), parts, rows)


_DEFAULT_WEIGHTS = TrackWeights()


@torch.no_grad()
def pair_costs(
    object_logits: Tensor,
    mask_logits: Tensor,
    targets: Tensor,
    weights: TrackWeights = _DEFAULT_WEIGHTS,
    size: Tensor | None = None,
) -> Tensor:
    """What the loss of an event grows by if query q is matched to target m, times the number K of matched pairs.

    The loss is `object x object_loss + (focal x sum of mask_focal + dice x sum of mask_dice) / K` with K = min(Q, M),
    sums over matched pairs. So a pair costs `focal x mask_focal + dice x mask_dice + object x K / Q x d`, d being the
    cross-entropy of a query that has a target less that of one that has none: the assignment of least cost is the one
    of least loss, exactly. IoU and parameters are left out of the matching.

    No (Q, M, N) tensor is made: three products of a (Q, N) and an (N, M) matrix of terms >= 0, so that nothing cancels.
    In float32 also under autocast. Leading dimensions (decoder layers) share the targets.

    Args:
        object_logits: (..., Q) float
        mask_logits: (..., Q, N) float
        targets: (M, N) bool, True = the hit lies on the particle
        weights: factors of the losses
        size: (M,) int or float, hits of each particle; None: those in `targets`

    Returns:
        (..., Q, M) float32, without gradients

    Raises:
        ValueError: shapes do not fit, or `targets` is not boolean
    """
    if mask_logits.shape[:-1] != object_logits.shape or object_logits.dim() < 1:
        got = f"objects {tuple(object_logits.shape)}, masks {tuple(mask_logits.shape)}"
        raise ValueError(f"one object logit and one mask a query are needed, (..., Q) and (..., Q, N): {got}")
    if targets.dim() != 2 or targets.shape[1] != mask_logits.shape[-1] or targets.dtype != torch.bool:
        got = f"{targets.dtype} {tuple(targets.shape)} for masks {tuple(mask_logits.shape)}"
        raise ValueError(f"targets are boolean (M, N) over the same hits: {got}")
    size = _size(targets, size)
    with torch.autocast(mask_logits.device.type, enabled=False):
        exists, x = object_logits.float(), mask_logits.float()
        on = targets.to(torch.float32).mT
        focal = (focal_terms(x, weights.gamma) @ on + focal_terms(-x, weights.gamma) @ (1.0 - on)) / size.clamp(min=1.0)
        p = x.sigmoid()
        dice = 1.0 - (2.0 * (p @ on) + 1.0) / (p.sum(-1, keepdim=True) + size + 1.0)
        share = min(x.shape[-2], len(targets)) / max(1, x.shape[-2])
        gain = F.softplus(-exists) - weights.null_weight * F.softplus(exists)
        return weights.focal * focal + weights.dice * dice + weights.object * share * gain[..., None]


def focal_terms(score: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma (-ln p) for p = sigmoid(score): the focal loss of a hit whose class has this logit; any shape.

    The power is taken in the exponent, so that its gradient is finite for any gamma, also where p is 1.
    """
    return (-gamma * F.softplus(score)).exp() * F.softplus(-score)


def _smooth(residual: Tensor, scale: float) -> Tensor:
    residual = residual / scale
    return F.smooth_l1_loss(residual, torch.zeros_like(residual), reduction="none")


def _size(target: Tensor, size: Tensor | None) -> Tensor:
    if size is None:
        return target.sum(-1).to(torch.float32)
    if size.shape != target.shape[:-1]:
        raise ValueError(f"one size a target is needed: {tuple(size.shape)} for targets {tuple(target.shape)}")
    return size.to(torch.float32)


def _prepared(
    logits: Tensor, target: Tensor, valid: Tensor | None, size: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float32 with zeros where not valid, targets that are valid, and the sizes of the particles."""
    for name, one in (("target", target), ("valid", valid)):
        if one is not None and (one.shape != logits.shape or one.dtype != torch.bool):
            got = f"{name} {one.dtype} {tuple(one.shape)} for logits {tuple(logits.shape)}"
            raise ValueError(f"masks, targets and valid slots have one shape, the last two boolean: {got}")
    if valid is not None:
        logits, target = logits.masked_fill(~valid, 0.0), target & valid
    return logits.float(), target, _size(target, size)
