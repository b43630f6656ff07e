"""The decoders of the paper's Table 2 and of the controls it lacks, trained alike.

    python -m medsign_lite.sample_cache --data MANIFEST --modality chest --count 1504 \\
        --scale sharp --kinds sharp literal sharp_without_cas without_aas --out CACHE
    python -m medsign_lite.tables.ablations --modality chest --cache CACHE --data MANIFEST \\
        --out FOLDER --seeds 0 1 2 --steps 240 --start-share 0.5 \\
        --read-well 0.9 --first-quality 0.05

For every seed one short run with the message and the image loss alone gives the start that its
variants go on from, so that they differ in nothing but what their name says. A seed is another
message, other batches and other attacks. Everything else, the losses' weights, the attacks and the
perceptual loss, is the recipe of the shipped decoder, read from its folder (--like). A finished
decoder is not trained again, and a killed run goes on when the same command is given. What is
recorded in results/ was trained when the shipped decoders had a preservation of 1,500,000, and an
SSIM that weighed 60 and 50; --preservation takes the place of what they have now.

Give --steps where runs are to be compared: in the same minutes a busy processor does fewer. Short
runs do not get to read as well as the shipped decoder, and as long as they do not, the factor of
the image losses stays where it began, and decoders are compared at whatever bit accuracy each has
reached. A lower --read-well and --first-quality let all of them reach that one, and hold them
there. With a few hundred samples a decoder learns by heart which places to spare, and ablations
about places say nothing. Several processes may train seeds or variants into one --out, once the
first of them has encoded the masks.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from medsign_lite.checkpoints import digest, load_checkpoint
from medsign_lite.data import MODALITIES, read_manifest
from medsign_lite.decoder_recipe import STABLE_SIGNATURE_RATIO, STABLE_SIGNATURE_STEPS
from medsign_lite.extractor import load_extractor
from medsign_lite.finetuning import HELD_OUT, fit
from medsign_lite.latent_cache import LatentCache, joined, read_latent_cache, with_mirrored
from medsign_lite.latent_diffusion import (
    BUNDLED,
    LatentDecoder,
    copy_decoder,
    image_size,
    load_decoder,
    load_pipeline,
)
from medsign_lite.losses import LossWeights
from medsign_lite.map_variants import agreement, mask_cache, mirrored_map, uniform_map
from medsign_lite.messages import random_message
from medsign_lite.perceptual import perceptual_of
from medsign_lite.sample_cache import choose_records
from medsign_lite.training.processor import tune_processor

BASE = "sharp"  # the kind of map of the shipped decoders, which the controls are made from
# Of the recipe: what the configuration of a decoder says and `fit` takes.
_TAKEN = (
    *("layers", "optimiser", "learning_rate", "batch_size", "reads", "attack_names", "temperature"),
    *("read_well", "first_quality", "last_quality", "quality_growth", "average"),
)
_BEFORE = {
    "layers": [],
    "optimiser": "adamw",
    "reads": 1,
}  # of decoders that were made before it was a choice


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one of the decoders is trained with, where it differs from MedSign.

    Attributes:
        title: as a table shows it.
        kind: of the maps in the cache; "uniform", "mirrored" and "masks" are made here.
        without: names of losses whose weight is zero.
        alone: as Stable Signature is trained: from the original decoder, without attacks, the ratio
            of its two losses fixed, for as few steps as published (`decoder_recipe.py`).
    """

    title: str
    kind: str = BASE
    without: tuple[str, ...] = ()
    alone: bool = False


KEPT = ("total_variation", "preservation")
VARIANTS = {
    "medsign": Variant(title="MedSign"),
    "medsign_literal": Variant(title="MedSign, literal map", kind="literal"),
    "without_aas": Variant(title="without AAS", kind="without_aas"),
    "without_cas": Variant(title="without CAS", kind="sharp_without_cas"),
    "without_tv": Variant(title="without total variation", without=("total_variation",)),
    "without_preservation": Variant(title="without preservation", without=("preservation",)),
    "stable_signature": Variant(title="Stable Signature", without=KEPT, alone=True),
    # All that MedSign has but its own two losses: what attacks in training bring by themselves.
    "stable_signature_attacked": Variant(
        title="Stable Signature, attacked in training", without=KEPT
    ),
    "uniform_map": Variant(title="uniform map of equal mean", kind="uniform"),
    "wrong_side_map": Variant(title="map on the wrong side", kind="mirrored"),
    "exact_mask_map": Variant(title="exact mask as map", kind="masks"),
}
START = Variant(title="common start", without=KEPT)


def weights_of(weights: LossWeights, variant: Variant) -> LossWeights:
    """The recipe's weights with those of the variant's missing losses at zero."""
    return replace(weights, **dict.fromkeys(variant.without, 0.0))


