"""Generated samples with their pathology maps, made in parts so that a killed run goes on.

    python -m medsign_lite.sample_cache --data MANIFEST --modality chest --count 1000 --out FOLDER

Sampling is the slow part of preparing the decoder's fine-tuning, and neither latents nor maps
change while it runs: they are made once, from the reports of a manifest, and kept.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from tqdm.auto import tqdm

from medsign_lite.data import MODALITIES, SPLITS, Record, read_manifest
from medsign_lite.files import whole_file
from medsign_lite.latent_cache import PROMPTS, TENSORS, write_latent_cache
from medsign_lite.latent_diffusion import BUNDLED, load_pipeline
from medsign_lite.localisation import pathology_map, word_tokens
from medsign_lite.training_state import check_settings, plain_settings

SETTINGS = "settings.json"
# Far from the phantoms' own seeds and from the small numbers that people type.
FIRST_SEED = {"train": 3_000_000, "validation": 4_000_000, "test": 5_000_000}


def choose_records(
    records: Sequence[Record], *, modality: str, split: str, count: int
) -> list[Record]:
    """The first `count` records of a split and modality, again from the start if there are fewer.

    Raises:
        ValueError: if there is none at all.
    """
    chosen = [r for r in records if r.modality == modality and r.split == split]
    if not chosen:
        raise ValueError(f"the manifest has no {modality} image of the {split} split")
    return [chosen[i % len(chosen)] for i in range(count)]


def sample_with_maps(
    pipeline,
    prompts: Sequence[str],
    words: Sequence[Sequence[str]],
    folder: str | Path,
    *,
    seeds: Sequence[int],
    steps: int = 25,
    guidance: float = 3.0,
    batch: int = 32,
    select: str = "cas",
    cas: Mapping | None = None,
    scale: str | None = "literal",
    quantile: float = 0.7,
    replace: bool = False,
    progress: bool = True,
) -> Path:
    """Sample every prompt, map its words, and write the folder that fine-tuning reads.

    Args:
        pipeline: a `StableDiffusionPipeline`.
        prompts, words, seeds: N of each; an image without words has a map of zeros.
        folder: holds the finished parts while it runs, a latent cache at the end.
        select, cas, scale, quantile: as in `pathology_map`.
        replace: make anew what the folder holds if it was made otherwise, instead of refusing.

    Returns:
        The folder, to be read by `read_latent_cache`.

    Raises:
        ValueError: if a word is not in its prompt or is cut off, or if the folder's samples are
            of other settings; found before anything is sampled.
    """
    folder = Path(folder)
    if not len(prompts) == len(words) == len(seeds):
        raise ValueError(
            "expected as many prompts as word lists and seeds, got "
            f"{len(prompts)}, {len(words)} and {len(seeds)}"
        )
    for prompt, some in zip(prompts, words, strict=True):
        for word in some:
            word_tokens(pipeline.tokenizer, prompt, word)
    ends = pipeline.unet.conv_in.weight, pipeline.unet.conv_out.bias  # any training changes them
    settings = plain_settings(
        model=_digest([weight.tolist() for weight in ends]),
        prompts=_digest([list(prompts), [list(some) for some in words], list(seeds)]),
        steps=steps, guidance=guidance, batch=batch, select=select, cas=dict(cas or {}),
        scale=scale, quantile=quantile,
    )  # fmt: skip
    if not _goes_on(folder, settings, replace=replace):
        with whole_file(folder / SETTINGS) as file:
            file.write((json.dumps(settings, indent=2) + "\n").encode())
    elif (folder / TENSORS).is_file() and (folder / PROMPTS).is_file():
        return folder
    parts = folder / "parts"
    files = []
    starts = range(0, len(prompts), batch)
    for start in tqdm(starts, desc="samples", unit="batch", disable=not progress):
        files.append(parts / f"{start:06d}-{batch}.safetensors")
        if files[-1].is_file():
            continue
        chosen = slice(start, start + batch)
        result = pathology_map(
            pipeline,
            prompts[chosen],
            words[chosen],
            seeds=seeds[chosen],
            steps=steps,
            guidance=guidance,
            select=select,
            cas=cas,
            scale=scale,
            quantile=quantile,
        )
        part = {"latents": result.latents.half().cpu(), "maps": result.maps.half()}
        with whole_file(files[-1]) as file:
            file.write(to_safetensors({name: value.contiguous() for name, value in part.items()}))
    loaded = [load_file(file) for file in files]
    latents, maps = (torch.cat([part[name] for part in loaded]) for name in ("latents", "maps"))
    write_latent_cache(folder, latents, maps, list(prompts))
    shutil.rmtree(parts)
    return folder


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _goes_on(folder: Path, settings: dict, *, replace: bool) -> bool:
    """Whether the folder holds samples of these settings; others are refused, or removed."""
    own = [folder / name for name in (SETTINGS, TENSORS, PROMPTS)]
    if not any(path.exists() for path in (*own, folder / "parts")):
        return False
    saved = json.loads(own[0].read_text(encoding="utf-8")) if own[0].is_file() else {}
    if replace and saved != settings:
        for path in own:
            path.unlink(missing_ok=True)
        shutil.rmtree(folder / "parts", ignore_errors=True)
        return False
    check_settings(saved, settings, folder=folder)
    return True


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True, help="manifest with the reports")
    parser.add_argument("--modality", choices=MODALITIES, required=True)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--pipeline", type=Path, default=BUNDLED, help="diffusers folder")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--scale", default="literal", choices=("literal", "sharp", "hard"))
    parser.add_argument("--quantile", type=float, default=0.7, help="of AAS")
    parser.add_argument("--cas-side", type=int, default=64, help=(
        "side that token maps are enlarged to before CAS clusters them"))  # fmt: skip
    parser.add_argument("--cas-quantile", type=float, default=0.9, help=(
        "CAS clusters the pixels above this quantile of a token's map"))  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    records = choose_records(
        read_manifest(options.data, check_files=False),
        modality=options.modality,
        split=options.split,
        count=options.count,
    )
    sample_with_maps(
        load_pipeline(options.pipeline, device=options.device),
        [record.report for record in records],
        [record.words for record in records],
        options.out,
        seeds=[FIRST_SEED[options.split] + i for i in range(options.count)],
        steps=options.steps,
        guidance=options.guidance,
        batch=options.batch,
        cas={"side": options.cas_side, "quantile": options.cas_quantile},
        scale=options.scale,
        quantile=options.quantile,
    )


if __name__ == "__main__":
    main()
