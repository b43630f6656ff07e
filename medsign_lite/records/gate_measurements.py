"""What the gates are measured on, and the measurements: figures with intervals, by name."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from medsign_lite.checkpoints import weights_fingerprint
from medsign_lite.data import FINDINGS, Record, pictures_digest, read_manifest
from medsign_lite.detection import bit_bias, empirical_false_positive_rate, extract_logits
from medsign_lite.extractor import load_extractor
from medsign_lite.images import quantise
from medsign_lite.judges.judge_data import Phantoms
from medsign_lite.judges.judge_networks import load_classifier, load_segmenter
from medsign_lite.judges.judge_scores import evaluate_classifier, evaluate_segmenter
from medsign_lite.latent_cache import read_latent_cache
from medsign_lite.latent_diffusion import (
    LatentDecoder,
    image_size,
    load_decoder,
    load_pipeline,
)
from medsign_lite.localisation_scores import localisation_rows
from medsign_lite.messages import message_from_string
from medsign_lite.records.decoder_scores import score_decoder
from medsign_lite.records.held_out import (
    RECORDED,
    generation_row,
    localisation_on_phantoms,
    mean_masks,
    read_images,
    readable,
    reconstruction_row,
)
from medsign_lite.rows import with_interval
from medsign_lite.sample_cache import FIRST_SEED, sample_with_maps
from medsign_lite.selection import SMALL_MAPS
from medsign_lite.training.random_streams import named_generator

# By measurement, or by what it is called before its modality.
WEIGHTS: dict[str, tuple[str, ...] | None] = {
    "weights": None,
    "localisation": ("pipeline",),
    "unmarked": ("extractor", "decoder_chest", "decoder_fundus"),  # of the decoders the messages
    "reconstruction": ("pipeline",),
    "judges": ("classifier", "segmenter"),
    "generation": ("pipeline", "classifier"),
    "localisation_generated": ("pipeline", "segmenter"),
    "watermark": ("pipeline", "extractor", "decoder_{modality}", "classifier", "segmenter"),
    "manifest": (),
    "processes": ("pipeline", "extractor"),
}
_SAMPLED = ("data", "images", "seed")
# What else of a sample a measurement depends on; of the rest its record says nothing.
SETTINGS: dict[str, tuple[str, ...]] = {
    "weights": (),
    "localisation": (*_SAMPLED, "cas"),
    "unmarked": ("data", "seed"),  # every test image
    "reconstruction": _SAMPLED,
    "judges": _SAMPLED,
    "generation": (*_SAMPLED, "steps"),
    "localisation_generated": (*_SAMPLED, "steps", "cas"),
    "watermark": (*_SAMPLED, "steps"),
    "manifest": (),
    "processes": (),
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The shipped weights, and held-out phantoms and prompts to measure them on.

    Attributes:
        data: manifest; its test split is measured on, its train split makes the priors.
        weights: folder with pipeline, extractor, decoders and judges.
        images: of each modality.
        seed: 0 takes the first test images, another one a random choice of those after them.
        steps: of the sampler.
        work: generated samples are kept in a folder of it named after pipeline and seed.
    """

    data: Path
    weights: Path
    images: int
    seed: int
    steps: int
    work: Path

    def config(self, measurement: str) -> dict:
        """What a recorded figure is of; no path of this machine. The weights are those that the
        measurement looks at, so that another decoder leaves the others' figures as they are."""
        parts = weights_of(measurement)
        settings = {name: getattr(self, name) for name in ("images", "seed", "steps")}
        settings["cas"] = SMALL_MAPS
        if "data" in (used := settings_of(measurement)):
            settings["data"] = self.records_digest
        weights = None if parts == () else weights_fingerprint(self.weights, parts)
        return {name: settings[name] for name in used} | {"weights": weights}

    @cached_property
    def records_digest(self) -> str:
        """Names the manifest's contents, wherever it lies and whatever its files are called."""
        hashed = hashlib.sha256(pictures_digest(self.manifest).encode())
        for r in self.manifest:
            row = (r.id, r.modality, r.split, r.report, r.findings, r.words, r.sides)
            hashed.update(repr(row).encode())
        return hashed.hexdigest()[:12]

    @cached_property
    def folder(self) -> Path:
        name = weights_fingerprint(self.weights, ["pipeline"])
        return self.work / f"{name}-{self.seed}-{self.images}-{self.steps}"

    def generator(self, name: str) -> torch.Generator:
        """Its own stream for every measurement, so that one can be repeated alone."""
        return named_generator(self.seed, name)

    @cached_property
    def pipeline(self):
        return load_pipeline(self.weights / "pipeline")

    @cached_property
    def extractor(self):
        return load_extractor(self.weights / "extractor")

    @cached_property
    def classifier(self):
        return load_classifier(self.weights / "classifier")

    @cached_property
    def segmenter(self):
        return load_segmenter(self.weights / "segmenter")

    @cached_property
    def manifest(self) -> list[Record]:
        return read_manifest(self.data, check_files=False)

    @cached_property
    def priors(self) -> dict[str, Tensor]:
        train = [r for r in self.manifest if r.split == "train"]
        return mean_masks(train, image_size(self.pipeline))

    def records(self, modality: str) -> list[Record]:
        """The chosen test records of a modality."""
        test = [r for r in self.manifest if r.split == "test" and r.modality == modality]
        test = readable(self.pipeline.tokenizer, test)
        if self.seed:
            later = test[RECORDED:]
            test = later if len(later) >= self.images else test
            order = torch.randperm(len(test), generator=self.generator(modality)).tolist()
            test = [test[i] for i in order]
        if len(test) < self.images:
            raise ValueError(
                f"{self.images} {modality} images are needed, the test split of {self.data} has "
                f"{len(test)}: draw more phantoms or ask for fewer --images"
            )
        return test[: self.images]

    def generated(self, modality: str):
        """Latent cache of samples from the records' reports; made in parts, kept on disk."""
        records = self.records(modality)
        first = FIRST_SEED["test"] + 10_000 * self.seed
        folder = sample_with_maps(
            self.pipeline,
            [r.report for r in records],
            [r.words for r in records],
            self.folder / f"samples_{modality}",
            seeds=range(first, first + len(records)),
            steps=self.steps,
            cas=SMALL_MAPS,
        )
        return read_latent_cache(folder, LatentDecoder(self.pipeline.vae).eval())


