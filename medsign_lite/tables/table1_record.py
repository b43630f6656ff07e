"""Reading Table 1 as `medsign_lite.tables.table1` recorded it: rows to show, figures to judge.

A record's values are "rows", "curves", "conventions", "codes", "pasted", "chroma" and "gains", all
lists of dicts that `table1_measurements` and `matched_quality` describe. A row depends on its own
networks alone, which the configuration names in "parts": when the shipped decoder is another, what
was measured of other rows still holds.
"""

from collections.abc import Mapping
from pathlib import Path

from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.results import ROOT, read_result
from medsign_lite.rows import with_interval
from medsign_lite.tables.table1_weights import OWN, ROWS

# What a table shows of a row, in order; each has its interval.
COLUMNS = (
    "psnr", "ssim", *PAPER_ATTACKS, "mean", "true_positive_rate", "log10_p",
    "unmarked_bit_accuracy", "seconds",
)  # fmt: skip
_SHARED = ("modality", "images", "seed", "latents", "autoencoder", "false_positive_rate",
           "empirical_rate", "resamples", "attacks", "ladder")  # fmt: skip
KINDS = ("curve", "conventions", "codes", "pasted")  # of parts, beside a row itself
READ_ALIKE = ("stable-signature", "medsign-literal", OWN)  # with MedSign's extractor


def read_table1(*paths: str | Path) -> dict:
    """One table of one or several records, for example of rows that were measured again alone.

    Args:
        paths: files of one modality. A later one's rows take the place of an earlier one's.

    Returns:
        {"values", "config"}; the weights are the last file's.

    Raises:
        FileNotFoundError, ValueError: if a file is missing or no record of Table 1.
        ValueError: if they are of other images or settings, naming both files and what differs:
            rows of different images make no table. Likewise if parts of one row are of different
            networks.
    """
    if not paths:
        raise ValueError("expected at least one record of Table 1, got none")
    return joined(*((Path(path).name, read_result(path)) for path in paths))


def table1_values(modality: str, folder: str | Path) -> dict:
    """The values of the recorded table of a modality, {} where `folder` holds none."""
    path = Path(folder) / f"table1_{modality}.json"
    return read_table1(path)["values"] if path.is_file() else {}


def joined(*named: tuple[str, Mapping]) -> dict:
    """As `read_table1`, of documents {"values", "config"} with names for an error.

    "missing" is not among the values: it is of one record, not of several.
    """
    (first_name, _), first, values, parts = named[0], None, {}, {}
    for name, document in named:
        config = {key: document["config"].get(key) for key in _SHARED}
        if config["modality"] is None or config["latents"] is None:
            raise ValueError(f"{name} is no record of Table 1")
        first = first or config
        if differing := [
            f"{key} is {first[key]!r} and {config[key]!r}"
            for key in _SHARED if first[key] != config[key]
        ]:  # fmt: skip
            raise ValueError(
                f"{first_name} and {name} are of different configurations, and make no table: "
                f"{'; '.join(differing)}"
            )
        parts |= document["config"].get("parts", {})
        for group, rows in document["values"].items():
            if group == "missing":
                continue
            new = {_identity(row) for row in rows}
            kept = [row for row in values.get(group, ()) if _identity(row) not in new]
            values[group] = sorted([*kept, *rows], key=_place)
    _check_parts(parts, " and ".join(name for name, _ in named))
    weights = named[-1][1]["config"].get("weights")
    return {"values": values, "config": first | {"weights": weights, "parts": parts}}


def _check_parts(parts: Mapping[str, Mapping], names: str) -> None:
    """Refuse rows whose parts are of different networks, such as a curve of an earlier decoder, and
    rows that MedSign's extractor reads if it is not the same for all."""
    methods: dict[str, tuple[str, Mapping]] = {}
    for part, settings in parts.items():
        row = next((row for row in ROWS if part in (row, *(f"{kind}-{row}" for kind in KINDS))), "")
        earlier, method = methods.setdefault(row, (part, settings.get("method")))
        if method != settings.get("method"):
            raise ValueError(
                f"{names}: {earlier} is of {method}, {part} of {settings.get('method')}; measure "
                "both again"
            )
    readers = {row: methods[row][1].get("extractor") for row in READ_ALIKE if row in methods}
    if len({*readers.values()}) > 1:
        found = ", ".join(f"{row} by {reader}" for row, reader in readers.items())
        raise ValueError(f"{names}: rows are read by different extractors: {found}")


def _place(row: Mapping) -> int:
    """Rows stand in the table's order, whichever was measured first; those of one in their own."""
    return ROWS.index(row["row"]) if row.get("row") in ROWS else len(ROWS)


