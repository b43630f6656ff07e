"""The parts of an attacker's work on one watermarking decoder, each measured by itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from medsign_lite.adversary.attack_curves import CURVES, attack_curve_rows, curve
from medsign_lite.adversary.attack_scores import Detector
from medsign_lite.adversary.forgery import COUNTS, DECIBELS, forgery_rows
from medsign_lite.adversary.purification import purification_row, purify
from medsign_lite.adversary.regeneration import regeneration_rows, through_autoencoder
from medsign_lite.attacks import PAPER_ATTACKS, specification
from medsign_lite.checkpoints import digest
from medsign_lite.data import Record, pictures_digest
from medsign_lite.distortions import gaussian_blur
from medsign_lite.evaluation import evaluate_attacks
from medsign_lite.images import quantise
from medsign_lite.latent_diffusion import Autoencoder, LatentDecoder, decode, encode, image_size
from medsign_lite.records.held_out import read_images
from medsign_lite.records.kept_parts import Part
from medsign_lite.results import to_json
from medsign_lite.training.random_streams import named_generator

TIMESTEPS = (100, 200, 400)
PURIFICATION = (0, 10, 30, 100, 300)  # steps
LEARNING_RATE = 1e-4  # of the purification
SAMPLER_STEPS = 50  # of the diffusion, over all timesteps
BLUR = 1.0  # pixels, where a blurred image stands for the unmarked one
HELD_OUT = 32  # of the attacker's own images, to look at while purifying


@dataclass(frozen=True, kw_only=True)
class Target:
    """A watermarking decoder with all that belongs to it, and latents to draw images from.

    Attributes:
        pipeline: the original.
        decoder: the watermarking one.
        detector: extractor (a network) and message.
        latents: (N, C, h, w), scaled.
        clean: images that the attacker owns, more than `HELD_OUT`.
        seed: of all that is drawn.
    """

    pipeline: object
    decoder: LatentDecoder
    detector: Detector
    latents: Tensor
    clean: Sequence[Record]
    seed: int = 0

    @cached_property
    def marked(self) -> Tensor:
        """(N, 3, H, W) in [0, 1], rounded to 8 bits."""
        return quantise(decode(self.decoder, self.latents).cpu())

    @cached_property
    def unmarked(self) -> Tensor:
        """The original decoder's images of the same latents."""
        return quantise(decode(self.pipeline.vae, self.latents).cpu())

    @cached_property
    def own(self) -> tuple[Tensor, Tensor]:
        """The attacker's clean images and their latents."""
        images = read_images(self.clean, image_size(self.pipeline))
        return images, encode(self.pipeline.vae, images).cpu()

    @cached_property
    def purification(self) -> str:
        """Name of the folder for the state of its purification."""
        return f"purification-{digest(self.decoder)}-{pictures_digest(self.clean)}-{self.seed}"

    def generator(self, name: str) -> torch.Generator:
        """Its own stream for every part, so that one can be repeated alone."""
        return named_generator(self.seed, name)

    def config(self) -> dict:
        """What a recorded figure is of; no path and no message."""
        return {
            "images": len(self.latents),
            "seed": self.seed,
            "latents": digest([self.latents]),
            "decoder": digest(self.decoder),
            "pipeline": digest(self.pipeline.vae, self.pipeline.unet),
            "extractor": digest(self.detector.extractor),
            "message": digest([self.detector.message]),
            "false_positive_rate": self.detector.false_positive_rate,
        }