def weights_of(measurement: str) -> tuple[str, ...] | None:
    """Folders of the weights that a measurement looks at: () for none, None for all."""
    if measurement in WEIGHTS:
        return WEIGHTS[measurement]
    kind, modality = measurement.rsplit("_", 1)
    return tuple(name.format(modality=modality) for name in WEIGHTS[kind])


def settings_of(measurement: str) -> tuple[str, ...]:
    """What of a sample a measurement depends on, beside its weights."""
    return SETTINGS[measurement if measurement in SETTINGS else measurement.rsplit("_", 1)[0]]


def weights(sample: Sample) -> dict:
    size = sum(path.stat().st_size for path in sample.weights.rglob("*") if path.is_file())
    return {"size": with_interval({"size": size / 2**20}, "size")}


def reconstruction(sample: Sample, modality: str) -> dict:
    row = reconstruction_row(
        sample.pipeline, sample.records(modality), generator=sample.generator("reconstruction")
    )
    return {"psnr": with_interval(row, "psnr"), "images": row["images"]}


def judges(sample: Sample, modality: str) -> dict:
    """How well those judge who judge the rest: on the phantoms themselves, means over findings."""
    records = sample.records(modality)
    segmenter = evaluate_segmenter(
        sample.segmenter, Phantoms.load(records, sample.segmenter.config)
    )
    classifier = evaluate_classifier(
        sample.classifier, Phantoms.load(records, sample.classifier.config)
    )
    means = {"dice": segmenter["dice"], "auc": classifier["auc"]}
    return {name: with_interval(means, name) for name in means} | {
        "images": len(records), "segmenter": segmenter, "classifier": classifier,
    }  # fmt: skip


def generation(sample: Sample, modality: str) -> dict:
    cache = sample.generated(modality)
    images = cache.originals.float() / 255
    row = generation_row(sample.classifier, images, sample.records(modality))
    shares = {name: with_interval(row, name) for name in ("found", "side") if name in row}
    return shares | {"row": row}


def localisation(sample: Sample) -> dict:
    """On phantoms of both modalities; every finding weighs the same."""
    records = sample.records("chest") + sample.records("fundus")
    rows = localisation_on_phantoms(
        sample.pipeline,
        [r for r in records if r.findings],
        sample.priors,
        cas=SMALL_MAPS,
        generator=sample.generator("localisation"),
    )
    means = {row["map"]: row for row in rows if row["finding"] == "mean"}
    figures = {
        name: with_interval(means["attention"], name)
        for name in ("cnr", "auc", "iou", "iou_best", "pointing", "side_correct")
        if name in means["attention"]
    }
    for control in ("shuffled token", "anatomical prior"):
        figures[f"margin_{control.replace(' ', '_')}"] = with_interval(means[control], "cnr_margin")
    fixed = fixed_places(sample.priors)
    movable = [row for row in rows if row["map"] == "anatomical prior"
               and row["finding"] not in fixed | {"mean"}]  # fmt: skip
    figures["margin_anatomical_prior_movable"] = mean_of_rows(movable, "cnr_margin")
    return figures | {"rows": rows, "fixed_places": sorted(fixed)}