def recipe_of(config: Mapping, perceptual_weights: str | Path | None = None) -> dict:
    """Keyword arguments of `fit` from the configuration that a decoder's folder holds.

    Args:
        perceptual_weights: the published file, of a decoder that was trained with Watson-VGG.

    Raises:
        ValueError: if the configuration lacks one of them.
    """
    config = _BEFORE | dict(config)
    if missing := [name for name in (*_TAKEN, "weights", "perceptual") if name not in config]:
        raise ValueError(f"the decoder's configuration does not say {', '.join(missing)}")
    return {name: config[name] for name in _TAKEN} | {
        "weights": LossWeights(**config["weights"]),
        "perceptual": perceptual_of(config["perceptual"], perceptual_weights),
    }


@dataclass(frozen=True, kw_only=True)
class Caches:
    """Latents with the maps of any variant.

    Attributes:
        folder: of a cache with the kinds that are asked for.
        modality: for the wrong side.
        pipeline: whose decoder made the originals.
        masked: records with exact masks to encode, for the kind "masks"; and their folder.
        mirrored: train also on all but the last `held_out` mirrored, as `with_mirrored` makes them.
    """

    folder: Path
    modality: str
    pipeline: object
    masked: Sequence = ()
    masked_folder: Path | None = None
    mirrored: bool = False
    held_out: int = HELD_OUT
    # What takes minutes to decode, and is asked for by several variants and seeds.
    _mirrored: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    _masks: list[LatentCache] = field(default_factory=list, repr=False, compare=False)

    def training(self, kind: str) -> LatentCache:
        """What a decoder is trained on: the cache with these maps, mirrored too if wanted."""
        cache = self.of_kind(kind)
        if not self.mirrored:
            return cache
        decoder, name = LatentDecoder(self.pipeline.vae).eval(), digest([cache.latents])
        train, test = cache.split(len(cache) - self.held_out)
        train = with_mirrored(train, decoder, originals=self._mirrored.get(name))
        self._mirrored[name] = train.originals  # the same whatever the maps
        return joined(train, test)

    def of_kind(self, kind: str) -> LatentCache:
        """The cache with these maps.

        Raises:
            ValueError: if the folder lacks the kind, or there are no records to take masks from.
        """
        decoder = LatentDecoder(self.pipeline.vae).eval()
        if kind == "masks":
            if not self.masked:
                raise ValueError("exact masks need phantoms: name their manifest with --data")
            if not self._masks:
                size = image_size(self.pipeline)
                self._masks.append(mask_cache(
                    self.masked, self.pipeline.vae, decoder, self.masked_folder, size=size
                ))  # fmt: skip
            return self._masks[0]
        made = kind in ("uniform", "mirrored")
        cache = read_latent_cache(self.folder, decoder, kind=BASE if made else kind)
        if kind == "uniform":
            return replace(cache, maps=uniform_map(cache.maps.float()).half())
        if kind == "mirrored":
            return replace(cache, maps=mirrored_map(cache.maps, self.modality))
        return cache

    def about(self, kind: str) -> dict:
        """How high the maps are, and how much they are like the base kind's (None: not at all
        comparable, being constant or of other images)."""
        maps = self.of_kind(kind).maps.float()
        same = None
        if kind != "masks":
            values = agreement(maps, self.of_kind(BASE).maps.float())
            known = values[~values.isnan()]
            same = float(known.mean()) if len(known) else None
        figures = {"mean": float(maps.double().mean()), "agreement": same,
                   "mean_square": float(maps.double().square().mean())}  # fmt: skip
        # Another number of threads adds in another order.
        return {"kind": kind} | {
            name: None if value is None else round(value, 6) for name, value in figures.items()
        }


def _weights_digest(folder: Path) -> str:
    state = load_checkpoint(folder, kind="decoder")[0]
    return digest([state[name] for name in sorted(state)])


def train(
    name: str,
    variant: Variant,
    caches: Caches,
    extractor,
    recipe: Mapping,
    out: Path,
    *,
    seed: int,
    budget: Mapping,
    start: Path | None = None,
) -> Path:
    """Train one decoder, or find it trained: its folder.

    Args:
        recipe: from `recipe_of`.
        out: run folder; the decoder is `out`/decoder.
        budget: {"minutes": ...} or {"steps": ...}.
        start: folder of the decoder to go on from; None is the original one.

    Raises:
        ValueError: if the folder holds a decoder that was trained otherwise.
    """
    cache = caches.training(variant.kind)
    weights = weights_of(recipe["weights"], variant)
    if variant.alone:
        ratio = STABLE_SIGNATURE_RATIO
        recipe = {**recipe, "first_quality": ratio, "last_quality": ratio, "reads": 1}
    mapped = weights.preservation > 0
    about = {
        "name": name, "seed": seed, **budget, "mirrored": caches.mirrored,
        "weights": vars(weights), "perceptual": recipe["perceptual"].name,
        "alone": variant.alone, **{key: recipe[key] for key in _TAKEN},
        "cache": digest([cache.latents, cache.maps] if mapped else [cache.latents]),
        "map": caches.about(variant.kind) if mapped else None,
        "start": None if start is None else _weights_digest(start),
    }  # fmt: skip
    finished = out / "decoder"
    if (finished / "config.json").is_file():
        config = load_checkpoint(finished, kind="decoder")[1]
        also = {"extractor": digest(extractor), "held_out": caches.held_out}
        found = (config.get("ablation") or {}) | {key: config.get(key) for key in also}
        if found != about | also:
            raise ValueError(f"{finished} was trained otherwise: {found}, wanted is {about | also}")
        print(f"{name}, seed {seed}: already trained")
        return finished
    print(f"{name}, seed {seed}: training", flush=True)
    vae = caches.pipeline.vae
    decoder = copy_decoder(vae) if start is None else load_decoder(start, vae)[0]
    options = {key: value for key, value in recipe.items() if key != "weights"}
    fit(
        decoder, cache, _message(extractor, seed), extractor, weights, out,
        **options, **budget, seed=seed, held_out=caches.held_out,
        attack_strength=0.0 if variant.alone else 1.0,
        details={"modality": caches.modality, "ablation": about},
    )  # fmt: skip
    return finished


