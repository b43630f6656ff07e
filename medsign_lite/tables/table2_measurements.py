"""What Table 2 is measured on, and the decoders that its rows are of."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from medsign_lite.attacks import PAPER_ATTACKS, specification
from medsign_lite.checkpoints import digest, load_checkpoint
from medsign_lite.data import FINDINGS, Record
from medsign_lite.images import quantise
from medsign_lite.latent_diffusion import LatentDecoder, decode, load_decoder
from medsign_lite.map_variants import moved_residual
from medsign_lite.messages import message_from_string
from medsign_lite.metrics import psnr
from medsign_lite.records.kept_parts import Part
from medsign_lite.results import to_json
from medsign_lite.tables.ablations import VARIANTS
from medsign_lite.tables.matched_quality import match_psnr
from medsign_lite.tables.table1_weights import check_reader
from medsign_lite.tables.table2_rows import image_scores
from medsign_lite.training.random_streams import named_generator

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
            "attacks": specification(PAPER_ATTACKS.values()),
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


def decoders(variants: Path | None, shipped: Path | None) -> dict[str, dict[str, Path]]:
    """Decoder folders by row and seed, of those that are there.

    Args:
        variants: what `medsign_lite.tables.ablations` wrote, ROW/seed-N/decoder.
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


def at_floor(folders: Mapping[str, Path]) -> bool:
    """Did the factor of the image losses never rise above where it began, for one of these?

    Such a decoder was never free to trade message for quality, so its quality does not say what the
    message would have cost at the same bit accuracy as another's. One with a fixed factor was not
    meant to. The factor is that of the configuration and, where it lies beside the decoder, of the
    training's log: it may have risen and have fallen again at the end.
    """
    return any(_never_rose(folder) for folder in folders.values())


def _never_rose(folder: Path) -> bool:
    config = load_checkpoint(folder, kind="decoder")[1]
    if "quality" not in config or config["first_quality"] >= config["last_quality"]:
        return False
    log = folder.parent / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else ()
    rows = [json.loads(line) for line in lines]
    factors = [config["quality"], *(row["quality"] for row in rows if "quality" in row)]
    return max(factors) <= config["first_quality"]


def parts(material: Material, row: str, folders: Mapping[str, Path]) -> dict[str, Part]:
    """What is measured and kept for a row, by the names of the files: one part per seed.

    Raises:
        ValueError: if a decoder is of another modality or was trained with another extractor, or
            its message does not fit the extractor.
    """
    found = {}
    for seed, folder in folders.items():
        decoder, about = load_decoder(folder, material.pipeline.vae)
        if about.get("modality", material.modality) != material.modality:
            raise ValueError(
                f"{folder} is a decoder of {about['modality']}, not of {material.modality}"
            )
        check_reader(f"row {row}: {folder}", about, material.extractor)
        message = message_from_string(about["message"], bits=material.extractor.config.bits)

        def measure(
            generator: torch.Generator, decoder: LatentDecoder = decoder, message: Tensor = message
        ) -> list[dict]:
            marked = quantise(decode(decoder, material.latents).cpu())
            if row == RANDOM:
                quality = psnr(marked, material.original, data_range=1.0)
                marked = moved_residual(marked, material.original, generator=generator)
                # What is cut off at black and white would leave it weaker.
                marked = match_psnr(marked, material.original, quality)
            return [material.scores(marked, message)]

        settings = {"row": row, "decoder": digest(decoder), "message": digest([message])}
        found[f"{row}-{seed}"] = Part(group=f"{row}-{seed}", settings=settings, measure=measure)
    return found
