"""Generated samples with their pathology maps, made in shards so that a killed run goes on.

    python -m medsign_lite.sample_cache --data MANIFEST --modality chest --count 1000 --out FOLDER

Sampling is the slow part of preparing the decoder's fine-tuning, and neither latents nor maps nor
the original decoder's images change while it runs: they are made once, from the reports of a
manifest, and kept. A batch is a shard; several processes may each make their part of them.
"""

import argparse
import copy
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from medsign_lite.checkpoints import digest
from medsign_lite.data import MODALITIES, SPLITS, Record, read_manifest
from medsign_lite.files import whole_file
from medsign_lite.generators import PRECISIONS, sampling_dtype
from medsign_lite.latent_cache import PROMPTS, TENSORS, decode_bytes
from medsign_lite.latent_diffusion import (
    BUNDLED,
    LatentDecoder,
    check_prompts,
    image_size,
    load_pipeline,
    scale_factor,
)
from medsign_lite.localisation import WordCutOff, cas_settings, pathology_map, word_tokens
from medsign_lite.map_variants import MAP_KINDS
from medsign_lite.memory_estimate import check_memory, estimate_sampling
from medsign_lite.shards import check_disk, join_shards, write_shard
from medsign_lite.training.processor import tune_processor
from medsign_lite.training.training_state import check_settings, plain_settings

SETTINGS = "settings.json"
SHARDS = "shards"
DECODED = 4  # originals at a time: decoding needs more memory per image than sampling
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
    kinds: Sequence[str] = (),
    truncate: bool = False,
    worker: int = 0,
    workers: int = 1,
    replace: bool = False,
    progress: bool = True,
) -> Path:
    """Sample every prompt, map its words, and write the folder that fine-tuning reads.

    However many prompts there are, one batch is in memory at a time. On disk an image takes
    2 bytes per latent number, 2 per map pixel and 3 for its colours, 8 GB for 6,000 images of
    512 x 512, and twice that while shards are joined.

    Args:
        pipeline: a `StableDiffusionPipeline`.
        prompts, words, seeds: N of each; an image without words has a map of zeros. Empty words,
            of findings that a report has no word of, are left out.
        folder: holds the finished shards while it runs, a latent cache at the end.
        batch: images sampled at a time, and the size of a shard.
        select, cas, scale, quantile: as in `pathology_map`.
        kinds: names of `MAP_KINDS`, maps of the same samples that are kept beside the others.
        truncate: let prompts that are too long be cut, instead of refusing them; words that are
            cut off are left out of the maps, and their number is printed.
        worker, workers: make every `workers`-th shard, from number `worker`. Several workers leave
            the shards; a call without these, once they are done, joins them.
        replace: make anew what the folder holds if it was made otherwise, instead of refusing.

    Returns:
        The folder, to be read by `read_latent_cache`.

    Raises:
        ValueError: if a word is not in its prompt or is cut off, a prompt is too long, or the
            folder's samples are of other settings.
        MemoryError, OSError: if memory or disk will not do; like the former, found before
            anything is sampled.
        RuntimeError: if numbers overflowed in half precision.
    """
    folder = Path(folder)
    if not len(prompts) == len(words) == len(seeds):
        raise ValueError(
            "expected as many prompts as word lists and seeds, got "
            f"{len(prompts)}, {len(words)} and {len(seeds)}"
        )
    if unknown := set(kinds) - set(MAP_KINDS):
        raise ValueError(f"kinds: expected some of {tuple(MAP_KINDS)}, got {sorted(unknown)}")
    if not 0 <= worker < workers:
        raise ValueError(f"expected a worker in [0, {workers}), got {worker}")
    words, positions = _words_read(pipeline.tokenizer, prompts, words, truncate=truncate)
    if not truncate:
        check_prompts(pipeline.tokenizer, prompts)
    options = {"steps": steps, "guidance": guidance, "select": select, "cas": cas, "scale": scale,
               "quantile": quantile}  # fmt: skip
    networks = {"model": pipeline.unet, "decoder": LatentDecoder(pipeline.vae),
                "text_encoder": pipeline.text_encoder}  # fmt: skip
    settings = plain_settings(
        **{name: digest(network) for name, network in networks.items()},
        scheduler=_digest([type(pipeline.scheduler).__name__, *sorted(
            f"{name}: {value}" for name, value in pipeline.scheduler.config.items()
            if not name.startswith("_")
        )]),
        prompts=_digest([list(prompts), [list(some) for some in words], list(seeds)]),
        batch=batch, **options | {"cas": dict(cas or {})},
    )  # fmt: skip
    if kinds:  # of the settings only where there are any: caches from before stay what they are
        options["kinds"] = {name: MAP_KINDS[name] for name in kinds}
        settings["kinds"] = sorted(kinds)
    if pipeline.unet.dtype != torch.float32:
        settings["precision"] = str(pipeline.unet.dtype).removeprefix("torch.")
    begun = _begun(folder, settings, replace=replace, alone=workers == 1, earlier=_ends(pipeline))
    if begun and (folder / TENSORS).is_file() and (folder / PROMPTS).is_file():
        shutil.rmtree(folder / SHARDS, ignore_errors=True)
        return folder
    starts = range(0, len(prompts), batch)
    files = [folder / SHARDS / f"{start:06d}-{batch}.safetensors" for start in starts]
    mine = list(zip(starts, files, strict=True))[worker::workers]
    if missing := [(start, file) for start, file in mine if not file.is_file()]:
        tokens = max(len(set().union(*positions[start : start + batch])) for start, _ in missing)
        estimate = estimate_sampling(
            pipeline, batch=min(batch, len(prompts)), tokens=max(tokens, 1), guidance=guidance,
            decoded=min(DECODED, batch),
        )  # fmt: skip
        check_memory(estimate, pipeline._execution_device)
        images = len(missing) * batch + len(prompts)
        folder.mkdir(parents=True, exist_ok=True)
        check_disk(folder, _disk_bytes(pipeline, images, maps=1 + len(kinds)))
        if not begun:
            with whole_file(folder / SETTINGS) as file:
                file.write((json.dumps(settings, indent=2) + "\n").encode())
        decoder = LatentDecoder(pipeline.vae)
        if pipeline.vae.dtype != torch.float32:  # what every figure is measured against is exact
            decoder = copy.deepcopy(decoder).float()
        bar = tqdm(missing, desc=f"samples, {estimate}", unit="batch", disable=not progress)
        for start, file in bar:
            some = slice(start, start + batch)
            write_shard(file, _shard(
                pipeline, decoder, prompts[some], words[some], seeds[some], options,
            ))  # fmt: skip
    if workers == 1:
        with whole_file(folder / PROMPTS) as file:
            file.write((json.dumps(list(prompts), indent=0, ensure_ascii=False) + "\n").encode())
        join_shards(files, folder / TENSORS)
        shutil.rmtree(folder / SHARDS)
    return folder


