"""Self-supervised training of the small backbone, on images alone: no reports, no labels.

    python -m medsign_lite.baselines.backbone_training --data MANIFEST --out FOLDER --steps 3000
    python -m medsign_lite.baselines.backbone_training --data MANIFEST --out FOLDER --resnet50 FILE

The first trains with VICReg; killed, it goes on where it was when the same command is run again.
The second trains nothing: it whitens a ResNet-50 that somebody else trained, on these images.
"""

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.baselines.backbone import (
    Backbone,
    SmallBackbone,
    SmallBackboneConfig,
    WhitenedBackbone,
    load_resnet50,
    save_backbone,
    whiten_backbone,
)
from medsign_lite.baselines.vicreg import WEIGHTS, effective_rank, projector, vicreg_step
from medsign_lite.curriculum import learning_rate_factor
from medsign_lite.image_stack import read_image_stack, stack_digest
from medsign_lite.images import check_image, quantise
from medsign_lite.training.averaging import update_average
from medsign_lite.training.budgets import Budget, log_row
from medsign_lite.training.processes import Processes
from medsign_lite.training.processor import training_layout, tune_processor
from medsign_lite.training.training_state import (
    load_training_state,
    plain_settings,
    save_training_state,
)

COLLAPSED = 0.05  # of `spread`


class Collapse(RuntimeError):
    """All images have the same embedding."""


@torch.no_grad()
def evaluate_backbone(backbone: WhitenedBackbone, images: Tensor, *, batch: int = 64) -> dict:
    """What a whitened backbone is good for, without labels.

    Args:
        images: (N, 3, H, W) uint8 that it was not trained on.

    Returns:
        dimensions; effective_rank of its features before whitening; and for each attack of the
        paper the share of images whose attacked features are nearest, by cosine, to its own.
    """
    parts = [part.to(backbone.mean.device).float() / 255 for part in images.split(batch)]
    known = F.normalize(torch.cat([backbone(part) for part in parts]), dim=1)
    raw = torch.cat([backbone.network(part) for part in parts])
    scores = {"dimensions": backbone.dimensions, "effective_rank": effective_rank(raw)}
    for name, attack in PAPER_ATTACKS.items():
        attacked = torch.cat([backbone(quantise(attack(part))) for part in parts])
        nearest = (F.normalize(attacked, dim=1) @ known.T).argmax(dim=1).cpu()
        scores[name] = float((nearest == torch.arange(len(images))).double().mean())
    return scores


def fit_backbone(
    images: Tensor,
    held_out: Tensor,
    out: str | Path,
    *,
    config: SmallBackboneConfig | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    batch: int = 64,
    learning_rate: float = 2e-3,
    weights: Sequence[float] = WEIGHTS,
    floor: float = 1e-6,
    seed: int = 0,
    device: str | torch.device = "cpu",
    log_seconds: float = 20.0,
    save_seconds: float = 120.0,
    check_steps: int = 50,
) -> WhitenedBackbone:
    """Train until `minutes` or `steps` are spent, then whiten; resumes what `out` holds.

    Args:
        images: (N, 3, H, W) uint8, all modalities together, more than there are features.
        held_out: (M, 3, H, W) uint8, for the scores of `evaluate_backbone`.
        out: gets log.jsonl, training.pt for resuming, and backbone/ at the end.
        floor: as in `whiten_backbone`; a run that is finished is whitened again with another one.
        check_steps: look for collapse this often.

    Returns:
        The running average of the weights, whitened.

    Raises:
        ValueError: for a batch below 2, too few or too small images, not exactly one of minutes
            and steps, an `out` that holds another run, or several processes.
        Collapse: if all images have come to have the same embedding.
    """
    if batch < 2:
        raise ValueError(f"batch: expected at least 2 images, which shall differ, got {batch}")
    Processes().require_one("a backbone's training")
    out, config = Path(out), config or SmallBackboneConfig()
    budget = Budget(minutes=minutes, steps=steps)
    torch.manual_seed(seed)  # the networks' first weights
    generator = torch.Generator().manual_seed(seed)
    network = SmallBackbone(config).to(device, memory_format=training_layout(device))
    _check_images(network, images, held_out)
    out.mkdir(parents=True, exist_ok=True)
    average, head = copy.deepcopy(network), projector(network.features).to(device)
    optimiser = torch.optim.AdamW(
        [*network.parameters(), *head.parameters()], lr=learning_rate, weight_decay=0.01
    )
    settings = plain_settings(
        config=asdict(config), batch=batch, learning_rate=learning_rate, weights=weights,
        seed=seed, entries=len(images), stack=stack_digest(images),
    )  # fmt: skip
    parts = {"network": network, "average": average, "head": head, "optimiser": optimiser}
    if saved := load_training_state(out / "training.pt", settings=settings):
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        budget = Budget(minutes=minutes, steps=steps, **saved["budget"])

    def save() -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"generator": generator.get_state(), "budget": budget.state()}
        save_training_state(out / "training.pt", state | {"settings": settings})

    bar = tqdm(total=100, disable=not sys.stderr.isatty(), unit="%", desc="backbone")
    last_log = last_save = time.monotonic()
    while (progress := budget.progress) < 1:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(progress)
        rows = torch.randint(len(images), (batch,), generator=generator)
        values = vicreg_step(
            network, head, optimiser, images[rows].to(device).float() / 255, weights=weights,
            generator=generator,
        )  # fmt: skip
        budget.tick()
        update_average(average, network, step=budget.step)
        if budget.step % check_steps == 0 and not values["spread"] > COLLAPSED:
            raise Collapse(
                f"collapsed after {budget.step} steps: the embeddings' spread is "
                f"{values['spread']:.3f}, below {COLLAPSED}, so all images look alike. What helps: "
                f"a lower learning rate than {learning_rate:g}, a batch above {batch}, a larger "
                f"weight of the variance than {weights[1]:g}; start again in an empty folder"
            )
        if time.monotonic() - last_log > log_seconds:
            last_log = time.monotonic()
            log_row(out, budget, values)
            bar.update(int(100 * budget.progress) - bar.n)
        if time.monotonic() - last_save > save_seconds:
            last_save = time.monotonic()
            save()
    save()
    bar.close()
    details = {"settings": settings} | budget.state()
    return _whiten_and_save(
        average, images, held_out, out, floor=floor, generator=generator, details=details
    )


