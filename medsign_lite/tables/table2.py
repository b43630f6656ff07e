"""Table 2: what every variant of MedSign costs the diagnosis, and what controls would cost it.

    python -m medsign_lite.tables.table2 --modality chest --images 500 --data MANIFEST \\
        --variants FOLDER --out results/table2_chest.json

The variants are the decoders of `medsign_lite.tables.ablations`; the shipped decoder is a row
beside them. Every row and seed is measured image by image and kept under --work, so a run that was
killed goes on when the same command is given again. With `--only` the named rows are measured, and
those that are already in the recorded table stay if they are of the same images, judges and
decoders; otherwise they are refused. `--only shipped` needs no variants, and without them says
nothing of how far the shipped decoder is from MedSign's seeds. Without `--only` the whole table is
made, of all rows that the recorded one has. It ends with the paper's claims, one by one
(`claims.py`).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from medsign_lite.checkpoints import digest, weights_fingerprint
from medsign_lite.data import FINDINGS, MODALITIES, read_manifest
from medsign_lite.extractor import load_extractor
from medsign_lite.judges.judge_networks import load_segmenter
from medsign_lite.judges.xrayvision import open_classifier
from medsign_lite.latent_diffusion import BUNDLED, load_decoder, load_pipeline
from medsign_lite.records.kept_parts import measure_parts
from medsign_lite.records.table_samples import table_latents, table_records
from medsign_lite.results import ROOT, read_result, record_result
from medsign_lite.tables.claims import REFERENCE, SEEDS, claim_rows
from medsign_lite.tables.diagnostic_scores import require_findings
from medsign_lite.tables.table2_measurements import (
    RANDOM,
    SHIPPED,
    TITLES,
    Material,
    about_map,
    at_floor,
    decoders,
    parts,
)
from medsign_lite.tables.table2_rows import against, table2_row
from medsign_lite.training.processor import tune_processor


def make_table(
    material: Material,
    chosen: Mapping[str, Mapping[str, Path]],
    *,
    keep: Path,
    command: str,
    resamples: int = 1000,
) -> tuple[list[dict], dict[str, dict[str, str]]]:
    """Measure the chosen rows and, to compare them with, MedSign's.

    Args:
        chosen: decoder folders by row and seed.
        keep: folder of the finished parts.
        command: that recomputes a row, with {row} in the row's place.

    Returns:
        The rows, and by row the digests of their decoders by seed.

    Raises:
        ValueError: if a kept part is of another configuration.
    """
    measured, made = {}, {}
    for row, folders in chosen.items():
        of_seeds = parts(material, row, folders)
        groups = measure_parts(material, of_seeds, keep=keep)
        measured[row] = {
            seed: groups[f"{row}-{seed}"][0] for seed in folders
        }  # fmt: skip
        made[row] = {seed: of_seeds[f"{row}-{seed}"].settings["decoder"] for seed in folders}
    rows = []
    for row, seeds in measured.items():
        options = {"generator": material.generator(f"row {row}"), "resamples": resamples}
        about = {"row": row, "title": TITLES[row], "command": command.format(row=row)}
        about |= {"map": about_map(chosen[row]), "at_floor": at_floor(chosen[row])}
        about["measured"] = {seed: scores["measured"] for seed, scores in seeds.items()}
        rows.append(about | table2_row(
            seeds, findings=material.findings, labels=material.labels, **options
        ))  # fmt: skip
        if row != REFERENCE and REFERENCE in measured:
            rows[-1]["against_medsign"] = against(seeds, measured[REFERENCE], **options)
    return rows, made


def joined(
    rows: Sequence[dict],
    made: Mapping[str, Mapping[str, str]],
    config: Mapping,
    out: Path,
    *,
    present: Mapping[str, Mapping[str, str]],
) -> tuple[list[dict], dict]:
    """These rows and, of an earlier table, the ones that are not among them.

    Args:
        made: digests of the rows' decoders, by row and seed.
        config: of the material.
        present: digests of all decoders that lie here, as `made`.

    Raises:
        ValueError: if the earlier table was recorded under another configuration, against other
            decoders of MedSign, or of other decoders than lie here now.
    """
    if not out.is_file():
        return list(rows), dict(made)
    document = read_result(out)
    earlier = dict(document["config"])
    decoders_then = earlier.pop("decoders", {})
    earlier.pop("weights", None)  # of the shipped decoder as well, which is one row among others
    if earlier != dict(config):
        changed = [
            f"{key} was {earlier.get(key)!r} and is {config.get(key)!r}"
            for key in sorted({**earlier, **config}) if earlier.get(key) != config.get(key)
        ]  # fmt: skip
        raise ValueError(
            f"{out} was recorded under another configuration ({'; '.join(changed)}): rows of both "
            "would stand in one table; name another --out, or measure all rows again"
        )
    stay = [row for row in document["values"]["rows"] if row["row"] not in made]
    alone = set(made) == {SHIPPED}  # which no claim compares: the variants need not lie here
    if stay and not alone and decoders_then.get(REFERENCE) != made.get(REFERENCE):
        raise ValueError(
            f"{out} compares its rows with the decoders {decoders_then.get(REFERENCE)} of MedSign, "
            f"and what was measured now with {made.get(REFERENCE)}: measure all rows again"
        )
    for row in (row["row"] for row in stay if row["row"] in present):
        if decoders_then.get(row) != present[row]:
            raise ValueError(
                f"{out} holds the row {row} of the decoders {decoders_then.get(row)}, and here lie "
                f"{present[row]}: name it with --only as well"
            )
    order = {name: place for place, name in enumerate(TITLES)}
    both = sorted([*stay, *rows], key=lambda row: order.get(row["row"], len(order)))
    return both, decoders_then | dict(made)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medsign_lite.tables.table2", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--modality", choices=MODALITIES, required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--data", type=Path, required=True, help="manifest: prompts and labels")
    parser.add_argument("--variants", type=Path, help="folder of medsign_lite.tables.ablations")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to record")
    parser.add_argument("--weights", type=Path, default=BUNDLED.parent, help=(
        "folder of the pipeline, extractor, judges and decoder_MODALITY"))  # fmt: skip
    parser.add_argument("--classifier", nargs="+", metavar="NAME", help=(
        "folders or names of TorchXRayVision; default: every classifier of --weights"))  # fmt: skip
    parser.add_argument("--cache", type=Path, help="these latents; default: sampled anew")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=TITLES, metavar="ROW", help=", ".join(TITLES))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "table2", help=(
        "samples and finished parts"))  # fmt: skip
    options = parser.parse_args(arguments)
    tune_processor()
    every = decoders(options.variants, options.weights / f"decoder_{options.modality}")
    if absent := [name for name in options.only or () if name not in every]:
        raise ValueError(
            f"no decoder of the row {absent[0]}: python -m medsign_lite.tables.ablations --only "
            f"{REFERENCE if absent[0] == RANDOM else absent[0]} trains it; name its --out as "
            "--variants"
        )
    if not every:
        raise ValueError(f"there is no decoder to measure in {options.variants or options.weights}")
    recorded = read_result(options.out)["values"]["rows"] if options.out.is_file() else ()
    lost = {row["row"] for row in recorded} - set(every)
    if lost and not options.only:
        raise ValueError(
            f"{options.out} holds rows without a decoder here: {', '.join(sorted(lost))}; name "
            "their --variants, another --out, or the rows to measure with --only"
        )
    work = options.work / f"{options.modality}-{options.images}"
    material = _material(options, work)
    chosen = {name: every[name] for name in options.only or every}
    if REFERENCE in every:  # what every difference is taken from
        chosen = {REFERENCE: every[REFERENCE]} | chosen
    command = _command(options, parser)
    rows, made = make_table(
        material, chosen, keep=work / "parts", command=command, resamples=options.resamples
    )
    config = material.config() | {"resamples": options.resamples}
    if options.only:
        lying = {
            row: {seed: digest(load_decoder(folder, material.pipeline.vae)[0])
                  for seed, folder in folders.items()}
            for row, folders in every.items()
        }  # fmt: skip
        rows, made = joined(rows, made, config, options.out, present=lying)
    missing = [name for name in TITLES if name not in {row["row"] for row in rows}]
    few = [row["row"] for row in rows if row["row"] != SHIPPED and len(row["seeds"]) < SEEDS]
    values = {"rows": rows, "claims": claim_rows(rows), "missing": missing + few}
    shipped = weights_of(options.modality)
    there = [name for name in shipped if (options.weights / name).is_dir()]
    about = {"decoders": made, "weights": weights_fingerprint(options.weights, there)}
    record_result(options.out, values, config | about)
    print(f"recorded: {', '.join(row['row'] for row in rows)} in {options.out}")
    if missing:
        print(
            f"no decoder yet of: {', '.join(missing)} (medsign_lite.tables.ablations trains them)"
        )
    if few:
        print(f"of fewer than {SEEDS} seeds: {', '.join(few)}")


def weights_of(modality: str) -> tuple[str, ...]:
    """Sub-folders of the weights that the table's figures depend on: the judges as well."""
    judges = ("classifier", "classifier_mixer", "segmenter")
    return ("pipeline", "extractor", f"decoder_{modality}", *judges)


