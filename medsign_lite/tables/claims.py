"""The paper's claims about Table 2, one by one: what it states, what was measured, what follows.

The rules stand here, written before there was a result. A claim is about the difference between two
rows, and a difference is taken image by image and seed by seed (`table2_rows.against`). It is

- more (or less): holds if the interval over images lies above (below) zero and every seed says so;
  does not hold if all of it lies on the other side;
- unchanged: holds if the interval, and every seed, lies within a margin; does not hold if the
  interval and every seed lie outside of it.

Anything else is not decidable with these images and seeds, nor is anything of fewer than three
seeds. A claim that does not hold here is a
finding about this model and these phantoms: neither the paper's networks nor its patients are here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decidable"
SHARE = 0.1  # of MedSign's own change: the paper calls .04 of .59 stable, and .03 unaffected
LEAST = 0.001  # of a change x 100, where MedSign's own is next to nothing
SEEDS = 3  # at least, of both rows
BITS = 0.02  # of bit accuracy: the paper calls .01 nearly unchanged
REFERENCE = "medsign"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, in our words.

    Attributes:
        key: names it.
        text: what is claimed.
        place: in the paper; "control" for what the paper does not measure and its claims rest on.
        row: compared with MedSign's, the difference is row minus MedSign.
        figure: "change" (of every classifier), "psnr", "psnr_gap" or "bit_accuracy".
        says: "more", "less" or "unchanged", of the row.
        paper: what the paper states, for the table.
        because: why we think it came out so, by verdict; of an open one what is to be added to
            the sentence of `undecided`, if anything.
    """

    key: str
    text: str
    place: str
    row: str
    figure: str
    says: str
    paper: str
    because: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.says not in ("more", "less", "unchanged"):
            raise ValueError(f"says: expected more, less or unchanged, got {self.says!r}")
        known = ("change", "psnr", "psnr_gap", "bit_accuracy")
        if self.figure not in known:
            raise ValueError(f"figure: expected one of {known}, got {self.figure!r}")


def verdict(figure: Mapping, says: str, *, margin: float | None = None) -> str:
    """What a difference {"value", "low", "high", "least", "most"} says of a claim.

    Args:
        says: "more", "less" or "unchanged".
        margin: of "unchanged", above 0.

    Raises:
        ValueError: for "unchanged" without a margin.
    """
    if says == "unchanged" and not (margin is not None and margin > 0):
        raise ValueError(f'"unchanged" needs a margin above 0, got {margin}')
    ends = [figure[name] for name in ("low", "high", "least", "most")]
    if None in ends:
        return OPEN
    low, high = min(ends), max(ends)  # both the images and the seeds must agree
    if says == "unchanged":
        if -margin <= low and high <= margin:
            return HOLDS
        return FAILS if low > margin or high < -margin else OPEN
    if says == "less":
        low, high = -high, -low
    return HOLDS if low > 0 else FAILS if high < 0 else OPEN


def together(verdicts: Sequence[str]) -> str:
    """Of several classifiers: what all of them say, otherwise not decidable."""
    return verdicts[0] if len(set(verdicts)) == 1 else OPEN


def undecided(figures: Mapping[str, Mapping], verdicts: Mapping[str, str], says: str) -> str:
    """Why differences, by classifier, are not decidable: one sentence."""
    if any(value is None for figure in figures.values() for value in figure.values()):
        return "Not everything that it rests on was measured."
    if len(set(verdicts.values())) > 1:
        each = ", ".join(
            f"by {name} it {'is ' if said == OPEN else ''}{said}" for name, said in verdicts.items()
        )
        return f"The classifiers do not agree: {each}."
    if says == "unchanged":
        return "The margin lies within what the images or the seeds leave possible."
    if all(figure["low"] * figure["high"] > 0 for figure in figures.values()):
        return "The images tell the two apart, but not every seed does."
    return "The difference is smaller than what these images and seeds can tell apart."


_SAME_MAP = (
    "The tokens of a word look at much the same place here: the words of the findings are few "
    "tokens for the bundled tokenizer, and its attention was grounded in the findings' masks."
)
_GROUNDED = (
    "The bundled generator's attention was grounded in the findings' masks, so every token of a "
    "word looks at the same place and choosing among them changes little."
)


_ENCODED = (
    "(Generated images have no exact masks: this decoder went on with encoded phantoms, which is a "
    "difference as well.)"
)


def _claim(key, text, place, row, figure, says, paper, holds, fails, undecided="") -> Claim:
    because = {HOLDS: holds, FAILS: fails, OPEN: undecided}
    return Claim(key=key, text=text, place=place, row=row, figure=figure, says=says, paper=paper,
                 because=because)  # fmt: skip