def fixed_places(priors: Mapping[str, Tensor]) -> set[str]:
    """The findings whose place is known before an image is seen: one pixel is in half of all masks.

    An enlarged heart is where the heart is, edema in both lungs, cupping in one of two discs. There
    the mean mask is close to the mask itself, and no map of an image can be far above it.
    """
    return {finding for finding, prior in priors.items() if prior.max() >= 0.5}


def mean_of_rows(rows: Sequence[Mapping], name: str) -> dict:
    """The mean of a figure over rows, each of the same weight.

    The interval is the normal one: a row's standard error is read off its own interval, and rows
    are taken for independent, which the findings of one image are not quite.
    """
    if not rows:
        return {"value": None, "low": None, "high": None}
    value = sum(row[name] for row in rows) / len(rows)
    widths = [(row[f"{name}_high"] - row[f"{name}_low"]) / 2 for row in rows]
    reach = math.hypot(*widths) / len(rows)
    return {"value": value, "low": value - reach, "high": value + reach}


@torch.no_grad()
def localisation_generated(sample: Sample, modality: str) -> dict:
    """A_loc of generated images against the segmenter's mask of the findings that were named.

    Controls: the map of another image, and the mean mask of the named findings.
    """
    cache, records = sample.generated(modality), sample.records(modality)
    originals, _, maps = cache.batch(torch.arange(len(cache)), "cpu")
    kept, masks, priors = [], [], []
    for index, record in enumerate(records):
        names = [name for name in record.findings if name in sample.priors]
        if names:
            mask = sample.segmenter.mask(originals[index : index + 1], names)[0].any(dim=0)
            if 0 < mask.double().mean() < 1:
                kept.append(index)
                masks.append(mask)
                priors.append(torch.stack([sample.priors[name] for name in names]).amax(dim=0))
    if not kept:
        raise ValueError(
            f"in none of the {len(records)} {modality} images does the segmenter see what was named"
        )
    own = maps[kept]
    rows = localisation_rows(
        own,
        torch.stack(masks),
        ["named findings"] * len(kept),
        controls={"another image": own.roll(1, dims=0), "anatomical prior": torch.stack(priors)},
        generator=sample.generator("localisation_generated"),
    )
    means = next(row for row in rows if row["finding"] == "mean")
    return {name: with_interval(means, name) for name in ("cnr", "auc")} | {"rows": rows}


def watermark(sample: Sample, modality: str) -> dict:
    decoder, about = load_decoder(sample.weights / f"decoder_{modality}", sample.pipeline.vae)
    cache = sample.generated(modality)
    scores = score_decoder(
        decoder,
        LatentDecoder(sample.pipeline.vae).eval(),
        cache.latents,
        message_from_string(about["message"], bits=sample.extractor.config.bits),
        sample.extractor,
        classifier=sample.classifier,
        segmenter=sample.segmenter,
        findings=FINDINGS[modality],
        generator=sample.generator("watermark"),
    )
    figures = {row["attack"]: with_interval(row, "bit_accuracy") for row in scores["attacks"]}
    quality = scores["quality"]
    names = [name for name in ("psnr", "ssim", "psnr_gap") if name in quality]
    figures |= {name: with_interval(quality, name) for name in names}
    return figures | {"change": with_interval(scores["diagnosis"][-1], "change")} | scores


def unmarked(sample: Sample) -> dict:
    """The empirical false-positive rate of both messages on every test phantom of the manifest."""
    test = [r for r in sample.manifest if r.split == "test"]
    size = image_size(sample.pipeline)
    logits = torch.cat([
        extract_logits(sample.extractor, quantise(read_images(test[i : i + 100], size)))
        for i in range(0, len(test), 100)
    ])  # fmt: skip
    rows = {}
    for modality in ("chest", "fundus"):
        text = load_decoder(sample.weights / f"decoder_{modality}", sample.pipeline.vae)[1]
        message = message_from_string(text["message"], bits=logits.shape[1])
        rows[modality] = empirical_false_positive_rate(logits, message)
    bias = (bit_bias(logits) - 0.5).abs()
    return {"images": len(test), "rows": rows,
            "bit_bias": {"mean": float(bias.mean()), "largest": float(bias.max())}}  # fmt: skip


MEASUREMENTS: dict[str, Callable[[Sample], dict]] = {
    "weights": weights,
    "localisation": localisation,
    "unmarked": unmarked,
    **{
        f"{function.__name__}_{modality}": partial(function, modality=modality)
        for modality in ("chest", "fundus")
        for function in (reconstruction, judges, generation, localisation_generated, watermark)
    },
}