def parts(
    target: Target,
    work: Path,
    *,
    autoencoders: Mapping[str, Autoencoder],
    timesteps: Sequence[int] = TIMESTEPS,
    purification: Sequence[int] = PURIFICATION,
    counts: Sequence[int] = COUNTS,
    decibels: Sequence[float] = DECIBELS,
) -> dict[str, Part]:
    """All parts by name.

    Args:
        work: folder for the state of the purification.
        autoencoders: by name, others than the pipeline's own.
        timesteps: of the diffusion.
        purification: numbers of steps.
        counts, decibels: of the forgery; the images after the largest count are attacked.

    Raises:
        ValueError: if no image would be left to attack beside those that are averaged.
    """
    collected = max(counts)
    if collected >= len(target.latents):
        raise ValueError(
            f"averaging {collected} images leaves none of {len(target.latents)} to attack: ask for "
            "more images or a smaller count"
        )
    vae, detector = target.pipeline.vae, target.detector
    found = {}

    def add(name: str, group: str, measure: Callable, **settings) -> None:
        found[name] = Part(group=group, settings=to_json(settings), measure=measure)

    def unattacked(generator: torch.Generator) -> list[dict]:
        return evaluate_attacks(
            target.marked, target.unmarked, detector.extractor, detector.message,
            attacks={"none": PAPER_ATTACKS["none"]}, generator=generator,
            false_positive_rate=detector.false_positive_rate, resamples=detector.resamples,
        )[:-1]  # fmt: skip

    def one_curve(name: str, generator: torch.Generator) -> list[dict]:
        curves = {name: CURVES[name]}
        return attack_curve_rows(target.marked, detector, curves=curves, generator=generator)

    def regenerated(name: str, model: Autoencoder, generator: torch.Generator) -> list[dict]:
        return regeneration_rows(
            target.marked, detector, autoencoders={name: model}, generator=generator
        )

    def diffused(timestep: int, generator: torch.Generator) -> list[dict]:
        return regeneration_rows(
            target.marked, detector, autoencoders={}, pipeline=target.pipeline,
            timesteps=(timestep,), steps=SAMPLER_STEPS, generator=generator,
        )  # fmt: skip

    def purified(steps: int, generator: torch.Generator) -> list[dict]:
        images, latents = target.own
        train, look = slice(0, -HELD_OUT), slice(-HELD_OUT, None)
        decoder = purify(
            target.decoder, latents[train], images[train], steps=steps, seed=target.seed,
            learning_rate=LEARNING_RATE, folder=work / target.purification,
        )  # fmt: skip
        return [purification_row(
            decoder, target.latents, target.marked, detector, steps=steps,
            own_latents=latents[look], own_images=images[look], generator=generator,
        )]  # fmt: skip

    def forged(estimate: str, generator: torch.Generator) -> list[dict]:
        guess = {"blurred": partial(gaussian_blur, sigma=BLUR),
                 "regenerated": partial(through_autoencoder, vae)}[estimate]  # fmt: skip
        return forgery_rows(
            target.marked[:collected], target.marked[collected:], target.unmarked[collected:],
            detector, estimates={estimate: guess}, counts=counts, decibels=decibels,
            generator=generator,
        )  # fmt: skip

    add("unattacked", "unattacked", unattacked)
    for name, values in CURVES.items():
        add(f"curve-{name}", "curves", partial(one_curve, name), strengths=values,
            attacks=specification(curve(name).values()))  # fmt: skip
    for name, model in ({"original": vae} | dict(autoencoders)).items():
        add(f"autoencoder-{name}", "regeneration", partial(regenerated, name, model),
            model=digest(model))  # fmt: skip
    for timestep in timesteps:
        add(f"diffusion-{timestep}", "regeneration", partial(diffused, timestep),
            sampler_steps=SAMPLER_STEPS)  # fmt: skip
    for steps in sorted(purification):
        add(f"purification-{steps}", "purification", partial(purified, steps),
            own_images=len(target.clean), pictures=pictures_digest(target.clean),
            learning_rate=LEARNING_RATE)  # fmt: skip
    for estimate in ("blurred", "regenerated"):
        add(f"forgery-{estimate}", "forgery", partial(forged, estimate), counts=counts,
            decibels=decibels, blur=BLUR)  # fmt: skip
    return found
