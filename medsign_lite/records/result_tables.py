"""Recorded tables as Markdown: Tables 1 and 2, the paper's claims, what an attacker pays, what each
part of the decoders' recipe brings and what a weaker mark would cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medsign_lite.adversary.attack_curves import UNITS
from medsign_lite.data import FINDINGS, MODALITIES
from medsign_lite.published import TABLE1_COLUMNS
from medsign_lite.published import table1 as published_rows
from medsign_lite.published import table2 as published_table2
from medsign_lite.results import read_result
from medsign_lite.tables.claims import CLAIMS
from medsign_lite.tables.table1_record import flat_row, nearest_rung, table1_values
from medsign_lite.tables.table1_weights import OWN, ROWS, TITLES
from medsign_lite.tables.table2_measurements import TITLES as VARIANT_TITLES
from medsign_lite.tables.table2_record import recorded_table

_TABLE1_HEADER = ("dB", "SSIM", "none", "brightness", "crop", "JPEG", "rotation", "resize", "mean")
_BOUNDS = {"": "", "at least": "≥ ", "at most": "≤ "}  # of `gain_rows`
GONE = 0.1  # share of the images still detected, at most
FORGED = 45.0  # dB
MEASURES = UNITS | {"diffusion": "timestep", "purification": "steps"}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def table1_tables(folder: Path) -> str:
    """Table 1 of both modalities: every row, measured or dashes, and MedSign's of the paper.

    "detected" is over all attacks; "behind, dB" is how many decibels weaker our mark is where both
    are read equally well, at our PSNR.
    """
    shown: list[str] = []
    for modality in MODALITIES:
        values = table1_values(modality, folder)
        flat = {row["row"]: flat_row(row) for row in values.get("rows", ())}
        rung = nearest_rung(values) if OWN in flat and values.get("curves") else None
        gains = {r["against"]: r for r in values.get("gains", ()) if r["rung"] == rung}
        rows = [_table1_row(key, flat.get(key), gains.get(key)) for key in ROWS]
        paper = next(row for row in published_rows(modality) if row["method"] == "MedSign")
        rows.append(["MedSign, the paper's", *_figures(paper), "", ""])
        shown += [*markdown([modality, *_TABLE1_HEADER, "detected", "behind, dB"], rows), ""]
    return "\n".join(shown[:-1])


def _table1_row(key: str, row: Mapping | None, gain: Mapping | None) -> list[str]:
    if row is None:
        return [TITLES.get(key, key), *["-"] * (len(_TABLE1_HEADER) + 2)]
    name = f"**{row['method']}**" if key == OWN else row["method"]
    ahead = "" if gain is None else f"{_BOUNDS[gain['bound']]}{gain['gain']:.1f}"
    return [name, *_figures(row), f"{row['true_positive_rate']:.3f}", ahead]


def _figures(row: Mapping) -> list[str]:
    return [f"{row[name]:.{1 if name == 'psnr' else 3}f}" for name in TABLE1_COLUMNS]


def table2_tables(folder: Path) -> str:
    """Table 2 of both modalities: every row, measured or dashes, and the paper's; of a modality
    that nothing is recorded of, a sentence.

    "spared" is PSNR inside the finding minus outside; what follows |change of probability| x 100,
    of the first classifier by finding, then the means of all of them.
    """
    shown: list[str] = []
    for modality in MODALITIES:
        values = recorded_table(modality, folder)
        if values is None:
            shown += [f"Table 2 of {modality} is not recorded yet.", ""]
            continue
        found = {row["row"]: row for row in values["rows"]}
        judges = sorted(next(iter(found.values()))["classifiers"])
        findings = FINDINGS[modality]
        header = [modality, "dB", "bits", "spared, dB", *findings, *(f"mean, {j}" for j in judges)]
        rows = [_table2_row(key, found.get(key), findings, judges) for key in VARIANT_TITLES]
        if modality == "chest":
            rows += [
                [f"{VARIANT_TITLES[key]}, the paper's", f"{row['psnr']:.2f}",
                 f"{row['bit_accuracy']:.2f}", "", *(f"{row[name]:.2f}" for name in findings),
                 f"{row['mean']:.2f}", *[""] * (len(judges) - 1)]
                for key, row in published_table2().items()
            ]  # fmt: skip
        shown += [*markdown(header, rows), ""]
    return "\n".join(shown[:-1])


def _table2_row(
    key: str, row: Mapping | None, findings: Sequence[str], judges: Sequence[str]
) -> list[str]:
    title = f"**{VARIANT_TITLES[key]}**" if key == "medsign" else VARIANT_TITLES[key]
    if row is None:
        return [title, *["-"] * (3 + len(findings) + len(judges))]
    of_judge = row["classifiers"]
    changes = [*(of_judge[judges[0]][finding]["change"] for finding in findings),
               *(of_judge[judge]["mean"]["change"] for judge in judges)]  # fmt: skip
    figures = ((row["psnr"], 1), (row["bit_accuracy"], 3), (row["psnr_gap"], 1),
               *((change, 3) for change in changes))  # fmt: skip
    return [title, *("-" if figure["value"] is None else f"{figure['value']:.{digits}f}"
                     for figure, digits in figures)]  # fmt: skip


def claims_table(folder: Path) -> str:
    """The paper's claims about Table 2, and those that they rest on: what holds here, and where."""
    judged = {}
    for modality in MODALITIES:
        values = recorded_table(modality, folder) or {"claims": []}
        judged[modality] = {row["key"]: row["verdict"] for row in values["claims"]}
    rows = [
        [claim.text, claim.paper, *(verdicts.get(claim.key, "-") for verdicts in judged.values())]
        for claim in CLAIMS
    ]
    return "\n".join(markdown(["", "the paper", *MODALITIES], rows))


