"""Train everything that the repository ships, from nothing, in stages that resume.

    python -m data_prep.phantoms --out build/phantoms --train 10000 --validation 500 --test 500
    python -m medsign_lite.bundle --data build/phantoms

A stage that has finished is not repeated and one that was killed goes on where it saved last, so
the same command can be given until it is done. Each stage is a module with a command of its own;
this file says only in which order, for how many steps, and where the result goes.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from medsign_lite import decoder_recipe, finetuning, neutral_messages, pretraining, sample_cache
from medsign_lite.checkpoints import weights_fingerprint
from medsign_lite.data import MODALITIES
from medsign_lite.deployment.keys import SHIPPED, registry_of_decoders, write_registry
from medsign_lite.files import whole_folder
from medsign_lite.generator import autoencoder_training, denoiser_training
from medsign_lite.judges import judge_training
from medsign_lite.latent_diffusion import BUNDLED
from medsign_lite.results import read_result, record_result

# Of training: the same whatever the machine, which decides how long they take. On one core of two,
# without bfloat16, some twelve hours; a data centre's GPU is some fifty times faster.
STEPS = {
    "autoencoder": 8800,
    "denoiser": 4800,
    "classifier": 2000,
    "classifier_mixer": 1500,
    "segmenter": 1000,
    "extractor": 9000,
    "decoder_chest": decoder_recipe.STEPS["chest"],
    "decoder_fundus": decoder_recipe.STEPS["fundus"],
}
# Weights that a stage is made of: with others it is made again, or its own command refuses.
_MADE_OF = {
    "segmenter": ("classifier",),
    "keys": ("decoder_chest", "decoder_fundus"),
    **{f"cache_{modality}": ("pipeline",) for modality in MODALITIES},
    **{f"{stage}_{modality}": ("pipeline", "extractor")
       for stage in ("message", "decoder") for modality in MODALITIES},
}  # fmt: skip
KEY_NOTE = "Shipped with medsign_lite and public: to learn and test with."
# The decoders take the first; those of Table 1 and of the ablations find theirs beside it.
KINDS = ("sharp", "literal", "sharp_without_cas", "without_aas")


def stages(
    data: Path, work: Path, weights: Path, *, device: str, steps: dict[str, int]
) -> dict[str, tuple[Path, Callable[[], None]]]:
    """Every stage by name: the folder it makes, and the function that makes it."""

    def run(module, name: str, *options: str | Path) -> None:
        limit = ("--steps", str(steps[name])) if name in steps else ()
        arguments = [*options, "--out", work / name, "--device", device, *limit]
        module.main([str(argument) for argument in arguments])

    def publish(made: Path, name: str) -> None:
        with whole_folder(weights / name) as part:  # half a model is never found
            shutil.copytree(made, part, dirs_exist_ok=True)

    def autoencoder() -> None:
        run(autoencoder_training, "autoencoder", "--data", data)

    def denoiser() -> None:
        vae = work / "autoencoder" / "vae"
        run(denoiser_training, "denoiser", "--data", data, "--autoencoder", vae)
        publish(work / "denoiser" / "pipeline", "pipeline")

    def judge(kind: str, name: str, *options: str | Path) -> None:
        run(judge_training, name, kind, "--data", data, *options)
        made = work / f"{name}_weights"
        made.mkdir(exist_ok=True)
        for file in ("model.safetensors", "config.json"):
            shutil.copy(work / name / file, made / file)
        publish(made, name)

    def segmenter() -> None:
        judge("segmenter", "segmenter", "--start", weights / "classifier")

    def second_classifier() -> None:
        judge("classifier", "classifier_mixer", "--architecture", "mixer")

    def extractor() -> None:
        run(pretraining, "extractor", "--images", data)
        publish(work / "extractor" / "extractor", "extractor")

    def cache(modality: str) -> None:
        options = ("--data", data, "--modality", modality, "--count", str(decoder_recipe.SAMPLES))
        options += ("--pipeline", weights / "pipeline", "--scale", "sharp", "--kinds", *KINDS)
        run(sample_cache, f"cache_{modality}", *options)

    def message_file(modality: str) -> Path:
        return work / f"message_{modality}" / "message.json"

    def message(modality: str) -> None:
        options = ("--seed", decoder_recipe.SEEDS[modality], "--device", device)
        options += ("--images", work / f"cache_{modality}", "--pipeline", weights / "pipeline")
        options += ("--extractor", weights / "extractor", "--out", message_file(modality))
        neutral_messages.main([str(option) for option in options])

    def decoder(modality: str) -> None:
        run(
            finetuning,
            f"decoder_{modality}",
            *("--cache", work / f"cache_{modality}", "--extractor", weights / "extractor"),
            *("--pipeline", weights / "pipeline", "--modality", modality),
            *("--message", read_result(message_file(modality))["values"]["message"]),
            *decoder_recipe.recipe(modality),
        )
        publish(work / f"decoder_{modality}" / "decoder", f"decoder_{modality}")

    def keys() -> None:
        registry = registry_of_decoders(weights, note=KEY_NOTE)
        write_registry(weights / SHIPPED.name, registry, private=False)

    return {
        "autoencoder": (work / "autoencoder" / "vae", autoencoder),
        "denoiser": (weights / "pipeline", denoiser),
        "classifier": (weights / "classifier", lambda: judge("classifier", "classifier")),
        "classifier_mixer": (weights / "classifier_mixer", second_classifier),
        "segmenter": (weights / "segmenter", segmenter),
        "extractor": (weights / "extractor", extractor),
        "cache_chest": (work / "cache_chest" / "cache.safetensors", lambda: cache("chest")),
        "cache_fundus": (work / "cache_fundus" / "cache.safetensors", lambda: cache("fundus")),
        "message_chest": (message_file("chest"), lambda: message("chest")),
        "message_fundus": (message_file("fundus"), lambda: message("fundus")),
        "decoder_chest": (weights / "decoder_chest", lambda: decoder("chest")),
        "decoder_fundus": (weights / "decoder_fundus", lambda: decoder("fundus")),
        "keys": (weights / SHIPPED.name, keys),
    }


def _is_current(record: Path, steps: int | None, made_of: str | None) -> bool:
    """Whether a stage is recorded as finished, after as many steps as are asked for now and of the
    weights that are there now; a record that does not say of which is taken."""
    if not record.is_file():
        return False
    config = read_result(record)["config"]
    return config["steps"] == steps and config.get("made_of") in (None, made_of)


def _fingerprint(name: str, weights: Path) -> str | None:
    """Of what a stage is made of; None if it is made of no weights, or they are not there."""
    parts = _MADE_OF.get(name, ())
    there = all(any((weights / part).rglob("*.safetensors")) for part in parts)
    return weights_fingerprint(weights, parts) if parts and there else None


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True, help="manifest of the phantoms")
    parser.add_argument("--work", type=Path, default=Path("build/weights"), help="states and logs")
    parser.add_argument("--out", type=Path, default=BUNDLED.parent, help="the finished weights")
    parser.add_argument("--only", nargs="+", help="these stages only")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual steps of training")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    steps = {name: max(1, round(options.share * value)) for name, value in STEPS.items()}
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    every = stages(options.data, options.work, options.out, device=options.device, steps=steps)
    unknown = set(options.only or ()) - set(every)
    if unknown:
        parser.error(f"unknown stages {sorted(unknown)}: expected some of {tuple(every)}")
    for name in options.only or every:
        made, make = every[name]
        # Its own record says that a stage is finished: what it makes may be there from before, as
        # the weights of a clone are.
        finished = options.work / f"{name}.json"
        made_of = _fingerprint(name, options.out)
        if made.exists() and _is_current(finished, steps.get(name), made_of):
            print(f"{name}: already at {made}")
            continue
        print(f"{name}: {steps.get(name, 'no')} steps of training")
        make()
        log = options.work / name / "log.jsonl"
        rows = log.read_text().splitlines() if log.is_file() else []
        figures = json.loads(rows[-1]) if rows else {}
        config = {"steps": steps.get(name), "device": options.device, "made_of": made_of}
        record_result(finished, figures, config)


if __name__ == "__main__":
    main()
