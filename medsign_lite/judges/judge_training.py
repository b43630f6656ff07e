"""Training and measuring the judges on phantoms: steps, scores and one fit function.

    python -m medsign_lite.judges.judge_training classifier --data MANIFEST --out FOLDER \\
        --minutes 10

trains for that long in all; killed, it goes on where it was when the same command is run again.
`--architecture mixer` trains a second classifier of another kind.
The networks themselves are in `judge_networks`. What is measured with them later is a change of
probability under a watermark, so they are trained to look past what is not anatomy: noise, blur,
exposure and small movements.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from medsign_lite.checkpoints import digest, load_strictly
from medsign_lite.data import read_manifest
from medsign_lite.image_stack import stack_digest
from medsign_lite.judges.judge_data import Phantoms
from medsign_lite.judges.judge_networks import (
    WIDTHS,
    FindingClassifier,
    FindingSegmenter,
    Judge,
    JudgeConfig,
    Reading,
    load_classifier,
    load_segmenter,
    save_judge,
)
from medsign_lite.judges.judge_scores import evaluate_classifier, evaluate_segmenter
from medsign_lite.results import record_result
from medsign_lite.training.budgets import Budget, log_row
from medsign_lite.training.precision import mixed_precision
from medsign_lite.training.processes import Processes, descend
from medsign_lite.training.processor import tune_processor
from medsign_lite.training.training_state import (
    load_training_state,
    plain_settings,
    save_training_state,
)

__all__ = [
    "FindingClassifier",
    "FindingSegmenter",
    "JudgeConfig",
    "Phantoms",
    "Reading",
    "classifier_step",
    "evaluate_classifier",
    "evaluate_segmenter",
    "fit_judge",
    "load_classifier",
    "load_segmenter",
    "save_judge",
    "segmenter_step",
]


def classifier_step(
    classifier: FindingClassifier, optimiser: torch.optim.Optimizer, batch: dict[str, Tensor]
) -> dict[str, float]:
    """One step on presence, side and eye; a label that is not stated (NaN) is not trained."""
    with mixed_precision(batch["image"].device):
        reading = classifier(batch["image"])
    loss = F.binary_cross_entropy_with_logits(reading.presence, batch["presence"])
    parts = {"presence": loss.item()}
    for name, weight, logits in (("sides", 1.0, reading.sides), ("eye", 0.1, reading.eye)):
        stated = ~batch[name].isnan()
        if stated.any():
            part = F.binary_cross_entropy_with_logits(logits[stated], batch[name][stated])
            loss = loss + weight * part
            parts[name] = part.item()
    descend(loss, optimiser)
    return {"loss": loss.item(), **parts}


def segmenter_step(
    segmenter: FindingSegmenter, optimiser: torch.optim.Optimizer, batch: dict[str, Tensor]
) -> dict[str, float]:
    """One step on binary cross-entropy and, over the findings that are there, soft Dice."""
    rows = batch["masks"][..., ::2, :] + batch["masks"][..., 1::2, :]
    masks = (rows[..., ::2] + rows[..., 1::2]) / 4  # mean of 2 x 2, faster than pooling on a CPU
    with mixed_precision(masks.device):
        logits = segmenter.coarse(batch["image"])
    entropy = F.binary_cross_entropy_with_logits(logits, masks)
    preds, areas = logits.sigmoid(), masks.sum(dim=(2, 3))
    overlap = 2 * (preds * masks).sum(dim=(2, 3)) / (preds.sum(dim=(2, 3)) + areas + 1)
    shown = areas > 0
    dice = (1 - overlap)[shown].mean() if shown.any() else logits.sum() * 0
    loss = 10 * entropy + dice
    descend(loss, optimiser)
    return {"loss": loss.item(), "entropy": entropy.item(), "dice": dice.item()}


def fit_judge(
    judge: Judge,
    train: Phantoms,
    validation: Phantoms,
    out: str | Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    batch: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    log_seconds: float = 10.0,
    save_seconds: float = 60.0,
) -> dict:
    """Train a classifier or segmenter until minutes or steps are spent; resumes what `out` holds.

    The learning rate rises for 5 % of the run and falls along a cosine.

    Args:
        judge: on its device; trained in place.
        out: gets log.jsonl, training.pt (for resuming), the weights and scores.json.

    Returns:
        The scores on `validation` of the weights as saved.

    Raises:
        ValueError: if not exactly one of minutes and steps is given, `out` holds another run, or
            several processes were started.
    """
    budget = Budget(minutes=minutes, steps=steps)
    Processes().require_one("a judge's training")
    out, device = Path(out), next(judge.parameters()).device
    out.mkdir(parents=True, exist_ok=True)
    step, evaluate = {
        "classifier": (classifier_step, evaluate_classifier),
        "segmenter": (segmenter_step, evaluate_segmenter),
    }[judge.config.kind]
    settings = plain_settings(
        config=asdict(judge.config), batch=batch, learning_rate=learning_rate, seed=seed,
        entries=len(train), images=stack_digest(train.images),
        labels=digest([train.masks[::64], train.presence, train.sides.nan_to_num(-1.0)]),
    )  # fmt: skip
    optimiser = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    if saved := load_training_state(out / "training.pt", settings=settings):
        load_strictly(judge, saved["judge"], name=f"training state in {out}")
        optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
        budget = Budget(minutes=minutes, steps=steps, **saved["budget"])

    def save() -> None:
        state = {"judge": judge.state_dict(), "optimiser": optimiser.state_dict()}
        state |= {"settings": settings, "generator": generator.get_state()}
        save_training_state(out / "training.pt", state | {"budget": budget.state()})

    bar = tqdm(total=100, disable=not sys.stderr.isatty(), unit="%", desc=judge.config.kind)
    last_log = last_save = time.monotonic()
    judge.train()
    while (progress := budget.progress) < 1:
        rate = learning_rate * min(1.0, 20 * progress + 0.02)
        optimiser.param_groups[0]["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * progress))
        rows = torch.randint(len(train), (batch,), generator=generator)
        losses = step(judge, optimiser, train.batch(rows, device=device, generator=generator))
        budget.tick()
        now = time.monotonic()
        bar.update(100 * progress - bar.n)
        if now - last_log > log_seconds:
            last_log = now
            log_row(out, budget, losses)
        if now - last_save > save_seconds:
            last_save = now
            save()
    bar.close()
    save()
    load = load_classifier if judge.config.kind == "classifier" else load_segmenter
    scores = evaluate(load(save_judge(out, judge), device=device), validation)
    log_row(out, budget, {"validation": scores})
    record_result(out / "scores.json", scores, settings | budget.state())
    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train one judge on the phantoms of a manifest and print its scores."""
    parser = argparse.ArgumentParser(
        prog="python -m medsign_lite.judges.judge_training",
        description="Train an independent judge on phantoms.",
    )
    parser.add_argument("kind", choices=("classifier", "segmenter"))
    parser.add_argument("--data", required=True, type=Path, help="manifest.csv or its folder")
    parser.add_argument("--out", required=True, type=Path, help="folder for weights and log")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="length of the run in all")
    length.add_argument("--steps", type=int, help="the same in optimiser steps")
    parser.add_argument(
        "--start", type=Path, help="classifier whose stages a segmenter starts from"
    )
    parser.add_argument("--architecture", choices=WIDTHS, default="convolutional", help=(
        "mixer: a second classifier of another kind"))  # fmt: skip
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = vars(parser.parse_args(arguments))
    tune_processor()
    kind = options.pop("kind")
    network = {"classifier": FindingClassifier, "segmenter": FindingSegmenter}[kind]
    records = read_manifest(options.pop("data"), check_files=False)
    torch.manual_seed(options["seed"])  # the network's first weights
    device = options.pop("device")
    config = JudgeConfig(kind=kind, architecture=options.pop("architecture"))
    judge = network(config).to(device, memory_format=torch.channels_last)
    if (start := options.pop("start")) is not None:
        judge.start_from(load_classifier(start, device=device))
    splits = {"train": [], "validation": [], "test": []}
    for record in records:
        splits[record.split].append(record)
    train = Phantoms.load(splits["train"], judge.config, progress=sys.stderr.isatty())
    validation = Phantoms.load(splits["validation"], judge.config)
    print(json.dumps(fit_judge(judge, train, validation, options.pop("out"), **options), indent=2))


if __name__ == "__main__":
    main()