def _check_images(network: Backbone, images: Tensor, held_out: Tensor) -> None:
    """Before the training, not after it."""
    if len(images) <= network.features:
        raise ValueError(
            f"whitening {network.features} features needs more images than that, got {len(images)}"
        )
    smallest = 3 * network.minimum_side // 2  # a crop to half the area is still large enough
    for stack in (images, held_out):
        check_image(stack[:1].float() / 255, name="images", minimum=smallest)


def _whiten_and_save(
    network: Backbone, images: Tensor, held_out: Tensor, out: Path, *, floor: float,
    generator: torch.Generator, details: dict,
) -> WhitenedBackbone:  # fmt: skip
    device = next(network.parameters()).device
    chosen = torch.randperm(len(images), generator=generator)[:8192]
    batches = (rows.to(device).float() / 255 for rows in images[chosen].split(64))
    backbone = whiten_backbone(network, batches, floor=floor)
    details = details | {"floor": floor, "evaluation": evaluate_backbone(backbone, held_out)}
    save_backbone(out / "backbone", backbone, details=details)
    return backbone


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train a backbone on a manifest's training images, or whiten a given one."""
    parser = argparse.ArgumentParser(
        prog="python -m medsign_lite.baselines.backbone_training",
        description="Train a self-supervised backbone, or whiten a ResNet-50, on images.",
    )
    parser.add_argument("--data", required=True, type=Path, help="manifest.csv or its folder")
    parser.add_argument("--out", required=True, type=Path, help="an interrupted run resumes")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="length of the run in all")
    length.add_argument("--steps", type=int, help="the same in optimiser steps")
    length.add_argument("--resnet50", type=Path, help="state dict to whiten instead of training")
    parser.add_argument("--size", type=int, default=128, help="side the images are brought to")
    parser.add_argument("--limit", type=int, help="training images to read at most")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--floor", type=float, default=1e-6, help=(
        "least variance of a direction, as a fraction of the largest"))  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = vars(parser.parse_args(arguments))
    tune_processor()
    data, size, resnet50 = options.pop("data"), options.pop("size"), options.pop("resnet50")
    images = read_image_stack(data, size=size, limit=options.pop("limit"))
    held_out = read_image_stack(data, size=size, split="validation", limit=1000)
    if resnet50 is None:
        try:
            fit_backbone(images, held_out, **options)
        except Collapse as error:
            raise SystemExit(f"stopped: {error}") from error
        return
    network = load_resnet50(resnet50).to(options["device"])
    _check_images(network, images, held_out)
    _whiten_and_save(
        network, images, held_out, options["out"], floor=options["floor"],
        generator=torch.Generator().manual_seed(options["seed"]),
        details={"file": resnet50.name, "seed": options["seed"]},
    )  # fmt: skip


if __name__ == "__main__":
    main()
