"""Evaluation: what the watermark survives, and what it costs.

Every function returns rows (see `rows.py`) with 95 % intervals; `table` shows them. Images come as
one tensor or as any iterable of batches, a generator for example, and are read once, batch by
batch: thousands need not fit into memory. They are clamped and rounded to 8 bits before they are
scored, as a saved PNG would be. Localisation is scored in `localisation_scores.py`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from medsign_lite.attacks import PAPER_ATTACKS, Attack
from medsign_lite.detection import check_rate, extract_logits, matching_bits, soft_p_values
from medsign_lite.images import check_image, quantise
from medsign_lite.localisation_scores import localisation_rows
from medsign_lite.metrics import ROUNDING_PSNR, psnr, region_psnr, ssim, worst_window
from medsign_lite.rows import Batches, in_step, mean_row, share_row, table

__all__ = ["diagnostic_change", "evaluate_attacks", "localisation_rows", "quality_row", "table"]


def evaluate_attacks(
    images: Batches,
    reference: Batches | None,
    extractor: Callable[[Tensor], Tensor],
    message: Tensor,
    *,
    attacks: Mapping[str, Attack] = PAPER_ATTACKS,
    false_positive_rate: float = 1e-6,
    generator: torch.Generator,
    resamples: int = 1000,
    batch_size: int = 64,
) -> list[dict]:
    """How well the message is read after each attack.

    Args:
        images: (N, 3, H, W) around [0, 1], watermarked.
        reference: the same images without watermark, attacked and read alike, as a control: their
            bit accuracy should be near 0.5. None to leave that out.
        extractor: (B, 3, h, w) in [0, 1] to logits (B, K).
        message: (K,) or (N, K) bits in {0, 1}.
        attacks: by name.
        false_positive_rate: at which images are detected, for the true-positive rate.
        generator: CPU, for the intervals.
        resamples: of the bootstrap.
        batch_size: for tensors; iterables bring their own.

    Returns:
        One dict per attack and, last, one for their "mean": attack, images, bit_accuracy,
        true_positive_rate, log10_p (mean over images; lower is better), each with its interval,
        and with a reference unmarked_bit_accuracy and false_positives (a count). In "mean" the
        rates are those of all attacked images together, with a bootstrap over images, or the exact
        interval over images where every one or none is found.
    """
    check_rate(false_positive_rate, message.shape[-1])
    sources = (images,) if reference is None else (images, reference)
    # Of every attack, of images and reference: batches of matching bits and p-values, (B, 2).
    read: dict[str, list[list[Tensor]]] = {name: [[], []] for name in attacks}
    done = 0
    for batches in in_step(*sources, batch_size=batch_size):
        sent = message if message.ndim == 1 else message[done : done + len(batches[0])]
        done += len(batches[0])
        for batch, kind in zip(batches, (0, 1), strict=False):
            check_image(batch, name=("images", "reference")[kind], in_range=False)
            batch = quantise(batch)
            for name, attack in attacks.items():
                logits = extract_logits(extractor, attack(batch))
                shares = matching_bits(logits, sent.cpu()).double() / message.shape[-1]
                chances = soft_p_values(logits, sent.cpu())
                read[name][kind].append(torch.stack([shares, chances], dim=1))
    _require_images(done)
    options = {"resamples": resamples, "generator": generator}
    rows = []
    for name, several in {**{name: (name,) for name in attacks}, "mean": tuple(attacks)}.items():
        marked, unmarked = (
            torch.stack([torch.cat(read[one][kind]) for one in several], dim=1)  # (N, attacks, 2)
            if reference is not None or kind == 0
            else None
            for kind in (0, 1)
        )
        row = {"attack": name, "images": done}
        row |= _marked_row(marked, false_positive_rate, **options)
        if unmarked is not None:
            row |= _unmarked_row(unmarked, false_positive_rate, **options)
        rows.append(row)
    return rows


def _marked_row(values: Tensor, rate: float, **options) -> dict:
    """values: (N, attacks, 2), shares of matching bits and p-values."""
    shares, chances = values.unbind(dim=-1)
    hits = chances <= rate
    if hits.shape[1] == 1 or hits.all() or not hits.any():
        # Of equal shares a bootstrap would know no doubt.
        found = share_row("true_positive_rate", hits.all(dim=1))
    else:  # an image's attacked versions are not independent: resample images
        found = mean_row("true_positive_rate", hits.double().mean(dim=1), **options)
    return (
        mean_row("bit_accuracy", shares.mean(dim=1), **options)
        | found
        | mean_row("log10_p", chances.log10().mean(dim=1), **options)
    )


def _unmarked_row(values: Tensor, rate: float, **options) -> dict:
    shares, chances = values.unbind(dim=-1)
    row = mean_row("unmarked_bit_accuracy", shares.mean(dim=1), **options)
    return row | {"false_positives": int((chances <= rate).sum())}


def quality_row(
    images: Batches,
    reference: Batches,
    *,
    masks: Batches | None = None,
    generator: torch.Generator,
    resamples: int = 1000,
    batch_size: int = 64,
) -> dict:
    """How much the watermark changes the images.

    Args:
        images: (N, 3, H, W) around [0, 1], watermarked.
        reference: (N, 3, H, W), what the original decoder gives for the same latents.
        masks: (N, 1, H, W) or (N, H, W) bool, the findings; images whose mask is empty or full
            count for PSNR and SSIM but not inside and outside.
        generator, resamples, batch_size: as in `evaluate_attacks`.

    Returns:
        images, psnr, ssim, worst_window (see `metrics`), and with masks: masked (how many images),
        psnr_inside, psnr_outside (each `ROUNDING_PSNR` at most), psnr_gap (inside minus outside,
        per image), each with its interval, and psnr_gap_pooled (from the squared errors averaged
        over images, to which a finding left untouched adds next to nothing).
    """
    scores: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "worst_window": []}
    regions: dict[str, list[Tensor]] = {"psnr_inside": [], "psnr_outside": []}
    sources = (images, reference) if masks is None else (images, reference, masks)
    for image, original, *mask in in_step(*sources, batch_size=batch_size):
        check_image(image, name="images", in_range=False)
        image, original = quantise(image), quantise(original)
        scores["psnr"].append(psnr(image, original, data_range=1.0))
        scores["ssim"].append(ssim(image, original, data_range=1.0))
        scores["worst_window"].append(worst_window(image, original))
        if mask:
            inside = mask[0] if mask[0].ndim == 4 else mask[0][:, None]
            share = inside.double().mean(dim=(1, 2, 3))
            use = (share > 0) & (share < 1)
            if use.any():
                for name, region in (("psnr_inside", inside), ("psnr_outside", ~inside)):
                    regions[name].append(
                        region_psnr(image[use], original[use], region[use], data_range=1.0)
                    )
    options = {"resamples": resamples, "generator": generator}
    values = {name: torch.cat(parts).cpu() for name, parts in scores.items() if parts}
    _require_images(len(values.get("psnr", ())))
    row = {"images": len(values["psnr"])}
    if masks is not None:
        row["masked"] = sum(len(part) for part in regions["psnr_inside"])
        if row["masked"]:
            values |= {name: torch.cat(parts).cpu().clamp(max=ROUNDING_PSNR)
                       for name, parts in regions.items()}  # fmt: skip
            values["psnr_gap"] = values["psnr_inside"] - values["psnr_outside"]
            errors = [(10 ** (-values[name].double() / 10)).mean() for name in regions]
            row["psnr_gap_pooled"] = float(10 * torch.log10(errors[1] / errors[0]))
    for name, value in values.items():
        row |= mean_row(name, value, **options)
    return row


@torch.no_grad()
def diagnostic_change(
    classifier: Callable[[Tensor], Tensor],
    images: Batches,
    reference: Batches,
    *,
    findings: Sequence[str],
    generator: torch.Generator,
    resamples: int = 1000,
    batch_size: int = 64,
) -> list[dict]:
    """How much a classifier's probabilities change, |P_marked - P_original| x 100 (Table 2).

    Args:
        classifier: (B, 3, H, W) in [0, 1] to probabilities (B, F) in [0, 1], in evaluation mode,
            for example `lambda image: judge.probability(image, findings)`.
        images: (N, 3, H, W) around [0, 1], watermarked.
        reference: (N, 3, H, W), the same without watermark.
        findings: F names.
        generator, resamples, batch_size: as in `evaluate_attacks`.

    Returns:
        One dict per finding and, last, one for their "mean": finding, images, change with its
        interval, and shift, the signed mean x 100: a change without shift is noise, one with a
        shift makes findings appear or disappear.
    """
    changes = []
    for image, original in in_step(images, reference, batch_size=batch_size):
        check_image(image, name="images", in_range=False)
        marked, unmarked = (classifier(quantise(x)).cpu().double() for x in (image, original))
        for probability in (marked, unmarked):
            if probability.shape != (len(image), len(findings)):
                raise ValueError(
                    f"expected probabilities ({len(image)}, {len(findings)}) for "
                    f"{', '.join(findings)}, got {tuple(probability.shape)}"
                )
            if not ((probability >= 0) & (probability <= 1)).all():
                raise ValueError("expected probabilities in [0, 1], got others: logits, perhaps?")
        changes.append(marked - unmarked)
    _require_images(len(changes))
    change = torch.cat(changes) * 100  # (N, F)
    rows = []
    for name, signed in [*zip(findings, change.T, strict=True), ("mean", change)]:
        size = signed.abs() if signed.ndim == 1 else signed.abs().mean(dim=1)
        row = mean_row("change", size, resamples=resamples, generator=generator)
        rows.append(
            {"finding": name, "images": len(change)} | row | {"shift": float(signed.mean())}
        )
    return rows


def _require_images(count: int) -> None:
    if count == 0:
        raise ValueError("expected at least one image to evaluate, got none")