def _shard(pipeline, decoder, prompts, words, seeds, options: Mapping) -> dict[str, torch.Tensor]:
    result = pathology_map(pipeline, prompts, words, seeds=seeds, **options)
    latents = result.latents.half().cpu()
    maps = {"maps": result.maps.half()}
    maps |= {f"maps_{name}": other.half() for name, other in result.others.items()}
    if not all(values.isfinite().all() for values in (latents, *maps.values())):
        raise RuntimeError(
            f"samples of seeds {seeds[0]} to {seeds[-1]} are not finite in {pipeline.unet.dtype}: "
            "sample in float32 or bfloat16"
        )
    # Of the latents as they are kept, so that the file can be checked against the decoder.
    parts = [decode_bytes(decoder, part) for part in latents.split(DECODED)]
    return {"latents": latents, **maps, "originals": torch.cat(parts)}


def _disk_bytes(pipeline, images: int, *, maps: int) -> int:
    height, width = image_size(pipeline)
    latents = pipeline.unet.config.in_channels * height * width // scale_factor(pipeline.vae) ** 2
    return images * (2 * latents + (2 * maps + 3) * height * width)


def _digest(value: Sequence) -> str:
    value = [part.tolist() if isinstance(part, torch.Tensor) else part for part in value]
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _ends(pipeline) -> dict[str, str]:
    """The networks as caches of earlier versions name them: by two tensors of each."""
    decoder = list(LatentDecoder(pipeline.vae).parameters())
    return {
        "model": _digest((pipeline.unet.conv_in.weight, pipeline.unet.conv_out.bias)),
        "decoder": _digest((decoder[0], decoder[-1])),
        "text_encoder": _digest(list(pipeline.text_encoder.parameters())[-2:]),
    }