def _message(extractor, seed: int) -> Tensor:
    return random_message(extractor.config.bits, generator=torch.Generator().manual_seed(seed))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medsign_lite.tables.ablations", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--modality", choices=MODALITIES, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="latents with maps of all kinds")
    parser.add_argument("--out", type=Path, required=True, help="gets VARIANT/seed-N/decoder")
    weights = BUNDLED.parent
    parser.add_argument("--extractor", type=Path, default=weights / "extractor")
    parser.add_argument("--pipeline", type=Path, default=BUNDLED)
    parser.add_argument("--like", type=Path, help="decoder whose recipe is taken: the shipped one")
    parser.add_argument("--data", type=Path, help="manifest with exact masks, for exact_mask_map")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="of training of each variant")
    length.add_argument("--steps", type=int, help="instead of a time")
    parser.add_argument("--start-share", type=float, default=1.0, help=(
        "training of the common start, in shares of a variant's"))  # fmt: skip
    parser.add_argument("--learning-rate", type=float, help="another than the recipe's")
    parser.add_argument("--batch-size", type=int, help="another than the recipe's")
    parser.add_argument("--read-well", type=float, help="another than the recipe's")
    parser.add_argument("--first-quality", type=float, help="another than the recipe's")
    parser.add_argument("--preservation", type=float, help="another than the recipe's")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="entries never trained on")
    parser.add_argument("--perceptual-weights", type=Path, help=(
        "published Watson-VGG .pth, if --like was trained with it"))  # fmt: skip
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    options = parser.parse_args(arguments)
    if "exact_mask_map" in options.only and options.data is None:
        parser.error("exact_mask_map needs --data, a manifest of phantoms; or choose with --only")
    tune_processor()
    extractor = load_extractor(options.extractor)
    like = options.like or weights / f"decoder_{options.modality}"
    made = load_checkpoint(like, kind="decoder")[1]
    recipe = recipe_of(made, options.perceptual_weights)
    for name in ("learning_rate", "batch_size", "read_well", "first_quality"):
        if (given := getattr(options, name)) is not None:
            recipe[name] = given
    if options.preservation is not None:
        recipe["weights"] = replace(recipe["weights"], preservation=options.preservation)
    caches = _caches(options, mirrored=made.get("mirrored", False))
    for kind in dict.fromkeys(VARIANTS[name].kind for name in options.only):
        caches.of_kind(kind)  # what is missing is said before anything is trained
    unit = "minutes" if options.steps is None else "steps"
    one = getattr(options, unit)
    for seed in options.seeds:
        run = {"caches": caches, "extractor": extractor, "recipe": recipe, "seed": seed}
        start, first = None, _times(one, options.start_share)
        for name in options.only:
            variant = VARIANTS[name]
            folder, budget = options.out / name / f"seed-{seed}", {unit: one}
            if variant.alone:
                most = STABLE_SIGNATURE_STEPS if options.steps is None else one + first
                budget = {"steps": min(STABLE_SIGNATURE_STEPS, most)}
                train(name, variant, out=folder, budget=budget, **run)
                continue
            if start is None:
                folder_of_start = options.out / "start" / f"seed-{seed}"
                start = train("start", START, out=folder_of_start, budget={unit: first}, **run)
            train(name, variant, out=folder, budget=budget, start=start, **run)


def _times(budget: float, share: float) -> float:
    return round(budget * share) if isinstance(budget, int) else budget * share


def _caches(options: argparse.Namespace, *, mirrored: bool) -> Caches:
    pipeline = load_pipeline(options.pipeline)
    caches = Caches(
        folder=options.cache, modality=options.modality, pipeline=pipeline, mirrored=mirrored,
        held_out=options.held_out,
    )  # fmt: skip
    if options.data is None:
        return caches
    count = len(caches.of_kind(BASE))
    records = choose_records(
        read_manifest(options.data, check_files=False),
        modality=options.modality, split="train", count=count,
    )  # fmt: skip
    masks = options.out / f"masks-{count}"
    return replace(caches, masked=records, masked_folder=masks)


if __name__ == "__main__":
    main()
