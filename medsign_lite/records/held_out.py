"""What the shipped model does on phantoms and prompts that it was not trained on.

Generated images to measure on, and three measurements, each on records of a manifest with exact
masks: how well the autoencoder reconstructs, whether the generator draws what the report names
(asked of an independent classifier), and whether the attention lies on the finding (against exact
masks, beside controls).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from medsign_lite.data import CHEST_FINDINGS, FINDINGS, Record, load_mask
from medsign_lite.images import load_image, quantise, resize
from medsign_lite.judges.judge_networks import HALVES, FindingClassifier
from medsign_lite.latent_diffusion import decode, encode, image_size
from medsign_lite.localisation import attention_on_latents, scale_attention, word_tokens
from medsign_lite.localisation_scores import localisation_rows
from medsign_lite.metrics import psnr
from medsign_lite.rows import mean_row, share_row
from medsign_lite.selection import select_token

TIMESTEPS = (200, 400, 600, 800)  # of 1000: the layout is still open, some detail is there
RECORDED = 500  # test images of a modality that the gates' recorded figures may use


def readable(tokenizer, records: Sequence[Record]) -> list[Record]:
    """The records whose whole report the text encoder reads."""
    limit = tokenizer.model_max_length
    return [r for r in records if len(tokenizer(r.report, verbose=False).input_ids) <= limit]


def read_images(records: Sequence[Record], size: tuple[int, int]) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] of `size` (H, W)."""
    return torch.cat([resize(load_image(r.image)[None], size) for r in records])


def reconstruction_row(
    pipeline, records: Sequence[Record], *, generator: torch.Generator, resamples: int = 1000
) -> dict:
    """{"images", "psnr" with interval} of decode(encode(image)), rounded to 8 bits."""
    values = []
    for start in range(0, len(records), 50):
        images = read_images(records[start : start + 50], image_size(pipeline))
        latents = encode(pipeline.vae, images)
        again = quantise(decode(pipeline.vae, latents)).cpu()
        values.append(psnr(again, images, data_range=1.0))
    row = mean_row("psnr", torch.cat(values), resamples=resamples, generator=generator)
    return {"images": len(records), **row}


@torch.no_grad()
def generation_row(
    classifier: FindingClassifier, images: Tensor, records: Sequence[Record]
) -> dict:
    """Is each finding that a report names found in its generated image, and on the named side?

    Args:
        images: (N, 3, H, W) in [0, 1], generated from the reports of `records`, of one modality.

    Returns:
        found: share of the named findings that the classifier finds; found_by_chance: of those
        that are not named. side: share of the named sides, of findings found, that are the side
        shown; side_by_chance: the same against the sides that another report names for the same
        finding. Shares come with their interval, of as many trials as there are images, since the
        findings of one image are drawn together; images, named and sided are counts.

    Raises:
        ValueError: if no report names a finding.
    """
    names = FINDINGS["chest" if records[0].modality == "chest" else "fundus"]
    probability = torch.cat([classifier.probability(p, names).cpu() for p in images.split(50)])
    shown = {name: sum((classifier.sides(p, name) for p in images.split(50)), []) for name in names}
    named = torch.tensor([[name in r.findings for name in names] for r in records])
    if not named.any():
        raise ValueError(f"none of the {len(records)} reports names one of {', '.join(names)}")
    hits, sides, swapped, sided_images = [], [], [], set()
    for column, name in enumerate(names):
        halves = (*HALVES["chest" if name in CHEST_FINDINGS else "fundus"], "bilateral")
        said = [(row, r.sides[r.findings.index(name)]) for row, r in enumerate(records)
                if name in r.findings]  # fmt: skip
        found = [bool(probability[row, column] > 0.5) for row, _ in said]
        hits += found
        sided = [(row, side) for (row, side), hit in zip(said, found, strict=True)
                 if hit and side in halves]  # fmt: skip
        sides += [shown[name][row] == side for row, side in sided]
        sided_images |= {row for row, _ in sided}
        others = sided[1:] + sided[:1]
        pairs = zip(sided, others, strict=True)
        swapped += [shown[name][row] == other for (row, _), (_, other) in pairs]
    row = {"images": len(records), "named": len(hits), "sided": len(sides)}
    row |= share_row("found", torch.tensor(hits), images=int(named.any(dim=1).sum()))
    row["found_by_chance"] = float((probability > 0.5)[~named].double().mean())
    if sides:
        row |= share_row("side", torch.tensor(sides), images=len(sided_images))
        row["side_by_chance"] = sum(swapped) / len(swapped)
    return row


