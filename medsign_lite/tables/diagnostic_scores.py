"""What a watermark does to a classifier's answers, beyond the mean change of the paper's Table 2.

A mean of |P_marked - P_original| can hide what matters to a patient: the few images whose answer
changes altogether, or findings that can no longer be told apart. Every figure has a bootstrap
interval over images. The marked and the original image stay together in every resample, so the
interval is that of their difference and not of how images differ among each other.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from medsign_lite.images import check_image, quantise
from medsign_lite.metrics import interval_of
from medsign_lite.rows import Batches, in_step, share_row

DECISION = 0.5  # a probability above it reads as "the finding is there"
TAIL = 0.95
FIGURES = ("change", "tail", "largest", "flipped", "auc_change", "log_odds")
SURE = 1e-6  # probabilities nearer to 0 or 1 than this count as this: beyond lies rounding


def require_findings(classifiers: Mapping[str, object], findings: Sequence[str]) -> None:
    """Ask every classifier for every finding, on one grey image, before any work is done.

    Args:
        classifiers: by name, each with `probability(image, findings)`.

    Raises:
        ValueError: naming the classifier, and the finding that it was not trained for.
    """
    image = torch.full((1, 3, 128, 128), 0.5)
    for name, classifier in classifiers.items():
        device = next((p.device for p in getattr(classifier, "parameters", list)()), "cpu")
        for finding in findings:
            try:
                answer = classifier.probability(image.to(device), [finding])
            except ValueError as error:
                raise ValueError(f"classifier {name!r} has no {finding}: {error}") from error
            if answer.shape != (1, 1):
                raise ValueError(
                    f"classifier {name!r}, {finding}: expected a probability (1, 1), got "
                    f"{tuple(answer.shape)}"
                )


@torch.no_grad()
def probabilities(
    classify: Callable[[Tensor], Tensor], images: Batches, *, batch_size: int = 64
) -> Tensor:
    """Probabilities (N, F) on the CPU of images (N, 3, H, W) around [0, 1], rounded to 8 bits.

    Args:
        classify: (B, 3, H, W) in [0, 1] to (B, F), for example
            `lambda image: judge.probability(image, findings)`.

    Raises:
        ValueError: if an answer is not a probability, or there is no image.
    """
    parts = []
    for (image,) in in_step(images, batch_size=batch_size):
        check_image(image, name="images", in_range=False)
        part = classify(quantise(image)).cpu().double()
        if part.ndim != 2 or len(part) != len(image):
            raise ValueError(f"expected ({len(image)}, F) probabilities, got {tuple(part.shape)}")
        if not ((part >= 0) & (part <= 1)).all():
            raise ValueError(
                f"expected probabilities in [0, 1], got {float(part.min()):g} to "
                f"{float(part.max()):g}: logits, perhaps?"
            )
        parts.append(part)
    if not parts:
        raise ValueError("expected at least one image to classify, got none")
    return torch.cat(parts)


def diagnostic_rows(
    marked: Tensor,
    original: Tensor,
    *,
    findings: Sequence[str],
    labels: Tensor | None = None,
    generator: torch.Generator,
    resamples: int = 1000,
) -> list[dict]:
    """All scores of one classifier, a row per finding and, last, "mean".

    Args:
        marked, original: (N, F) probabilities of the same images with and without watermark.
        findings: F names.
        labels: (N, F) in {0, 1}, what the prompts name or the phantoms show; None leaves out AUC.
        generator: CPU, for the intervals.
        resamples: of the bootstrap over images.

    Returns:
        One dict per finding: finding, images, and with its interval each of
        change: mean |P_marked - P_original| x 100, the paper's figure;
        tail: its 95th percentile over images; largest: its maximum, whose interval can reach
        below it only, because no resample holds a larger one;
        flipped: share of images whose answer at one half is another (its interval is the exact
        one, which does not collapse where no answer flips);
        log_odds: mean |change of log(P / (1 - P))|, which also moves where the classifier is so
        sure that its probability hardly can;
        auc_change: AUC marked minus AUC original (below 0: findings are told apart less well).
        And without interval shift, the signed mean x 100, auc and auc_marked; the AUC's figures
        are None where a finding is in no image or in all.
        "mean": the mean of the findings' figures, and of `largest` the largest; the interval of
        `flipped` is that of as many answers as there are images, since those about one image are
        not independent of each other.

    Raises:
        ValueError: if shapes do not match, or labels are not 0 or 1.
    """
    if marked.shape != original.shape or marked.shape[1:] != (len(findings),) or not len(marked):
        raise ValueError(
            f"expected probabilities (N, {len(findings)}) twice, got {tuple(marked.shape)} and "
            f"{tuple(original.shape)}"
        )
    if labels is not None and (
        labels.shape != marked.shape or not ((labels == 0) | (labels == 1)).all()
    ):
        raise ValueError(
            f"expected labels {tuple(marked.shape)} of 0 and 1, got {tuple(labels.shape)} of "
            f"{sorted(set(labels.flatten().tolist()))[:5]}"
        )
    marked, original = marked.double(), original.double()
    drawn = torch.randint(len(marked), (resamples, len(marked)), generator=generator)
    rows, means = [], {name: [] for name in FIGURES}
    for column, finding in enumerate(findings):
        pair = marked[:, column], original[:, column]
        target = None if labels is None else labels[:, column] > 0
        values, resampled, extra = _scores(*pair, target, drawn)
        rows.append({"finding": finding, "images": len(marked)} | extra)
        for name in FIGURES:
            rows[-1] |= _figure(name, values.get(name), resampled.get(name))
            if name == "flipped":
                rows[-1] |= share_row(name, (pair[0] > DECISION) != (pair[1] > DECISION))
            if name in values:
                means[name].append((values[name], resampled[name]))
    flips = (marked > DECISION) != (original > DECISION)
    of_all = share_row("flipped", flips.flatten(), images=len(marked))
    return [*rows, _mean_of(rows, means, len(marked)) | of_all]


def _scores(marked: Tensor, original: Tensor, target: Tensor | None, drawn: Tensor):
    """Values by name, their resamples (R,) by name, and what has no interval."""
    size = 100 * (marked - original).abs()
    flipped = ((marked > DECISION) != (original > DECISION)).double()
    odds = (marked.logit(SURE) - original.logit(SURE)).abs()
    every = torch.arange(len(size))[None]  # the sample itself is one more "resample"
    values, resampled = {}, {}
    for rows, into in ((every, values), (drawn, resampled)):
        chosen = size[rows]
        into["change"], into["largest"] = chosen.mean(dim=1), chosen.amax(dim=1)
        into["tail"] = chosen.quantile(TAIL, dim=1)
        into["flipped"], into["log_odds"] = flipped[rows].mean(dim=1), odds[rows].mean(dim=1)
    extra = {"shift": float(100 * (marked - original).mean())}
    if target is not None:
        extra |= {"auc": None, "auc_marked": None}
        if target.any() and not target.all():
            both = [resampled_auc(scores, target, every) for scores in (marked, original)]
            extra |= {"auc": float(both[1]), "auc_marked": float(both[0])}
            values["auc_change"] = both[0] - both[1]
            changes = resampled_auc(marked, target, drawn) - resampled_auc(original, target, drawn)
            resampled["auc_change"] = changes
    return {name: float(value) for name, value in values.items()}, resampled, extra


def resampled_auc(scores: Tensor, target: Tensor, rows: Tensor) -> Tensor:
    """The area under the ROC curve of resamples; equal scores count one half.

    Args:
        scores: (N,). target: (N,) bool. rows: (R, N) indices, a resample each.

    Returns:
        (R,); NaN for a resample that holds one class only.
    """
    _, rank = scores.unique(return_inverse=True)  # equal scores share a rank
    count = int(rank.max()) + 1
    above = torch.zeros(2, len(rows), count, dtype=torch.double)
    for kind, wanted in enumerate((~target, target)):
        above[kind].scatter_add_(1, rank[rows], wanted[rows].double())
    negative, positive = above  # (R, ranks): how many of each
    below = negative.cumsum(dim=1) - negative
    wins = (positive * (below + negative / 2)).sum(dim=1)
    return wins / (positive.sum(dim=1) * negative.sum(dim=1))


def _figure(name: str, value: float | None, resampled: Tensor | None) -> dict:
    low = high = None
    if value is not None:
        low, high = interval_of(resampled[~resampled.isnan()])
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _mean_of(rows: Sequence[Mapping], means: Mapping[str, list], images: int) -> dict:
    row = {"finding": "mean", "images": images}
    row["shift"] = sum(r["shift"] for r in rows) / len(rows)
    for name in ("auc", "auc_marked"):
        known = [r[name] for r in rows if r.get(name) is not None]
        if known:
            row[name] = sum(known) / len(known)
    for name, pairs in means.items():
        if not pairs:
            row |= _figure(name, None, None)
            continue
        values = torch.tensor([value for value, _ in pairs])
        resampled = torch.stack([some for _, some in pairs])  # (F, R)
        if name == "largest":
            row |= _figure(name, float(values.max()), resampled.amax(dim=0))
        else:
            row |= _figure(name, float(values.mean()), resampled.nanmean(dim=0))
    return row