_DIAGNOSIS, _ROBUST = "Sec. 3, Table 2(a)", "Sec. 3, Table 2(b)"
CLAIMS = (
    _claim(
        "signature_change", "Stable Signature changes the diagnosis more than MedSign.",
        _DIAGNOSIS, "stable_signature", "change", "more", "5.08 against .59",
        "It keeps neither the finding nor smoothness, and at the same message its residual is "
        "larger everywhere.",
        "With an extractor that reads well its residual is small as well, and the classifiers "
        "were trained to look past noise.",
    ),
    _claim(
        "signature_psnr", "Stable Signature costs more image quality than MedSign.",
        _ROBUST, "stable_signature", "psnr", "less", "33.24 dB against 39.71",
        "Its two losses stand in a fixed ratio: no quality is bought with the margin that the "
        "message has left.",
        "Without attacks between decoder and extractor the message needs less, and what it does "
        "not need is bought back as image quality.",
    ),
    _claim(
        "signature_bits", "Stable Signature survives attacks less well than MedSign.",
        _ROBUST, "stable_signature", "bit_accuracy", "less", ".89 against .95",
        "It is trained without attacks between decoder and extractor.",
        "The extractor itself withstands the attacks, whoever embeds the message.",
    ),
    _claim(
        "aas_change", "Without AAS the diagnosis changes about as much.",
        "Sec. 3, ablation (1)", "without_aas", "change", "unchanged", ".55 against .59",
        "The map without AAS is high in the same places and protects them about as well.",
        "The map without AAS is another one in size: it weighs the finding differently.",
    ),
    _claim(
        "aas_bits", "Without AAS fewer bits are read under attack.",
        "Sec. 3, ablation (1)", "without_aas", "bit_accuracy", "less", ".94 against .95",
        "The map without AAS is near zero almost everywhere. Less is held back, the other image "
        "losses grow the further, and the bits pay for a higher PSNR.",
        "Quality is bought only with the margin that the message has left, so every map ends up "
        "at about the same bit accuracy or above.",
    ),
    _claim(
        "cas_change", "Without CAS the diagnosis changes about as much.",
        "Sec. 3, ablation (2)", "without_cas", "change", "unchanged", ".56 against .59",
        _SAME_MAP, "The average over a word's tokens protects other places than the best token.",
    ),
    _claim(
        "cas_bits", "Without CAS fewer bits are read under attack.",
        "Sec. 3, ablation (2)", "without_cas", "bit_accuracy", "less", ".92 against .95",
        "Tokens that look elsewhere take room from the message.", _GROUNDED, _GROUNDED,
    ),
    _claim(
        "tv_psnr", "Without total variation image quality falls.",
        "Sec. 3, ablation (3)", "without_tv", "psnr", "less", "37.75 dB against 39.71",
        "It is linear in the residual, so it goes on removing what a square has let go.",
        "Total variation pays for smoothness with size: without it the same message fits in a "
        "smaller, rougher residual.",
    ),
    _claim(
        "tv_change", "Without total variation the diagnosis changes about as much.",
        "Sec. 3, ablation (3)", "without_tv", "change", "unchanged", ".62 against .59",
        "It says nothing about where the residual is.",
        "A smooth residual is seen by a classifier that has learnt to look past fine noise.",
    ),
    _claim(
        "preservation_change", "Without the preservation loss the diagnosis changes more.",
        "Sec. 3, ablation (4)", "without_preservation", "change", "more", "2.30 against .59",
        "The residual then lies on the finding as well, where the classifiers look.",
        "What a classifier reads is not only in the finding: a mark that is kept off it is the "
        "stronger around it.",
    ),
    _claim(
        "preservation_psnr", "Without the preservation loss image quality falls.",
        "Sec. 3, ablation (4)", "without_preservation", "psnr", "less", "35.02 dB against 39.71",
        "It is a squared error as well, and whatever its map it makes the residual smaller.",
        "It forbids the places where the message is cheapest, and the rest of the image pays.",
    ),
    _claim(
        "preservation_bits", "Without the preservation loss about as many bits are read.",
        "Sec. 3, ablation (4)", "without_preservation", "bit_accuracy", "unchanged",
        ".94 against .95",
        "The message comes first in both: image losses grow only while it is read.",
        "The freedom to mark the finding is used for the message.",
    ),
    _claim(
        "preservation_place", "The preservation loss moves the mark away from the finding.",
        "Sec. 3, Fig. 3", "without_preservation", "psnr_gap", "less", "shown, not measured",
        "PSNR inside the finding, against outside, is what the loss is made to raise.",
        "The map does not lie where an independent segmenter sees the finding.",
    ),
    _claim(
        "place_change", "It matters where the map is: a uniform one changes the diagnosis more.",
        "control", "uniform_map", "change", "more", "not measured",
        "Protection in no particular place leaves the finding open.",
        "The judges read more than the finding, and a mark spread evenly is weaker everywhere.",
    ),
    _claim(
        "side_change", "A map on the wrong side changes the diagnosis more.",
        "control", "wrong_side_map", "change", "more", "not measured",
        "The mark then gathers on the side of the finding.",
        "The judges read more than the finding, the other lung for instance.",
    ),
    _claim(
        "mask_change", "An exact mask as map would change the diagnosis less.",
        "control", "exact_mask_map", "change", "less", "not measured",
        f"There is something left to gain by better localisation. {_ENCODED}",
        "The attention map is as good as an exact one for this purpose, or protecting what "
        f"surrounds the finding is worth more. {_ENCODED}",
        _ENCODED,
    ),
    _claim(
        "random_change", "The same residual at a random place changes the diagnosis more.",
        "control", "random_residual", "change", "more", "not measured",
        "At equal energy and equal grain, place is what is left: the mark avoids what is read.",
        "Moved, the residual no longer follows the edges of its own image; what it loses there "
        "may be more than what it gains by lying on the finding.",
    ),
)  # fmt: skip