def mean_masks(records: Sequence[Record], size: tuple[int, int]) -> dict[str, Tensor]:
    """The anatomical prior: per finding the mean (H, W) of its masks in a training set."""
    seen: dict[str, list[Tensor]] = {}
    for record in records:
        for finding, path in zip(record.findings, record.masks, strict=True):
            if path is not None:
                seen.setdefault(finding, []).append(_mask(path, size).float())
    return {finding: torch.stack(masks).mean(dim=0) for finding, masks in seen.items()}


def localisation_on_phantoms(
    pipeline,
    records: Sequence[Record],
    priors: Mapping[str, Tensor],
    *,
    cas: Mapping | None = None,
    timesteps: Sequence[int] = TIMESTEPS,
    generator: torch.Generator,
    resamples: int = 1000,
) -> list[dict]:
    """Rows of `localisation_rows` for encoded and noised phantoms, with their report as prompt.

    Controls: "shuffled token", another token of the same report drawn at random, and "anatomical
    prior", the mean mask of the finding in the training set.

    Args:
        records: with masks; findings whose mask is empty, full or absent are left out.
        priors: from `mean_masks`.
        cas: keyword arguments of `select_token`.
    """
    size = image_size(pipeline)
    maps, shuffled, prior, masks, findings, sides, images = [], [], [], [], [], [], []

    def full(map: Tensor) -> Tensor:
        return scale_attention(F.interpolate(map[None, None], size, mode="bilinear")[0, 0])

    for start in range(0, len(records), 16):
        some = records[start : start + 16]
        latents = encode(pipeline.vae, read_images(some, size))
        reports = [r.report for r in some]
        attention = attention_on_latents(
            pipeline, latents, reports, timesteps=timesteps, generator=generator
        ).cpu()  # (B, tokens, h, w)
        for seen, r in zip(attention, some, strict=True):
            length = len(pipeline.tokenizer(r.report).input_ids)
            for finding, word, side, path in zip(
                r.findings, r.words, r.sides, r.masks, strict=True
            ):
                mask = None if path is None or not word else _mask(path, size)
                if mask is None or not 0 < mask.double().mean() < 1 or finding not in priors:
                    continue
                own = word_tokens(pipeline.tokenizer, r.report, word)
                others = [t for t in range(1, length - 1) if t not in own] or [0]
                other = others[int(torch.randint(len(others), (), generator=generator))]
                maps.append(full(select_token(seen[own], own, **(cas or {})).map))
                shuffled.append(full(seen[other]))
                prior.append(priors[finding])
                masks.append(mask)
                findings.append(finding)
                sides.append(side)
                images.append(r.id)
    if not maps:
        raise ValueError("no record has a finding with a word and a mask: nothing to localise")
    return localisation_rows(
        torch.stack(maps),
        torch.stack(masks),
        findings,
        sides=sides,
        images=images,
        controls={"shuffled token": torch.stack(shuffled), "anatomical prior": torch.stack(prior)},
        generator=generator,
        resamples=resamples,
    )


def _mask(path, size: tuple[int, int]) -> Tensor:
    mask = load_mask(path)
    if mask.shape != size:
        mask = F.interpolate(mask[None, None], size, mode="nearest")[0, 0]
    return mask > 0.5
