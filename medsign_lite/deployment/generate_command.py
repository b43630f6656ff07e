"""`medsign-lite generate`: watermarked images from prompts, each read back before it counts."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError
from torch import Tensor

from medsign_lite.deployment.detect_command import check_writable, detect_file
from medsign_lite.deployment.detection_table import Row, print_rows, row_of
from medsign_lite.deployment.key_detection import detect_keys
from medsign_lite.deployment.keys import Key, Registry, decoder_message, read_registry
from medsign_lite.deployment.provenance import (
    Provenance,
    identify_model,
    refuse_to_overwrite,
    write_synthetic_png,
)
from medsign_lite.extractor import AnyExtractor, load_extractor
from medsign_lite.files import whole_file
from medsign_lite.latent_diffusion import (
    LatentDecoder,
    check_prompts,
    decode,
    image_size,
    load_decoder,
    load_pipeline,
    sample,
)

UNREGISTERED = "unregistered"  # id of a decoder's message that is in no registry


def run(options: Namespace) -> int:
    """Carry the command out; 0 if every image reads back as its key's, 1 if not.

    Whatever is wrong with the options is found before anything is sampled.

    Raises:
        OSError, ValueError, RuntimeError: if it cannot be carried out.
    """
    prompts = read_prompts(options.prompt, options.prompts)
    prompts = [prompt for prompt in prompts for _ in range(options.count)]
    seeds = list(range(options.seed, options.seed + len(prompts)))
    files = [options.out / f"seed-{seed:06d}.png" for seed in seeds]
    for path in files:
        refuse_to_overwrite(path)
        refuse_to_overwrite(path.with_suffix(".json"))
    registry, key, decoder_folder = choose_key(options.keys, options.key, options.decoder)
    rate = options.false_positive_rate
    extractor = load_extractor(options.extractor, device=options.device)
    detect_keys(torch.zeros(0, extractor.config.bits), registry, false_positive_rate=rate)
    pipeline = load_quietly(options.pipeline, device=options.device)
    decoder, _ = load_decoder(decoder_folder, pipeline.vae)
    check_prompts(pipeline.tokenizer, prompts)
    check_writable(options.out)
    provenance = Provenance(
        model=identify_model(options.pipeline),
        decoder=identify_model(decoder_folder),
        key=key.id,
        seed=options.seed,
        steps=options.steps,
        guidance=options.guidance,
        size=image_size(pipeline),
    )
    rows = generate(
        pipeline, decoder, extractor, registry, prompts, files, provenance,
        batch=options.batch, keep_prompt=options.keep_prompt, false_positive_rate=rate,
    )  # fmt: skip
    names = [str(path) for path in files]
    failed = [row for row in print_rows(rows, names, file=sys.stdout) if row.key != key.id]
    print(f"images: {len(files)}, in {options.out}", file=sys.stderr)
    for row in failed:
        print(f"{row.image}: does not read back as key {key.id!r}", file=sys.stderr)
    return 1 if failed else 0


def read_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The prompts given, then those of a UTF-8 file, one on each line that is not blank.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not UTF-8, a prompt is blank, or there is none.
    """
    prompts = [prompt.strip() for prompt in prompts]
    if "" in prompts:
        raise ValueError(f"--prompt: number {prompts.index('') + 1} is blank")
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"--prompts {file}: expected UTF-8 text") from error
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError("expected at least one prompt: --prompt TEXT or --prompts FILE")
    return prompts


def choose_key(keys: Path, key_id: str | None, decoder: Path | None) -> tuple[Registry, Key, Path]:
    """Which key to write, with which decoder, and which registry to read it back with.

    Args:
        keys: file of a registry.
        key_id: a key of it that names its decoder; or None, and
        decoder: a folder, whose message may or may not be in the registry.

    Returns:
        (registry, key, decoder's folder). A message that is in no registry makes one of its own.

    Raises:
        ValueError: if the key is not in the registry, names no decoder, or has another message
            than its decoder; see also `read_registry` and `decoder_message`.
    """
    registry = read_registry(keys)
    if key_id is None:
        message, modality = decoder_message(decoder)
        known = [key for key in registry.keys if key.message == message]
        key = known[0] if known else Key(id=UNREGISTERED, message=message, modality=modality)
        return (registry if known else Registry(bits=len(message), keys=(key,))), key, decoder
    key = registry.find(key_id)
    if not key.decoder:
        raise ValueError(f"key {key_id!r} names no decoder in {keys}: give --decoder FOLDER")
    folder = keys.parent / key.decoder
    if decoder_message(folder)[0] != key.message:
        raise ValueError(
            f"key {key_id!r} and its decoder {folder} have different messages: the decoder was "
            "replaced since the registry was written"
        )
    return registry, key, folder


def load_quietly(folder: Path, *, device: str) -> StableDiffusionPipeline:
    """`load_pipeline` without progress bars, and with a plain word about damaged weights.

    Raises:
        FileNotFoundError, ValueError: as `load_pipeline`; also if a file is truncated or damaged.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        return load_pipeline(folder, device=device)
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError) as error:  # diffusers' own, and transformers'
        raise ValueError(f"pipeline {folder}: a file is truncated or damaged: {error}") from error


def generate(
    pipeline: StableDiffusionPipeline,
    decoder: LatentDecoder,
    extractor: AnyExtractor,
    registry: Registry,
    prompts: Sequence[str],
    files: Sequence[Path],
    provenance: Provenance,
    *,
    batch: int = 8,
    keep_prompt: bool = False,
    false_positive_rate: float = 1e-6,
) -> Iterator[Row]:
    """Sample, decode and write one image per prompt, and read each back from its file.

    Args:
        prompts, files: N of each; no file is overwritten.
        provenance: of them all; its seed is the first, the others count on from there.
        batch: images sampled at a time.
        keep_prompt: write the prompts into the files.

    Yields:
        What was read from each file, once it and its sidecar (.json) are there.
    """
    for start in range(0, len(prompts), batch):
        chosen = range(start, min(start + batch, len(prompts)))
        latents = sample(
            pipeline,
            [prompts[i] for i in chosen],
            seeds=[provenance.seed + i for i in chosen],
            steps=provenance.steps,
            guidance=provenance.guidance,
        )
        for i, image in zip(chosen, decode(decoder, latents, batch=batch), strict=True):
            prompt = prompts[i] if keep_prompt else None
            own = replace(provenance, seed=provenance.seed + i, prompt=prompt)
            yield _write(image, files[i], own, extractor, registry, false_positive_rate)


def _write(
    image: Tensor, path: Path, provenance: Provenance, extractor: AnyExtractor,
    registry: Registry, false_positive_rate: float,
) -> Row:  # fmt: skip
    """The image and its sidecar, both or neither."""
    sidecar = path.with_suffix(".json")
    refuse_to_overwrite(sidecar)
    write_synthetic_png(image, path, provenance)
    try:
        detection = detect_file(path, extractor, registry, false_positive_rate=false_positive_rate)
        document = {**provenance.document(), "read_back": asdict(detection)}
        with whole_file(sidecar) as file:
            file.write((json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
    except BaseException:  # also Ctrl-C
        path.unlink(missing_ok=True)
        raise
    return row_of(str(path), detection)
