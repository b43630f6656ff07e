"""What Table 2 is measured on, and the decoders that its rows are of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from medsign_lite.ablations import VARIANTS
from medsign_lite.checkpoints import digest, load_checkpoint
from medsign_lite.data import FINDINGS, Record
from medsign_lite.held_out import readable
from medsign_lite.images import quantise
from medsign_lite.kept_parts import Part
from medsign_lite.latent_cache import read_latent_cache
from medsign_lite.latent_diffusion import LatentDecoder, decode, load_decoder
from medsign_lite.map_variants import moved_residual
from medsign_lite.messages import message_from_string
from medsign_lite.random_streams import named_generator
from medsign_lite.results import to_json
from medsign_lite.sample_cache import FIRST_SEED, choose_records, sample_with_maps
from medsign_lite.table2_rows import image_scores

RANDOM = "random_residual"  # made of MedSign's images, not trained
SHIPPED = "shipped"
TITLES = {name: variant.title for name, variant in VARIANTS.items()} | {
    RANDOM: "the same residual at a random place",
    SHIPPED: "the shipped decoder",
}


@dataclass(frozen=True, kw_only=True)
class Material:
    """Generated test images, and everything that judges a decoder on them.

    Attributes:
        modality: "chest" or "fundus".
        pipeline: the original generator.
        extractor, segmenter: networks.
        classifiers: by name, each with `probability(image, findings)`.
        latents: (N, C, h, w) scaled, of samples of the reports of `records`.
        records: N, whose findings are the labels.
        seed: of the intervals, and of the random places.
    """

    modality: str
    pipeline: object
    extractor: nn.Module
    segmenter: object
    classifiers: Mapping[str, object]
    latents: Tensor
    records: Sequence[Record]
    seed: int = 0

    @property
    def findings(self) -> tuple[str, ...]:
        return FINDINGS[self.modality]

    @cached_property
    def labels(self) -> Tensor:
        """(N, F) in {0, 1}: is the finding named in the prompt?"""
        named = [[float(name in r.findings) for name in self.findings] for r in self.records]
        return torch.tensor(named)

    @cached_property
    def original(self) -> Tensor:
        """(N, 3, H, W) in [0, 1] by the original decoder, rounded to 8 bits."""
        return quantise(decode(self.pipeline.vae, self.latents).cpu())

    @cached_property
    @torch.no_grad()
    def masks(self) -> Tensor:
        """(N, H, W) bool: where the segmenter sees the findings in the original images."""
        return torch.cat([
            self.segmenter.mask(part, self.findings).any(dim=1) for part in self.original.split(50)
        ])  # fmt: skip

    def generator(self, name: str) -> torch.Generator:
        """Its own stream for every row, so that one can be repeated alone."""
        return named_generator(self.seed, name)

    @cached_property
    def _config(self) -> dict:
        return to_json({
            "modality": self.modality, "images": len(self.latents), "seed": self.seed,
            "latents": digest([self.latents]), "labels": digest([self.labels]),
            "pipeline": digest(self.pipeline.vae), "extractor": digest(self.extractor),
            "segmenter": digest(self.segmenter),
            "classifiers": {name: digest(one) for name, one in self.classifiers.items()},
        })  # fmt: skip

    def config(self) -> dict:
        """What a recorded figure is of; no path and no message."""
        return dict(self._config)

    def scores(self, marked: Tensor, message: Tensor) -> dict:
        """`image_scores` of watermarked images (N, 3, H, W)."""
        classify = {name: partial(classifier.probability, names=self.findings)
                    for name, classifier in self.classifiers.items()}  # fmt: skip
        return image_scores(
            marked, self.original, self.masks, extractor=self.extractor, message=message,
            classifiers=classify,
        )  # fmt: skip


def sampled_latents(
    pipeline, records: Sequence[Record], *, count: int, folder: Path, sampled: bool
) -> Tensor:
    """Latents (N, C, h, w) of the first `count` of records, sampled into a folder or read from it.

    The seeds are those of every watermark's test images. `sampled`: the folder is one of another
    command, and is only read.

    Raises:
        ValueError: if the folder holds too few, or other prompts.
    """
    prompts = [record.report for record in records]
    if not sampled:
        first = FIRST_SEED["test"]
        sample_with_maps(
            pipeline, prompts, [()] * count, folder, seeds=range(first, first + count)
        )  # fmt: skip
    cache = read_latent_cache(folder, LatentDecoder(pipeline.vae).eval(), limit=count)
    if len(cache) < count:
        raise ValueError(f"{folder} holds {len(cache)} latents, {count} were asked for")
    if list(cache.prompts) != prompts:
        raise ValueError(f"{folder} holds samples of other prompts than the manifest's test split")
    return cache.latents.float()


def readable_records(
    pipeline, records: Sequence[Record], *, modality: str, count: int
) -> list[Record]:
    """The first `count` readable records of the test split, as every watermark is scored on."""
    some = readable(pipeline.tokenizer, [r for r in records if r.modality == modality])
    chosen = choose_records(some, modality=modality, split="test", count=count)
    if len({record.id for record in chosen}) < count:
        raise ValueError(
            f"{count} different {modality} reports are needed, the test split has "
            f"{len({record.id for record in chosen})}"
        )
    return chosen


def decoders(variants: Path | None, shipped: Path | None) -> dict[str, dict[str, Path]]:
    """Decoder folders by row and seed, of those that are there.

    Args:
        variants: what `medsign_lite.ablations` wrote, ROW/seed-N/decoder.
        shipped: a decoder's folder.
    """
    found: dict[str, dict[str, Path]] = {}
    for name in VARIANTS if variants else ():
        for config in sorted((variants / name).glob("seed-*/decoder/config.json")):
            seed = config.parent.parent.name.removeprefix("seed-")
            found.setdefault(name, {})[seed] = config.parent
    if "medsign" in found:
        found[RANDOM] = found["medsign"]
    if shipped is not None and (shipped / "config.json").is_file():
        found[SHIPPED] = {SHIPPED: shipped}
    return found


def about_map(folders: Mapping[str, Path]) -> dict | None:
    """What the configuration of a row's first decoder says of its maps."""
    config = load_checkpoint(next(iter(folders.values())), kind="decoder")[1]
    return config.get("ablation", {}).get("map")


def parts(material: Material, row: str, folders: Mapping[str, Path]) -> dict[str, Part]:
    """What is measured and kept for a row, by the names of the files: one part per seed.

    Raises:
        ValueError: if a decoder is of another modality or its message does not fit the extractor.
    """
    found = {}
    for seed, folder in folders.items():
        decoder, about = load_decoder(folder, material.pipeline.vae)
        if about.get("modality", material.modality) != material.modality:
            raise ValueError(
                f"{folder} is a decoder of {about['modality']}, not of {material.modality}"
            )
        message = message_from_string(about["message"], bits=material.extractor.config.bits)

        def measure(
            generator: torch.Generator, decoder: LatentDecoder = decoder, message: Tensor = message
        ) -> list[dict]:
            marked = quantise(decode(decoder, material.latents).cpu())
            if row == RANDOM:
                marked = moved_residual(marked, material.original, generator=generator)
            return [material.scores(marked, message)]

        settings = {"row": row, "decoder": digest(decoder), "message": digest([message])}
        found[f"{row}-{seed}"] = Part(group=f"{row}-{seed}", settings=settings, measure=measure)
    return found
