"""Scores of localisation maps against masks, beside controls, in rows with intervals.

A map may look right and still say no more than "findings of this kind lie here". So every score
stands beside that of control maps which the caller supplies: a shuffled token, the anatomical
prior (the mean mask of the training set).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medsign_lite.metrics import (
    best_iou,
    contrast_to_noise,
    interval_of,
    iou_at,
    pointing_game,
    roc_auc,
    side_attention,
)
from medsign_lite.rows import Batches, in_step, mean_row, share_row

# A side is the patient's: a radiograph shows the patient's right in its left half.
HALF_OF_SIDE = {"right": "left", "left": "right", "superior": "upper", "inferior": "lower"}
OWN = "attention"
_SCORES = ("cnr", "auc", "iou_best", "iou", "pointing")


def localisation_rows(
    maps: Batches,
    masks: Batches,
    findings: Sequence[str],
    *,
    sides: Sequence[str] | None = None,
    images: Sequence[str] | None = None,
    controls: Mapping[str, Batches] | None = None,
    threshold: float = 0.5,
    generator: torch.Generator,
    resamples: int = 1000,
    batch_size: int = 64,
) -> list[dict]:
    """Score maps per finding and averaged over findings.

    Args:
        maps: (N, H, W) in [0, 1], one per image and finding.
        masks: (N, H, W) bool, neither empty nor full, of the maps' size.
        findings: N names, the finding that each map and mask is of.
        sides: N of "right", "left", "superior", "inferior" (the patient's), or anything else
            where no half of the image is expected, such as "bilateral" and "".
        images: N names, the image that each map is of, where several are of one: its findings were
            seen together, and are drawn together for the intervals. Default: each of its own.
        controls: maps of the same layout to hold against, by name.
        threshold: of the fixed IoU.
        generator, resamples, batch_size: of the intervals and of tensors, as in `evaluation`.

    Returns:
        For "attention" and every control: one dict per finding and, last, their "mean", in which
        each finding weighs the same. Keys: map, finding, images, cnr (signed), auc, iou_best,
        iou (at the threshold), pointing, each with its interval; side_correct with its interval
        and sided, the number of maps it is of, where there are any ("mean" pools them); and for
        controls cnr_margin, attention's CNR minus the control's, paired by image.

    Raises:
        ValueError: for other numbers of findings, sides or images than maps.
    """
    scores = _score_all(
        {OWN: maps} | dict(controls or {}), masks, len(findings), sides, threshold, batch_size
    )
    options = {"resamples": resamples, "generator": generator}
    names = range(len(findings)) if images is None else images
    if len(names) != len(findings):
        raise ValueError(f"expected one image per finding, {len(findings)}, got {len(names)}")
    numbers = {image: number for number, image in enumerate(dict.fromkeys(names))}
    of_image = torch.tensor([numbers[image] for image in names])  # (N,)
    rows = []
    for name, own in scores.items():
        if name != OWN:
            own["cnr_margin"] = scores[OWN]["cnr"] - own["cnr"]
        groups = {
            finding: torch.tensor([other == finding for other in findings])
            for finding in dict.fromkeys(findings)
        }
        for finding, chosen in groups.items():
            row = {"map": name, "finding": finding, "images": int(chosen.sum())}
            for score, values in own.items():
                if score == "side_correct":
                    row |= _side_row(values[chosen], of_image[chosen])
                else:
                    row |= mean_row(score, values[chosen], **options)
            rows.append(row)
        rows.append(_macro_row(name, own, groups, of_image, resamples, generator))
    return rows


def _score_all(
    sources: dict[str, Batches],
    masks: Batches,
    count: int,
    sides: Sequence[str] | None,
    threshold: float,
    batch_size: int,
) -> dict[str, dict[str, Tensor]]:
    """Per-image scores (N,) by map and score; side_correct is NaN where no side is expected."""
    if sides is not None and len(sides) != count:
        raise ValueError(f"expected one side per finding, {count}, got {len(sides)}")
    parts: dict[str, dict[str, list[Tensor]]] = {name: {} for name in sources}
    done = 0
    for mask, *batch in in_step(masks, *sources.values(), batch_size=batch_size):
        for name, map in zip(sources, batch, strict=True):
            values = (
                contrast_to_noise(map, mask), roc_auc(map, mask), best_iou(map, mask),
                iou_at(map, mask, threshold), pointing_game(map, mask),
            )  # fmt: skip
            for score, value in zip(_SCORES, values, strict=True):
                parts[name].setdefault(score, []).append(value.cpu())
            if sides is not None:
                correct = _side_correct(map.cpu(), sides[done : done + len(map)])
                parts[name].setdefault("side_correct", []).append(correct)
        done += len(mask)
    if done != count or done == 0:
        raise ValueError(f"expected one finding per map, at least one; got {count} and {done} maps")
    return {
        name: {score: torch.cat(values) for score, values in own.items()}
        for name, own in parts.items()
    }


def _side_correct(map: Tensor, sides: Sequence[str]) -> Tensor:
    """1 where more than half of the map's mass lies on the side, 0 where not, NaN without side."""
    correct = torch.full((len(map),), torch.nan)
    for index, side in enumerate(sides):
        if side in HALF_OF_SIDE:
            share = side_attention(map[index : index + 1], HALF_OF_SIDE[side])
            correct[index] = (share > 0.5).float().item()
    return correct


def _side_row(correct: Tensor, of_image: Tensor) -> dict:
    is_sided = ~correct.isnan()
    if not is_sided.any():
        return {}
    images = len(of_image[is_sided].unique())
    row = share_row("side_correct", correct[is_sided] > 0.5, images=images)
    return row | {"sided": int(is_sided.sum())}


def _macro_row(
    name: str,
    scores: dict[str, Tensor],
    groups: dict[str, Tensor],
    of_image: Tensor,
    resamples: int,
    generator: torch.Generator,
) -> dict:
    """The mean over findings, each of the same weight; images are drawn with all their maps."""
    row: dict = {"map": name, "finding": "mean", "images": len(scores["cnr"])}
    count = int(of_image.max()) + 1
    drawn = torch.randint(count, (resamples, count), generator=generator)
    times = torch.zeros(resamples, count, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    weights = times[:, of_image]  # (resamples, N): how often each map was drawn
    for score, values in scores.items():
        if score == "side_correct":
            row |= _side_row(values, of_image)  # of all sided images
            continue
        means = []
        for chosen in groups.values():
            own = weights[:, chosen]
            means.append((own @ values[chosen].double()) / own.sum(dim=1))
        # A rare finding may be in no image that was drawn: then the others make the mean.
        low, high = interval_of(torch.stack(means).nanmean(dim=0))
        whole = torch.stack([values[chosen].double().mean() for chosen in groups.values()]).mean()
        row |= {score: float(whole), f"{score}_low": low, f"{score}_high": high}
    return row
