"""The latents of Tables 1 and 2 and of the attacker's images, kept with the results.

    python -m medsign_lite.records.table_samples --modality chest --images 500 --data MANIFEST \\
        --work FOLDER --out results/table_samples_chest.json

Two machines round differently, and after 25 steps of sampling their latents are no longer the same
to the bit. Rows of different images make no table, so a row that is measured again elsewhere takes
these: a file of 1 MB per modality, beside its record, which names the prompts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from medsign_lite.checkpoints import digest, weights_fingerprint
from medsign_lite.data import MODALITIES, Record, read_manifest
from medsign_lite.files import whole_file
from medsign_lite.latent_cache import read_latent_cache
from medsign_lite.latent_diffusion import BUNDLED, LatentDecoder, load_pipeline
from medsign_lite.records.held_out import RECORDED, readable
from medsign_lite.results import ROOT, read_result, record_result
from medsign_lite.sample_cache import FIRST_SEED, sample_with_maps
from medsign_lite.training.processor import tune_processor

TABLE_SEED = FIRST_SEED["test"] + 500_000  # of the first sample, far from the gates'
NAME = "table_samples"
RESULTS = ROOT / "results"


def table_records(
    tokenizer, records: Sequence[Record], *, modality: str, count: int
) -> list[Record]:
    """The reports that the tables' images are made from: the same for every row and command.

    Each report once, and none of the first `RECORDED` of the test split: by their figures it is
    decided which decoder is shipped, and a table that compares it with others must not use them.
    A manifest that is too small for that gives its first reports, and one whose reports repeat
    themselves repeats them here: each image has a seed of its own.

    Raises:
        ValueError: if there are too few reports, the same or not.
    """
    test = [r for r in records if r.modality == modality and r.split == "test"]
    test = readable(tokenizer, test)
    used = {r.report for r in test[:RECORDED]}
    later = [r for r in _one_of_each(test[RECORDED:]) if r.report not in used]
    for chosen in (later, _one_of_each(test), test):
        if len(chosen) >= count:
            return chosen[:count]
    raise ValueError(f"{count} {modality} reports are needed, the test split has {len(test)}")


def _one_of_each(records: Sequence[Record]) -> list[Record]:
    found: dict[str, Record] = {}
    for record in records:
        found.setdefault(record.report, record)
    return list(found.values())


def table_latents(
    pipeline, records: Sequence[Record], folder: str | Path, *, cache: str | Path | None = None
) -> Tensor:
    """Latents of the images that watermarks are scored on in the tables.

    Those that are kept with the results, if they are of this pipeline and these prompts; else they
    are sampled.

    Args:
        records: from `table_records`; their reports are the prompts.
        folder: where samples are kept; a killed run goes on.
        cache: a latent cache of the same prompts to read instead.

    Returns:
        (N, C, h, w), scaled, float32.

    Raises:
        ValueError: if the cache holds fewer, or samples of other prompts.
    """
    prompts = [record.report for record in records]
    if cache is None:
        if (kept := kept_samples(pipeline, prompts)) is not None:
            return kept
        seeds = range(TABLE_SEED, TABLE_SEED + len(prompts))
        cache = sample_with_maps(pipeline, prompts, [()] * len(prompts), folder, seeds=seeds)
    found = read_latent_cache(cache, LatentDecoder(pipeline.vae).eval(), limit=len(prompts))
    if len(found) < len(prompts):
        raise ValueError(f"{cache} holds {len(found)} latents, {len(prompts)} were asked for")
    if list(found.prompts) != prompts:
        raise ValueError(f"{cache} holds samples of other prompts than the manifest's test split")
    return found.latents.float()


def keep_samples(out: Path, latents: Tensor, prompts: Sequence[str], config: dict) -> None:
    """Write latents (N, C, h, w), in half precision as a cache holds them, and their record.

    Args:
        out: the record, a JSON file; the latents lie beside it as safetensors.
        config: has "pipeline", from `pipeline_digest`.
    """
    stored = latents.half().contiguous()
    with whole_file(out.with_suffix(".safetensors")) as file:
        file.write(to_safetensors({"latents": stored}))
    record_result(out, {"prompts": list(prompts), "latents": digest([stored.float()])}, config)


def kept_samples(pipeline, prompts: Sequence[str], folder: str | Path = RESULTS) -> Tensor | None:
    """Latents (N, C, h, w) of these prompts, float32, if they are kept of this pipeline.

    Args:
        prompts: the first of those that were kept, or all.

    Returns:
        None where a folder keeps none of them.

    Raises:
        ValueError: if what is kept is not what its record says.
    """
    now, wanted = None, list(prompts)
    for path in sorted(Path(folder).glob(f"{NAME}_*.json")):
        document = read_result(path)
        if document["values"]["prompts"][: len(wanted)] != wanted:
            continue
        now = now or pipeline_digest(pipeline)
        if document["config"]["pipeline"] != now:
            continue
        tensors = path.with_suffix(".safetensors")
        try:
            latents = load_file(tensors)["latents"].float()
        except (OSError, SafetensorError, KeyError) as error:
            raise ValueError(f"{tensors} is missing or damaged: {error}") from error
        if digest([latents]) != document["values"]["latents"]:
            raise ValueError(
                f"{tensors} holds other latents than {path.name} says: remove both, and they are "
                "sampled again"
            )
        return latents[: len(wanted)]
    return None


def pipeline_digest(pipeline) -> str:
    """Of all that latents depend on but the prompts and the sampler's settings."""
    return digest(pipeline.text_encoder, pipeline.unet, pipeline.vae)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medsign_lite.records.table_samples", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--modality", choices=MODALITIES, required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--data", type=Path, required=True, help="manifest: its test split")
    parser.add_argument("--pipeline", type=Path, default=BUNDLED)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / NAME, help=(
        "unfinished samples; a killed run goes on"))  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="JSON file to record")
    options = parser.parse_args(arguments)
    tune_processor()
    pipeline = load_pipeline(options.pipeline)
    records = table_records(
        pipeline.tokenizer, read_manifest(options.data, check_files=False),
        modality=options.modality, count=options.images,
    )  # fmt: skip
    samples = options.work / f"{options.modality}-{options.images}" / "samples"
    with torch.no_grad():
        latents = table_latents(pipeline, records, samples)
    config = {
        "modality": options.modality,
        "images": options.images,
        "pipeline": pipeline_digest(pipeline),
        "weights": weights_fingerprint(options.pipeline.parent, [options.pipeline.name]),
    }
    keep_samples(options.out, latents, [record.report for record in records], config)
    print(f"kept: {len(latents)} latents in {options.out.with_suffix('.safetensors')}")


if __name__ == "__main__":
    main()