def recorded_table1(
    modality: str, weights: str | None, folder: str | Path = ROOT / "results"
) -> tuple[dict, str]:
    """The values of the recorded table if they are of these weights, and a sentence that says so.

    Args:
        weights: their fingerprint (`checkpoints.weights_fingerprint` of `attacker.weights_of`);
            None for weights that nothing is recorded of.

    Returns:
        The values, or {}; and what is recorded, or why there is nothing to compare with.
    """
    path = Path(folder) / f"table1_{modality}.json"
    if not path.is_file():
        return {}, f"no Table 1 of {modality} is recorded yet"
    document = read_table1(path)
    if weights is None or document["config"]["weights"] != weights:
        return {}, f"the recorded Table 1 of {modality} is of other weights"
    missing = missing_rows(document["values"])
    lacking = f", without {', '.join(missing)}" if missing else ""
    return document["values"], f"recorded: {document['config']['images']} images{lacking}"


def _identity(row: Mapping) -> tuple:
    names = ("row", "rung", "attack", "rounded", "code", "file", "against")
    return tuple(str(row.get(name)) for name in names)


def flat_row(row: Mapping) -> dict:
    """A row with the columns of the paper's table: method, bits, images and `COLUMNS`.

    The attacks are bit accuracies; true_positive_rate, log10_p and unmarked_bit_accuracy (of the
    originals; a half if their bits are fair coins) are over all six together. fitted_rate is the
    largest of `method_row`'s: above the detector's own rate, the p-values are too good.
    """
    flat = {name: row[name] for name in ("row", "method", "bits", "images")}
    for name in ("psnr", "ssim", "seconds"):
        flat |= _columns(row, name, name)
    for attacked in row["attacks"]:
        flat |= _columns(attacked, "bit_accuracy", attacked["attack"])
        if attacked["attack"] == "mean":
            for name in ("true_positive_rate", "log10_p", "unmarked_bit_accuracy"):
                flat |= _columns(attacked, name, name)
    return flat | {"fitted_rate": max(part["fitted_rate"] for part in row["unmarked"])}


def _columns(row: Mapping, name: str, new: str) -> dict:
    return {f"{new}{end}": row[f"{name}{end}"] for end in ("", "_low", "_high")}


def nearest_rung(values: Mapping) -> float:
    """The rung nearest to our own row's PSNR: that is where it is compared with the others."""
    own = next(row["psnr"] for row in values["rows"] if row["row"] == OWN)
    return min((row["rung"] for row in values["curves"]), key=lambda rung: abs(rung - own))


def smallest_gain(values: Mapping) -> dict | None:
    """The row of "gains" against the best rival at `nearest_rung`; None if there is none.

    Where "bound" is "at least", the rival reads less even at the lowest rung, and the true gain is
    larger.
    """
    if not values.get("gains") or OWN not in {row["row"] for row in values.get("rows", ())}:
        return None
    rung = nearest_rung(values)
    compared = [row for row in values["gains"] if row["rung"] == rung]
    return min(compared, key=lambda row: row["gain"], default=None)


def missing_rows(values: Mapping) -> list[str]:
    """Rows and curves that are not there, or not with an interval for each of their figures."""
    rows = {row["row"]: row for row in values.get("rows", ())}
    missing = []
    for key in ROWS:
        try:
            flat = flat_row(rows[key])
            whole = all(flat[f"{name}{end}"] is not None for name in COLUMNS
                        for end in ("", "_low", "_high"))  # fmt: skip
        except KeyError:
            whole = False
        if not whole:
            missing.append(key)
    curves = {row["row"] for row in values.get("curves", ())}
    return missing + [f"curve-{key}" for key in ROWS if key not in curves]


def gate_figures(values: Mapping) -> dict[str, dict]:
    """Figures {"value", "low", "high"} that gates ask of our own row.

    psnr, ssim, bit accuracy per attack and mean, "detected_ATTACK" (true-positive rate), "gain"
    (see `smallest_gain`) and "missing" (how many rows or curves are).
    """
    count = float(len(missing_rows(values)))
    figures = {"missing": {"value": count, "low": count, "high": count}}
    for row in values.get("rows", ()):
        if row["row"] == OWN:
            figures |= {name: with_interval(row, name) for name in ("psnr", "ssim")}
            for attacked in row["attacks"]:
                name = attacked["attack"]
                figures[name] = with_interval(attacked, "bit_accuracy")
                figures[f"detected_{name}"] = with_interval(attacked, "true_positive_rate")
    if best := smallest_gain(values):
        figures["gain"] = with_interval(best, "gain")
    return figures
