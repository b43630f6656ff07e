"""Draw the paper's Fig. 2 and Fig. 3 of generated images, and a pasted patch; record of which.

    python -m medsign_lite.tables.paper_drawings --data MANIFEST --out results
    python -m medsign_lite.tables.paper_drawings --data MANIFEST --out results \\
        --decoder "Stable Signature=variants/stable_signature_{modality}"

Both modalities, from the reports and with the seeds of the recorded tables, so that nobody chose a
pretty image: the first one whose named finding the independent segmenter sees. Its outline in the
unmarked image stands for the true finding, which a generated image has not.

Where the WAM kind of Table 1 is trained, a third figure shows what it sees of a marked patch of
that image, pasted into the next one. No decoder has a part in it: elsewhere the one that was drawn
before stays.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from medsign_lite.attention import record_attention
from medsign_lite.baselines.localised_watermark import LocalisedWatermark, load_localised_watermark
from medsign_lite.baselines.marked_regions import random_patches
from medsign_lite.checkpoints import digest, weights_fingerprint
from medsign_lite.data import MODALITIES, Record, read_manifest
from medsign_lite.files import whole_file
from medsign_lite.images import quantise
from medsign_lite.judges.judge_networks import FindingSegmenter, load_segmenter
from medsign_lite.latent_diffusion import BUNDLED, decode, load_decoder, load_pipeline, sample
from medsign_lite.localisation import word_tokens
from medsign_lite.messages import random_message
from medsign_lite.published import table1
from medsign_lite.records.table_samples import TABLE_SEED, table_records
from medsign_lite.results import ROOT, read_result, record_result
from medsign_lite.selection import SMALL_MAPS, scale_attention, select_token
from medsign_lite.tables.paper_figures import (
    Comparison,
    Pasted,
    Word,
    full_size,
    pasted_figure,
    residual_comparison_figure,
    selection_figure,
)

LOCALISED = ROOT / "build" / "baselines" / "wam_kind" / "watermark"  # as Table 1's recipe leaves it
SEEN = (0.01, 0.3)  # share of the image that a finding covers in a figure
NOTE = "outlined: the finding as an independent segmenter sees it in the unmarked image"


def first_seen(
    pipeline, segmenter: FindingSegmenter, records: Sequence[Record], *, steps: int = 25
) -> tuple[Record, Word, Tensor]:
    """The first record whose first finding is seen in the image that its report generates.

    Args:
        records: from `table_records`, of one modality; record i is sampled with the i-th seed of
            the tables.
        steps: of the sampler.

    Returns:
        The record, its word with attention, image and outline, and the latents (1, C, h, w).

    Raises:
        ValueError: if no record's finding is seen with an area in `SEEN`.
    """
    for number, record in enumerate(records):
        if not record.words:
            continue
        positions = word_tokens(pipeline.tokenizer, record.report, record.words[0])
        if len(positions) < 2:  # of a single token CAS has nothing to choose
            continue
        with record_attention(pipeline, conditional="second_half", tokens=positions) as attention:
            seeds = [TABLE_SEED + number]
            latents = sample(pipeline, [record.report], seeds=seeds, steps=steps, guidance=3.0)
        image = quantise(decode(pipeline.vae, latents)).cpu()
        with torch.no_grad():
            mask = segmenter.mask(image, [record.findings[0]])[0, 0]
        if SEEN[0] <= float(mask.float().mean()) <= SEEN[1]:
            ids = pipeline.tokenizer(record.report).input_ids
            names = pipeline.tokenizer.convert_ids_to_tokens([ids[i] for i in positions])
            return (
                record,
                Word(
                    title=record.findings[0],
                    image=image[0],
                    attention=attention.maps[0].cpu(),
                    tokens=[name.removesuffix("</w>") for name in names],
                    mask=mask,
                ),
                latents,
            )
    raise ValueError(f"in none of {len(records)} images the named finding is seen")


def compare(
    pipeline, word: Word, latents: Tensor, decoders: Mapping[str, Path], *, title: str
) -> Comparison:
    """The row of Fig. 3 of the image of Fig. 2: the same latents through every decoder."""
    marked = {}
    for name, folder in decoders.items():
        decoder, _ = load_decoder(folder, pipeline.vae)
        marked[name] = quantise(decode(decoder, latents)).cpu()[0]
    chosen = select_token(word.attention, range(len(word.tokens)), **SMALL_MAPS).map
    map = scale_attention(full_size(chosen, word.image.shape[-2:]), preset="sharp")
    return Comparison(title=title, original=word.image, map=map, marked=marked, mask=word.mask)


def paste(watermark: LocalisedWatermark, image: Tensor, other: Tensor, *, title: str) -> Pasted:
    """A patch of an image (3, H, W) in [0, 1], marked, in another of the same size."""
    generator = torch.Generator().manual_seed(0)
    message = random_message(watermark.bits, generator=generator)
    patch = random_patches(1, image.shape[-2:], generator=generator)
    with torch.no_grad():
        marked = quantise(watermark.embed(image[None], message))
        picture = torch.where(patch.bool(), marked, other[None])
        likely = watermark.detect(picture)[0]
    return Pasted(title=title, picture=picture[0], patch=patch[0, 0].bool(), likely=likely)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110, bbox_inches="tight", facecolor="white")


def named_folders(pairs: Sequence[str]) -> dict[str, str]:
    """{name: folder} of NAME=FOLDER, where the folder names the modality as {modality}.

    Raises:
        ValueError: for a pair without "=" or {modality}.
    """
    found = {}
    for pair in pairs:
        name, sign, folder = pair.partition("=")
        if not (name and sign and "{modality}" in folder):
            raise ValueError(f"expected NAME=FOLDER with {{modality}} in the folder, got {pair!r}")
        found[name] = folder
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medsign_lite.tables.paper_drawings", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--data", type=Path, required=True, help="manifest: reports of its test split"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and record")
    parser.add_argument("--weights", type=Path, default=BUNDLED.parent)
    parser.add_argument("--decoder", action="append", default=[], metavar="NAME=FOLDER", help=(
        "another decoder to compare with, {modality} in its folder; more than once"))  # fmt: skip
    parser.add_argument("--localised", type=Path, default=LOCALISED, metavar="FOLDER", help=(
        "a trained WAM kind; without it no patch is drawn"))  # fmt: skip
    parser.add_argument("--images", type=int, default=500, help="of each modality in the tables")
    parser.add_argument("--steps", type=int, default=25, help="of the sampler")
    options = parser.parse_args(arguments)
    others = named_folders(options.decoder)
    pipeline = load_pipeline(options.weights / "pipeline")
    segmenter = load_segmenter(options.weights / "segmenter")
    records = read_manifest(options.data, check_files=False)
    watermark = None
    if options.localised.is_dir():
        watermark = load_localised_watermark(options.localised)
    words, rows, pasted, used, made = [], [], [], {}, {}
    for modality in MODALITIES:
        own = table_records(pipeline.tokenizer, records, modality=modality, count=options.images)
        record, word, latents = first_seen(pipeline, segmenter, own, steps=options.steps)
        folders = {name: Path(text.format(modality=modality)) for name, text in others.items()}
        folders["MedSign"] = options.weights / f"decoder_{modality}"
        made[modality] = {
            name: digest(load_decoder(folder, pipeline.vae)[0]) for name, folder in folders.items()
        }
        words.append(word)
        rows.append(compare(pipeline, word, latents, folders, title=f"{modality}: original"))
        if watermark is not None:
            number = (own.index(record) + 1) % len(own)
            other = sample(
                pipeline, [own[number].report], seeds=[TABLE_SEED + number], steps=options.steps,
                guidance=3.0,
            )  # fmt: skip
            other = quantise(decode(pipeline.vae, other)).cpu()[0]
            (watermark.psnr,) = (  # as in Table 1
                row["psnr"] for row in table1(modality) if row["method"].startswith("WAM")
            )
            pasted.append(paste(watermark, word.image, other, title=modality))
        used[modality] = {"id": record.id, "report": record.report, "finding": word.title}
    save(selection_figure(words, cas=SMALL_MAPS), options.out / "paper_fig2.png")
    save(residual_comparison_figure(rows), options.out / "paper_fig3.png")
    if pasted:
        save(pasted_figure(pasted), options.out / "pasted_patch.png")
    record = options.out / "paper_figures.json"
    if watermark is not None:
        localised = digest(watermark)
    else:
        localised = read_result(record)["config"]["localised"] if record.is_file() else None
    config = {"weights": weights_fingerprint(options.weights), "cas": SMALL_MAPS,
              "images": options.images, "steps": options.steps,
              "decoders": made, "localised": localised}  # fmt: skip
    record_result(record, {"images": used, "note": NOTE}, config)
    more = ", pasted_patch.png" if pasted else f"; no patch, nothing is at {options.localised}"
    print(f"drawn: paper_fig2.png, paper_fig3.png{more}; {NOTE}")


if __name__ == "__main__":
    main()