def _command(options: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """What measures a {row} again; folders and files are capitals."""
    words = [f"python -m medsign_lite.tables.table2 --modality {options.modality}"]
    words.append(f"--images {options.images} --data MANIFEST --variants FOLDER --out FILE")
    words += [f"--{name} {getattr(options, name)}" for name in ("seed", "resamples")
              if getattr(options, name) != parser.get_default(name)]  # fmt: skip
    words += [f"--{name} {name.upper()}" for name in ("weights", "classifier", "cache")
              if getattr(options, name) != parser.get_default(name)]  # fmt: skip
    return " ".join([*words, "--only {row}"])


def _material(options: argparse.Namespace, work: Path) -> Material:
    weights = options.weights
    names = options.classifier or sorted(
        str(path) for path in weights.glob("classifier*") if path.is_dir()
    )
    if len({Path(name).name for name in names}) < len(names):
        raise ValueError(f"--classifier: expected names that differ, got {' '.join(names)}")
    classifiers = {Path(name).name: open_classifier(name) for name in names}
    if not classifiers:
        raise ValueError(f"there is no classifier in {weights}")
    require_findings(classifiers, FINDINGS[options.modality])
    pipeline = load_pipeline(weights / "pipeline")
    records = table_records(
        pipeline.tokenizer, read_manifest(options.data, check_files=False),
        modality=options.modality, count=options.images,
    )  # fmt: skip
    with torch.no_grad():
        latents = table_latents(pipeline, records, work / "samples", cache=options.cache)
    return Material(
        modality=options.modality,
        pipeline=pipeline,
        extractor=load_extractor(weights / "extractor"),
        segmenter=load_segmenter(weights / "segmenter"),
        classifiers=classifiers,
        latents=latents,
        records=records,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