def claim_rows(rows: Sequence[Mapping], claims: Sequence[Claim] = CLAIMS) -> list[dict]:
    """The table of claims, from the rows of Table 2.

    Args:
        rows: of `table2`, each with "row", and "against_medsign" where it is not MedSign's own.

    Returns:
        One dict per claim: claim, place, paper, measured (text, a difference with its interval and
        the range over seeds, for every classifier where the figure is their change), verdict, why;
        and "differences", the figures themselves.
    """
    found = {row["row"]: row for row in rows}
    return [_judged(claim, found) for claim in claims]


def _judged(claim: Claim, rows: Mapping[str, Mapping]) -> dict:
    told = {"key": claim.key, "claim": claim.text, "place": claim.place, "paper": claim.paper}
    if missing := [name for name in (claim.row, REFERENCE) if name not in rows]:
        why = f"There is no row {missing[0]} yet."
        return told | {"measured": "", "verdict": OPEN, "why": why, "differences": {}}
    apart = rows[claim.row]["against_medsign"][claim.figure]
    differences = apart if claim.figure == "change" else {"": apart}
    margins = {name: _margin(claim, rows[REFERENCE], name) for name in differences}
    verdicts = {
        name: verdict(figure, claim.says, margin=margins[name])
        for name, figure in differences.items()
    }
    said = together(list(verdicts.values()))
    why = claim.because[said]
    if said == OPEN:
        why = f"{undecided(differences, verdicts, claim.says)} {why}".rstrip()
    like = (rows[claim.row].get("map") or {}).get("agreement")
    if like is not None and rows[claim.row]["map"]["kind"] != "sharp":
        why += f" (The two maps correlate to {like:.2f}.)"
    seeds = len(set(rows[claim.row]["seeds"]) & set(rows[REFERENCE]["seeds"]))
    if seeds < SEEDS:
        said, why = OPEN, f"Of {SEEDS} seeds that are asked for, both rows have {seeds}."
    elif floored := [name for name in (claim.row, REFERENCE) if rows[name].get("at_floor")]:
        said = OPEN
        why = (
            f"A decoder of the row {floored[0]} never read well enough for its image losses "
            "to grow: no quality was bought back there, as it was in the other row."
        )
    texts = [f"{name}: {_shown(f, claim.figure, margins[name])}".removeprefix(": ")
             for name, f in differences.items()]  # fmt: skip
    return told | {"measured": "; ".join(texts), "verdict": said, "why": why,
                   "differences": differences}  # fmt: skip


def _margin(claim: Claim, reference: Mapping, classifier: str) -> float | None:
    if claim.says != "unchanged":
        return None
    if claim.figure == "bit_accuracy":
        return BITS
    return max(SHARE * reference["classifiers"][classifier]["mean"]["change"]["value"], LEAST)


def _shown(figure: Mapping, name: str, margin: float | None) -> str:
    if figure["value"] is None:
        return "not measured"
    decimals = {"psnr": 2, "psnr_gap": 2, "bit_accuracy": 3, "change": 3}[name]
    value, low, high, least, most = (
        f"{figure[part]:+.{decimals}f}" for part in ("value", "low", "high", "least", "most")
    )
    within = "" if margin is None else f", margin {margin:.{decimals + 1}f}"
    return f"{value} [{low}, {high}], seeds {least} to {most}{within}"
