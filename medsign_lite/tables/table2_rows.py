"""Rows of Table 2 from scores of single images: over images, over seeds, and against MedSign.

What is measured of a decoder is kept image by image. From that every figure can be made, with its
interval, and two decoders can be compared on the same images: what makes one image harder than
another does not blur the comparison then.

A figure is {"value", "low", "high", "least", "most"}: its mean over seeds, the ends of the 95 %
interval over images, and the range over seeds.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from medsign_lite.attacks import PAPER_ATTACKS, Attack
from medsign_lite.detection import extract_logits, matching_bits
from medsign_lite.images import quantise
from medsign_lite.metrics import ROUNDING_PSNR, bootstrap_interval, psnr, region_psnr, ssim
from medsign_lite.tables.diagnostic_scores import FIGURES, diagnostic_rows, probabilities

COMPARED = ("psnr", "ssim", "psnr_gap", "bit_accuracy")


@torch.no_grad()
def image_scores(
    marked: Tensor,
    original: Tensor,
    masks: Tensor,
    *,
    extractor: nn.Module,
    message: Tensor,
    classifiers: Mapping[str, Callable[[Tensor], Tensor]],
    attacks: Mapping[str, Attack] = PAPER_ATTACKS,
    batch_size: int = 50,
) -> dict:
    """Every score of every image, as lists that a JSON file can keep.

    Args:
        marked, original: (N, 3, H, W) around [0, 1]; rounded to 8 bits here.
        masks: (N, H, W) bool, where the findings are in the original.
        extractor: (B, 3, h, w) to logits (B, K). message: (K,) in {0, 1}.
        classifiers: by name, (B, 3, H, W) in [0, 1] to probabilities (B, F).

    Returns:
        "psnr", "ssim", "psnr_inside", "psnr_outside" (None for an image without a finding);
        "attacks": {attack: bit accuracy}; "marked" and "original": {classifier: (N, F)}.
    """
    scores: dict[str, list] = {name: [] for name in ("psnr", "ssim", "psnr_inside", "psnr_outside")}
    read: dict[str, list] = {name: [] for name in attacks}
    marked, original = quantise(marked), quantise(original)
    for rows in torch.arange(len(marked)).split(batch_size):
        image, plain, mask = marked[rows], original[rows], masks[rows, None]
        scores["psnr"] += psnr(image, plain, data_range=1.0).tolist()
        scores["ssim"] += ssim(image, plain, data_range=1.0).tolist()
        shown = mask.any(dim=(1, 2, 3)) & ~mask.all(dim=(1, 2, 3))
        for name, region in (("psnr_inside", mask), ("psnr_outside", ~mask)):
            values = [None] * len(rows)
            if shown.any():
                some = region_psnr(image[shown], plain[shown], region[shown], data_range=1.0)
                for row, value in zip(shown.nonzero().flatten(), some.tolist(), strict=True):
                    values[int(row)] = value
            scores[name] += values
        for name, attack in attacks.items():
            bits = matching_bits(extract_logits(extractor, attack(image)), message)
            read[name] += (bits.double() / len(message)).tolist()
    answers = {
        kind: {name: probabilities(classify, images).tolist()
               for name, classify in classifiers.items()}
        for kind, images in (("marked", marked), ("original", original))
    }  # fmt: skip
    return scores | {"attacks": read} | answers


def per_image(scores: Mapping) -> dict[str, Tensor]:
    """(N,) values by name that are averaged over images; NaN where an image has none.

    Inside and outside of a finding PSNR counts as `ROUNDING_PSNR` at most.
    """
    values = {
        name: torch.tensor([float("nan") if x is None else float(x) for x in scores[name]])
        for name in ("psnr", "ssim", "psnr_inside", "psnr_outside")
    }
    for name in ("psnr_inside", "psnr_outside"):
        values[name] = values[name].clamp(max=ROUNDING_PSNR)
    values["psnr_gap"] = values["psnr_inside"] - values["psnr_outside"]
    attacks = {name: torch.tensor(x).double() for name, x in scores["attacks"].items()}
    values["bit_accuracy"] = torch.stack([*attacks.values()]).mean(dim=0)
    return values | {f"attack {name}": value for name, value in attacks.items()}


def change_per_image(scores: Mapping, classifier: str) -> Tensor:
    """(N,) |P_marked - P_original| x 100, the mean over findings."""
    marked, original = (
        torch.tensor(scores[kind][classifier]).double() for kind in ("marked", "original")
    )
    return 100 * (marked - original).abs().mean(dim=1)


def table2_row(
    seeds: Mapping[str, Mapping],
    *,
    findings: Sequence[str],
    labels: Tensor,
    generator: torch.Generator,
    resamples: int = 1000,
) -> dict:
    """A row of Table 2.

    Args:
        seeds: what `image_scores` returns, by seed, of the same images.
        findings: F names. labels: (N, F) in {0, 1}.

    Returns:
        images, seeds; figures "psnr", "ssim", "psnr_inside", "psnr_outside", "psnr_gap",
        "bit_accuracy" (the mean over attacks); "attacks": {attack: figure}; "classifiers":
        {classifier: {finding or "mean": {"change", "tail", ..., "shift": figure}}}.
    """
    options = {"generator": generator, "resamples": resamples}
    plain = {seed: per_image(scores) for seed, scores in seeds.items()}
    first = next(iter(plain.values()))
    figures = {
        name: over_seeds([_mean_figure(values[name], **options) for values in plain.values()])
        for name in first
    }
    row = {"images": len(first["psnr"]), "seeds": [*seeds]}
    row |= {name: value for name, value in figures.items() if not name.startswith("attack ")}
    row["attacks"] = {
        name.removeprefix("attack "): value
        for name, value in figures.items() if name.startswith("attack ")
    }  # fmt: skip
    row["classifiers"] = {}
    for classifier in next(iter(seeds.values()))["marked"]:
        tables = [
            diagnostic_rows(
                torch.tensor(scores["marked"][classifier]),
                torch.tensor(scores["original"][classifier]),
                findings=findings, labels=labels, **options,
            )
            for scores in seeds.values()
        ]  # fmt: skip
        row["classifiers"][classifier] = {
            some[0]["finding"]: {
                name: over_seeds([
                    {"value": r[name], "low": r.get(f"{name}_low"), "high": r.get(f"{name}_high")}
                    for r in some
                ])
                for name in (*FIGURES, "shift")
            }
            for some in zip(*tables, strict=True)
        }  # fmt: skip
    return row


def _mean_figure(values: Tensor, *, generator: torch.Generator, resamples: int) -> dict:
    values = values[~values.isnan()]
    if not len(values):
        return {"value": None, "low": None, "high": None}
    low, high = bootstrap_interval(values, resamples=resamples, generator=generator)
    return {"value": float(values.double().mean()), "low": low, "high": high}


def over_seeds(figures: Sequence[Mapping]) -> dict:
    """One figure of several seeds: the mean of each part, and the range of the values.

    The ends are averaged, not narrowed: all seeds are measured on the same images, so what the
    choice of images does to the figure does not average out.
    """
    values = [figure["value"] for figure in figures]
    if None in values:
        return dict.fromkeys(("value", "low", "high", "least", "most"))
    merged = {"least": min(values), "most": max(values)}
    for name in ("value", "low", "high"):
        parts = [figure[name] for figure in figures]
        merged[name] = None if None in parts else sum(parts) / len(parts)
    return merged


def against(
    seeds: Mapping[str, Mapping],
    reference: Mapping[str, Mapping],
    *,
    generator: torch.Generator,
    resamples: int = 1000,
) -> dict:
    """How far a row is from another one, image by image and seed by seed.

    Args:
        seeds, reference: scores by seed; where they share seeds those are paired, otherwise each
            seed is compared with the reference's mean.

    Returns:
        figures of the difference, row minus reference: "psnr", "ssim", "psnr_gap",
        "bit_accuracy", and "change": {classifier: figure}. The interval is a bootstrap over
        images of the mean over seeds; "least" and "most" are the range over seeds.

    Raises:
        ValueError: if the two are of other numbers of images.
    """
    shared = [seed for seed in seeds if seed in reference]
    options = {"generator": generator, "resamples": resamples}

    def compare(values: Callable[[Mapping], Tensor]) -> dict:
        own = {seed: values(scores) for seed, scores in seeds.items()}
        other = {seed: values(scores) for seed, scores in reference.items()}
        mean = torch.stack([*other.values()]).mean(dim=0)
        if len(counts := {len(some) for some in (*own.values(), mean)}) > 1:
            raise ValueError(f"expected the same images in both rows, got {sorted(counts)} of them")
        apart = [own[s] - other[s] for s in shared] or [some - mean for some in own.values()]
        figure = _mean_figure(torch.stack(apart).mean(dim=0), **options)
        each = [float(some[~some.isnan()].double().mean()) for some in apart]
        return figure | {"least": min(each), "most": max(each)}

    found = {name: compare(lambda scores, name=name: per_image(scores)[name]) for name in COMPARED}
    found["change"] = {
        name: compare(lambda scores, name=name: change_per_image(scores, name))
        for name in next(iter(seeds.values()))["marked"]
    }
    return found