def attacker_table(folder: Path) -> str:
    """For each attack, the best image quality at which at most `GONE` of the images is detected.

    A strength and the PSNR that is left, in dB, "never" where none of the strengths measured does
    it. The last lines are of forging: how many of the images that never had a mark pass for marked
    after what was averaged over one marked image was added at `FORGED`.
    """
    recorded = {}
    for modality in MODALITIES:
        path = Path(folder) / f"attacker_{modality}.json"
        recorded[modality] = read_result(path)["values"] if path.is_file() else {}
    rows, of_all = [], [row for values in recorded.values() for row in _attacks(values)]
    for attack, model in dict.fromkeys(map(_of_attack, of_all)):
        cells = [
            _gone([row for row in _attacks(values) if _of_attack(row) == (attack, model)])
            for values in recorded.values()
        ]
        by = {"original": "the model's own", "": ""}.get(model, model)
        rows.append([", ".join(filter(None, (attack, by, MEASURES.get(attack, "")))), *cells])
    rows.append([f"forged from one image at {FORGED:g} dB, pass for marked",
                 *(_forged(values) for values in recorded.values())])  # fmt: skip
    return "\n".join(markdown(["", *MODALITIES], rows))


def _attacks(values: Mapping) -> list[Mapping]:
    return [row for group in ("curves", "regeneration", "purification")
            for row in values.get(group, ())]  # fmt: skip


def _of_attack(row: Mapping) -> tuple[str, str]:
    return row["attack"], row.get("model") or ""


def _gone(rows: Sequence[Mapping]) -> str:
    if not rows:
        return "-"
    gone = [row for row in rows if row["true_positive_rate"] <= GONE]
    if not gone:
        return "never"
    best = max(gone, key=lambda row: row["psnr"] or 0)  # without a PSNR: the mildest, the first
    parts = [] if best["strength"] is None else [f"{best['strength']:g}"]
    return ", ".join([*parts, *([f"{best['psnr']:.1f} dB"] if best["psnr"] else [])]) or "always"


def _forged(values: Mapping) -> str:
    shares = [
        row["called_marked"]
        for row in values.get("forgery", ())
        if (row["attack"], row["averaged"], row["strength"]) == ("forge", 1, FORGED)
    ]
    return f"{max(shares):.3f}" if shares else "-"


def recipe_table(folder: Path) -> str:
    """What each part of the decoders' recipe brings, by `benchmarks.decoder_recipe`."""
    path = Path(folder) / "decoder_recipe.json"
    if not path.is_file():
        return "The decoders' recipe is not compared yet."
    document = read_result(path)
    at = f"at {document['config']['psnr']:g} dB: "
    rows = [
        [run["run"], f"{run['psnr']:.1f}", f"{run['ssim']:.3f}",
         f"{run['finding_psnr'] - run['elsewhere_psnr']:.1f}",
         *(f"{run['matched'][name]:.3f}" for name in ("jpeg", "rotation", "bit_accuracy"))]
        for run in document["values"]["runs"]
    ]  # fmt: skip
    header = ["", "dB", "SSIM", "map spared, dB", f"{at}JPEG", "rotation", "mean of attacks"]
    return "\n".join(markdown(header, rows))


def trade_tables(folder: Path) -> str:
    """What a weaker mark would cost, and where the mark's power lies: `benchmarks.mark_trade`."""
    shown: list[str] = []
    for modality in MODALITIES:
        path = Path(folder) / f"mark_trade_{modality}.json"
        if not path.is_file():
            shown += [f"The strength of the mark in {modality} is not varied yet.", ""]
            continue
        values = read_result(path)["values"]
        judges = list(values["strengths"][0]["changes"])
        rows = []
        for row in values["strengths"]:
            bits = {attack["attack"]: attack["bit_accuracy"] for attack in row["attacks"]}
            others = min(bits[name] for name in bits if name not in ("jpeg", "mean"))
            rows.append([
                f"{row['factor']:g}", f"{row['psnr']:.1f}", f"{row['ssim']:.3f}",
                f"{bits['jpeg']:.3f}", f"{others:.3f}",
                *(f"{row['changes'][judge]['change']:.3f}" for judge in judges),
            ])  # fmt: skip
        header = [modality, "dB", "SSIM", "bits, JPEG", "bits, the worst else",
                  *(f"change x 100, {judge}" for judge in judges)]  # fmt: skip
        rings = values["wavelengths"]
        columns = [f"{ring['shortest']} to {ring['longest']}" for ring in rings]
        shares = [
            [title, *(f"{ring[name]:.3f}" for ring in rings)]
            for name, title in (("mark", "share of the mark"), ("image", "of the image"))
        ]
        shown += [
            *markdown(header, rows),
            "",
            *markdown([f"{modality}, wavelength in pixels", *columns], shares),
            "",
        ]
    return "\n".join(shown[:-1])
