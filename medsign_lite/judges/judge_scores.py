"""How well the judges judge: scores on phantoms that they were not trained on."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from medsign_lite.judges.judge_data import Phantoms
from medsign_lite.judges.judge_networks import FindingClassifier, FindingSegmenter


def _batches(data: Phantoms, device: torch.device, size: int = 64) -> Iterator[dict[str, Tensor]]:
    for rows in torch.arange(len(data)).split(size):
        yield data.batch(rows, device=device)


@torch.no_grad()
def evaluate_classifier(classifier: FindingClassifier, data: Phantoms) -> dict:
    """Score a classifier within each finding's own modality, at a probability of one half.

    Returns:
        {"findings": {name: {"auc", "accuracy", "sensitivity", "specificity", "side", "count"}},
        "eye": accuracy, "auc", "accuracy", "sensitivity", "side": means over the findings}. Higher
        is better. `side` is the share of the images with a finding and a stated side where that is
        the side read. What cannot be measured on these data is None and left out of the means.
    """
    device = next(classifier.parameters()).device
    classifier.eval()
    readings = [classifier(batch["image"]) for batch in _batches(data, device)]
    presence, sides, eye = (torch.cat(parts).cpu() for parts in zip(*readings, strict=True))
    scores = {}
    for index, name in enumerate(data.findings):
        rows = data.asked(name)
        target, preds = data.presence[rows, index] > 0, presence[rows, index] > 0
        if not rows.any():
            continue
        stated = rows & (data.presence[:, index] > 0) & ~data.sides[:, index, 0].isnan()
        read = _sides_read(sides[stated, index])
        correct = (read == data.sides[stated, index]).all(dim=1)
        both = target.any() and not target.all()
        scores[name] = {
            "auc": float(roc_auc_score(target, presence[rows, index])) if both else None,
            "accuracy": _mean(preds == target),
            "sensitivity": _mean(preds[target]),
            "specificity": _mean(~preds[~target]),
            "side": _mean(correct),
            "count": int(target.sum()),
        }
    stated = ~data.eye.isnan()
    summary = {"findings": scores, "eye": _mean((eye[stated] > 0) == (data.eye[stated] > 0))}
    return summary | _means(scores, ("auc", "accuracy", "sensitivity", "specificity", "side"))


def _sides_read(logits: Tensor) -> Tensor:
    """(N, 2) in {0, 1}: both sides if both are positive, otherwise the likelier; see `sides`."""
    return ((logits > 0) | (logits == logits.amax(dim=1, keepdim=True))).float()


@torch.no_grad()
def evaluate_segmenter(segmenter: FindingSegmenter, data: Phantoms) -> dict:
    """Dice of each finding at a probability of one half, one value per image, then averaged.

    Returns:
        {"findings": {name: {"dice", "clean", "count"}}, "dice", "clean"}. Higher is better. `dice`
        is over the images whose mask is not empty; `clean` is the share of the other images of the
        modality in which at most 0.1 % of the pixels are marked.
    """
    device = next(segmenter.parameters()).device
    segmenter.eval()
    dice, marked, shown = [], [], []  # each (B, F)
    for batch in _batches(data, device):
        preds, masks = segmenter(batch["image"]) > 0, batch["masks"] > 0
        areas = preds.sum(dim=(2, 3)) + masks.sum(dim=(2, 3))
        dice.append(2 * (preds & masks).sum(dim=(2, 3)) / areas.clamp(min=1))
        marked.append(preds.float().mean(dim=(2, 3)))
        shown.append(masks.any(dim=3).any(dim=2))
    dice, marked, shown = (torch.cat(parts).cpu() for parts in (dice, marked, shown))
    scores = {}
    for index, name in enumerate(data.findings):
        inside, outside = shown[:, index], data.asked(name) & ~shown[:, index]
        if data.asked(name).any():
            scores[name] = {
                "dice": _mean(dice[inside, index]),
                "clean": _mean(marked[outside, index] <= 1e-3),
                "count": int(inside.sum()),
            }
    return {"findings": scores} | _means(scores, ("dice", "clean"))


def _mean(values: Tensor) -> float | None:
    return float(values.float().mean()) if len(values) else None


def _means(scores: dict, names: Sequence[str]) -> dict:
    columns = {
        name: [row[name] for row in scores.values() if row[name] is not None] for name in names
    }
    return {name: float(np.mean(values)) if values else None for name, values in columns.items()}
