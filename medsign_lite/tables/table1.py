"""Table 1 of the paper with every row, measured and recorded.

    python -m medsign_lite.tables.table1 --modality chest --images 500 --data MANIFEST \\
        --out results/table1_chest.json

Each row is a part of its own (`dct-dwt`, `medsign-sharp`, ...), and so is its curve of bit accuracy
over PSNR (`curve-dct-dwt`), what the attacks' conventions do to MedSign and Stable Signature
(`conventions-medsign-sharp`), what error-correcting codes would bring (`codes-medsign-sharp`), what
is found of a marked patch in another image (`pasted-wam-kind`), and what a grey file leaves of the
chroma variant of DCT-DWT (`chroma`).

A finished part is kept under --work and not repeated, so a run that was killed goes on when the
same command is given again. With `--only` the named parts are measured, and what the file already
holds of other parts stays, if it is of the same images and settings and no row's parts are of
different networks; otherwise they are refused. So another decoder of MedSign takes its own parts
alone. `--again` measures anew what is kept. Each row says when it was measured, and of which
commit. An interval is over images: every method is trained once, and what another training would
give it does not say.

Weights that are not shipped are trained first; `--recipes` prints the commands.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from medsign_lite.adversary.attacker import weights_of
from medsign_lite.checkpoints import weights_fingerprint
from medsign_lite.data import MODALITIES, read_manifest
from medsign_lite.latent_diffusion import BUNDLED, load_pipeline
from medsign_lite.published import table1 as published_rows
from medsign_lite.records.kept_parts import measure_parts
from medsign_lite.records.table_samples import table_latents, table_records
from medsign_lite.results import ROOT, read_result, record_result, to_json
from medsign_lite.rows import table
from medsign_lite.tables.matched_quality import LADDER, check_ladder, gain_rows
from medsign_lite.tables.table1_measurements import TableImages, check_empirical_rate, parts
from medsign_lite.tables.table1_record import COLUMNS, flat_row, joined, missing_rows
from medsign_lite.tables.table1_weights import OWN, ROWS, load_method, recipes
from medsign_lite.training.processor import tune_processor

RIVALS = tuple(row for row in ROWS if not row.startswith("medsign"))
LOCATING = ("wam-kind",)  # what says where it is
CONVENTIONS_OF = (OWN, "stable-signature")
_OF_FIGURES = ("seed", "resamples", "ladder", "false_positive_rate", "empirical_rate")
_FOLDERS = ("weights", "baselines", "cache")
BASELINES = ROOT / "build" / "baselines"


def part_names(conventions: Sequence[str] = CONVENTIONS_OF) -> dict[str, str | None]:
    """Every part by name, with the row whose method it takes; None for none that is trained."""
    names: dict[str, str | None] = {}
    for row in ROWS:
        names |= {row: row, f"curve-{row}": row}
        if row in conventions:
            names[f"conventions-{row}"] = row
        if row == OWN:
            names[f"codes-{row}"] = row
        if row in LOCATING:
            names[f"pasted-{row}"] = row
    return names | {"chroma": None}


def _command(options: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """What measures the same again but for `--only PART`; folders and files are capitals."""
    words = [f"python -m medsign_lite.tables.table1 --modality {options.modality}"]
    words.append(f"--images {options.images} --data MANIFEST --again --out FILE")
    for name in (*_OF_FIGURES, *_FOLDERS, "conventions"):
        value = getattr(options, name)
        if value != parser.get_default(name):
            values = value if isinstance(value, list | tuple) else [value]
            values = [name.upper()] if name in _FOLDERS else map(str, values)
            words.append(" ".join([f"--{name.replace('_', '-')}", *values]))
    return " ".join(words)


def gains(curves: Sequence[Mapping], generator: torch.Generator, resamples: int) -> list[dict]:
    """Our own method against every rival whose curve is there; rows of `gain_rows`."""
    of = {row: [point for point in curves if point["row"] == row] for row in ROWS}
    rivals = {row: of[row] for row in RIVALS if of[row]}
    if not of[OWN] or not rivals:
        return []
    return gain_rows(of[OWN], rivals, generator=generator, resamples=resamples)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m medsign_lite.tables.table1", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--modality", choices=MODALITIES, required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--data", type=Path, help="manifest: prompts from its test split")
    parser.add_argument("--out", type=Path, help="JSON file to record")
    parser.add_argument("--weights", type=Path, default=BUNDLED.parent, help=(
        "folder with pipeline, extractor and decoder_MODALITY"))  # fmt: skip
    parser.add_argument("--baselines", type=Path, default=BASELINES, help="what --recipes trains")
    parser.add_argument("--recipes", action="store_true", help=(
        "print the commands that train the baselines, and stop"))  # fmt: skip
    parser.add_argument("--cache", type=Path, help="latents to draw; default: sampled anew")
    parser.add_argument("--ladder", type=float, nargs="+", default=LADDER, metavar="DB", help=(
        "PSNRs of the curves"))  # fmt: skip
    parser.add_argument("--conventions", nargs="*", choices=ROWS, default=CONVENTIONS_OF, help=(
        "rows to measure the attacks' conventions on"), metavar="ROW")  # fmt: skip
    parser.add_argument("--false-positive-rate", type=float, default=1e-6)
    parser.add_argument("--empirical-rate", type=float, help=(
        "rate that unmarked images are counted at; default: what they can state"))  # fmt: skip
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="PART", help="for example dct-dwt")
    parser.add_argument("--again", action="store_true", help="measure also what is kept")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "table1", help=(
        "samples and finished parts"))  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.recipes:
        made = recipes(options.modality, weights=options.weights, baselines=options.baselines)
        print(*made.values(), sep="\n")
        return
    if options.data is None or options.out is None:
        parser.error("--data and --out are required")
    names = part_names(options.conventions)
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"unknown parts {sorted(unknown)}: expected some of {', '.join(names)}")
    check_ladder(options.ladder)
    if options.empirical_rate is not None:
        check_empirical_rate(options.empirical_rate, options.images)
    tune_processor()
    wanted = set(options.only or names)
    if wanted & {f"curve-{row}" for row in RIVALS}:
        wanted.add(f"curve-{OWN}")  # a gain is the distance of two curves: both or neither
    chosen = [name for name in names if name in wanted]
    folder = options.work / f"{options.modality}-{options.images}"
    images, found = _parts(options, folder, {names[name] for name in chosen} - {None})
    groups = measure_parts(
        images, {name: found[name] for name in chosen}, keep=folder / "parts",
        command=_command(options, parser), again=options.again,
    )  # fmt: skip
    curves = [dict(row) for row in groups.get("curves", ())]
    for row in groups.get("curves", ()):
        del row["accuracy_per_image"], row["log10_p_per_image"]  # of use to the comparison alone
    fingerprint = weights_fingerprint(options.weights, weights_of(options.modality))
    config = {"modality": options.modality, "weights": fingerprint} | images.config()
    config["ladder"] = options.ladder
    config["parts"] = {name: found[name].settings for name in chosen}
    if options.only and options.out.is_file():
        groups, config["parts"] = _with_earlier(groups, config, options.out)
    if f"curve-{OWN}" in chosen:
        measured = {row["row"] for row in curves}
        curves += [row for row in groups["curves"] if row["row"] not in measured]
        groups["gains"] = gains(curves, images.generator("gains"), options.resamples)
    record_result(options.out, groups | {"missing": missing_rows(groups)}, config)
    if "rows" in groups:
        shown = table([flat_row(row) for row in groups["rows"]], ["row", *COLUMNS], decimals=3)
        print(shown.set_index("row").T.to_string())
    print(f"recorded: {', '.join(groups)} in {options.out}")


def _with_earlier(groups: Mapping, config: Mapping, out: Path) -> tuple[dict, dict]:
    """Rows and parts of a record, those that were just measured in place of their namesakes."""
    earlier, document = read_result(out), {"values": groups, "config": config}
    try:
        both = joined((out.name, earlier), ("what was measured now", to_json(document)))
    except ValueError as error:
        raise ValueError(f"{error}. Name another --out, or measure all rows again") from error
    return both["values"], both["config"]["parts"]


def _parts(
    options: argparse.Namespace, folder: Path, rows: set[str]
) -> tuple[TableImages, Mapping]:
    """The images, and the parts of those rows alone: the others' weights need not be there."""
    pipeline = load_pipeline(options.weights / "pipeline", device=options.device)
    methods = [
        load_method(
            row, modality=options.modality, vae=pipeline.vae, weights=options.weights,
            baselines=options.baselines, device=options.device,
        )
        for row in ROWS if row in rows
    ]  # fmt: skip
    records = table_records(
        pipeline.tokenizer, read_manifest(options.data, check_files=False),
        modality=options.modality, count=options.images,
    )  # fmt: skip
    latents = table_latents(pipeline, records, folder / "samples", cache=options.cache)
    images = TableImages(
        vae=pipeline.vae, latents=latents, seed=options.seed, resamples=options.resamples,
        false_positive_rate=options.false_positive_rate, empirical_rate=options.empirical_rate,
    )  # fmt: skip
    printed = {row["method"]: row["psnr"] for row in published_rows(options.modality)}
    found = parts(
        images, methods, ladder=options.ladder, conventions=options.conventions, codes=(OWN,),
        chroma_psnr=printed["DCT-DWT"],
    )  # fmt: skip
    return images, found


if __name__ == "__main__":
    main()