def _words_read(
    tokenizer, prompts: Sequence[str], words: Sequence[Sequence[str]], *, truncate: bool
) -> tuple[list[list[str]], list[set[int]]]:
    """The words of each prompt that the text encoder reads, and the positions of their tokens."""
    read, positions, cut = [], [], 0
    for number, (prompt, some) in enumerate(zip(prompts, words, strict=True)):
        read.append([])
        positions.append(set())
        for word in filter(None, some):
            try:
                found = word_tokens(tokenizer, prompt, word)
            except WordCutOff as error:
                if not truncate:
                    raise WordCutOff(f"prompt {number}: {error}") from error
                cut += 1
                continue
            except ValueError as error:
                raise type(error)(f"prompt {number}: {error}") from error
            read[-1].append(word)
            positions[-1].update(found)
    if cut:
        print(
            f"{cut} words are cut off with their prompts, and are not in the maps", file=sys.stderr
        )
    return read, positions


def _begun(
    folder: Path, settings: dict, *, replace: bool, alone: bool, earlier: Mapping[str, str]
) -> bool:
    """Whether the folder holds samples of these settings; others are refused, or removed.

    Settings without a sample are those of a run that failed before its first one, and bind nobody;
    beside other workers they may be those of one that has just begun.
    """
    path, made = folder / SETTINGS, [folder / TENSORS, folder / PROMPTS]
    sampled = any(some.exists() for some in (*made, folder / SHARDS))
    if not sampled and (alone or not path.is_file()):
        return False
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for later in ("decoder", "text_encoder", "scheduler"):  # caches from before do not name them
        saved.setdefault(later, settings[later])
    for name, ends in earlier.items():
        if saved.get(name) == ends:
            saved[name] = settings[name]
    if replace and saved != settings:
        for old in (path, *made):
            old.unlink(missing_ok=True)
        shutil.rmtree(folder / SHARDS, ignore_errors=True)
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
    parser.add_argument("--unet", type=Path, help="folder of another U-Net for it")
    parser.add_argument("--precision", default="float32", choices=("auto", *PRECISIONS), help=(
        "of the weights; auto is half on a GPU, faster and in half the memory"))  # fmt: skip
    parser.add_argument("--attention-slicing", action="store_true", help=(
        "one head at a time, where the device has no fused attention"))  # fmt: skip
    parser.add_argument("--offload", action="store_true", help=(
        "keep in main memory what does not work at the moment"))  # fmt: skip
    parser.add_argument("--truncate", action="store_true", help="cut reports that are too long")
    parser.add_argument("--workers", type=int, default=1, help=(
        "processes that share the shards; call once more without it to join them"))  # fmt: skip
    parser.add_argument("--worker", type=int, default=0, help="number of this one, from 0")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--scale", default="literal", choices=("literal", "sharp", "hard"))
    parser.add_argument("--quantile", type=float, default=0.7, help="of AAS")
    parser.add_argument("--kinds", nargs="+", default=[], choices=MAP_KINDS, help=(
        "further maps of the same samples, for the ablations"))  # fmt: skip
    parser.add_argument("--cas-side", type=int, help=(
        "side that token maps are enlarged to before CAS clusters them; default: as the latents "
        "need it"))  # fmt: skip
    parser.add_argument("--cas-quantile", type=float, help=(
        "CAS clusters the pixels above this quantile of a token's map; default: likewise"
    ))  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    tune_processor()
    records = choose_records(
        read_manifest(options.data, check_files=False),
        modality=options.modality,
        split=options.split,
        count=options.count,
    )
    pipeline = load_pipeline(
        options.pipeline,
        unet=options.unet,
        device=options.device,
        dtype=sampling_dtype(options.device, options.precision),
        attention_slicing=options.attention_slicing,
        offload=options.offload,
    )
    given = {"side": options.cas_side, "quantile": options.cas_quantile}
    cas = cas_settings(pipeline) | {k: value for k, value in given.items() if value is not None}
    sample_with_maps(
        pipeline,
        [record.report for record in records],
        [record.words for record in records],
        options.out,
        seeds=[FIRST_SEED[options.split] + i for i in range(options.count)],
        steps=options.steps,
        guidance=options.guidance,
        batch=options.batch,
        cas=cas,
        scale=options.scale,
        quantile=options.quantile,
        kinds=options.kinds,
        truncate=options.truncate,
        worker=options.worker,
        workers=options.workers,
    )


if __name__ == "__main__":
    main()
