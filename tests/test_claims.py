"""Claims are judged by their rules, either way, and by what all judges and seeds say."""

import pytest

from medsign_lite.tables.ablations import VARIANTS
from medsign_lite.tables.claims import (
    CLAIMS,
    FAILS,
    HOLDS,
    OPEN,
    Claim,
    claim_rows,
    together,
    undecided,
    verdict,
)
from medsign_lite.tables.table2_measurements import RANDOM


def figure(value, reach=0.1, seeds=0.1):
    return {"value": value, "low": value - reach, "high": value + reach, "least": value - seeds,
            "most": value + seeds}  # fmt: skip


@pytest.mark.parametrize(
    ("says", "value", "reach", "seeds", "expected"),
    [
        ("more", 1.0, 0.5, 0.5, HOLDS),
        ("more", -1.0, 0.5, 0.5, FAILS),
        ("more", 1.0, 1.5, 0.5, OPEN),
        ("more", 1.0, 0.5, 1.5, OPEN),
        ("less", -1.0, 0.5, 0.5, HOLDS),
        ("less", 1.0, 0.5, 0.5, FAILS),
        ("less", -1.0, 0.5, 1.5, OPEN),
        ("unchanged", 0.05, 0.1, 0.2, HOLDS),
        ("unchanged", -1.0, 0.1, 0.2, FAILS),
        ("unchanged", 0.1, 0.5, 0.1, OPEN),
        ("unchanged", 0.4, 0.05, 0.2, OPEN),
    ],
)
def test_verdict(says, value, reach, seeds, expected):
    assert verdict(figure(value, reach, seeds), says, margin=0.3) == expected


def test_verdict_of_what_was_not_measured_and_without_a_margin():
    assert verdict(figure(1.0) | {"low": None}, "more") == OPEN
    for margin in (None, 0.0):
        with pytest.raises(ValueError, match='"unchanged" needs a margin above 0'):
            verdict(figure(0.0), "unchanged", margin=margin)


def test_classifiers_must_agree():
    assert together([HOLDS, HOLDS]) == HOLDS
    assert together([HOLDS, FAILS]) == together([FAILS, OPEN]) == OPEN


@pytest.mark.parametrize(
    ("says", "figures", "expected"),
    [
        ("more", {"a": figure(1.0), "b": figure(0.0)},
         "The classifiers do not agree: by a it holds, by b it is not decidable."),
        ("more", {"a": figure(1.0), "b": figure(-1.0)},
         "The classifiers do not agree: by a it holds, by b it does not hold."),
        ("unchanged", {"": figure(0.3)}, "The margin lies within"),
        ("less", {"": figure(-0.2, 0.1, 0.5)}, "The images tell the two apart, but not every seed"),
        ("less", {"": figure(-0.2, 0.5, 0.1)}, "The difference is smaller than"),
        ("less", {"": figure(-0.2) | {"low": None}}, "Not everything that it rests on was"),
    ],
)  # fmt: skip
def test_what_is_not_decidable_says_why(says, figures, expected):
    verdicts = {name: verdict(one, says, margin=0.3) for name, one in figures.items()}
    assert together(list(verdicts.values())) == OPEN
    assert undecided(figures, verdicts, says).startswith(expected)


def table(row, differences, *, change=1.0):
    reference = {"row": "medsign", "seeds": ["0", "1", "2"], "classifiers": {
        name: {"mean": {"change": figure(change)}} for name in ("a", "b")}}  # fmt: skip
    return [reference, {"row": row, "seeds": ["0", "1", "2"], "against_medsign": differences}]


def one(key):
    return [next(claim for claim in CLAIMS if claim.key == key)]


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("signature_change", 4.0, -4.0),
        ("preservation_change", 2.0, -2.0),
        ("aas_change", 0.0, 3.0),
        ("cas_change", 0.0, -3.0),
        ("place_change", 1.0, -1.0),
        ("mask_change", -1.0, 1.0),
    ],
)
def test_claims_about_the_diagnosis_hold_and_fail(key, good, bad):
    claim = one(key)
    for value, expected in ((good, HOLDS), (bad, FAILS)):
        apart = {"change": {name: figure(value, 0.01, 0.01) for name in ("a", "b")}}
        (row,) = claim_rows(table(claim[0].row, apart), claim)
        assert row["verdict"] == expected and row["why"] == claim[0].because[expected]
        assert f"a: {value:+.3f}" in row["measured"] and "seeds" in row["measured"]
    apart["change"]["b"] = figure(good, 0.01, 0.01)  # the second judge says otherwise
    (row,) = claim_rows(table(claim[0].row, apart), claim)
    assert row["verdict"] == OPEN and row["why"].startswith("The classifiers do not agree: by a")
    assert ("margin" in row["measured"]) == (claim[0].says == "unchanged")


@pytest.mark.parametrize(
    ("key", "name", "good", "bad"),
    [
        ("signature_psnr", "psnr", -5.0, 5.0),
        ("cas_bits", "bit_accuracy", -0.1, 0.1),
        ("preservation_bits", "bit_accuracy", 0.01, 0.05),
        ("preservation_place", "psnr_gap", -3.0, 3.0),
    ],
)
def test_claims_about_quality_hold_and_fail(key, name, good, bad):
    claim = one(key)
    for value, expected in ((good, HOLDS), (bad, FAILS)):
        apart = {name: figure(value, 0.001, 0.001)}
        assert claim_rows(table(claim[0].row, apart), claim)[0]["verdict"] == expected


def test_margin_of_unchanged_is_a_share_of_medsigns_own_change():
    claim, apart = one("aas_change"), {"change": {"a": figure(0.15, 0.01, 0.01)}}
    assert claim_rows(table("without_aas", apart, change=2.0), claim)[0]["verdict"] == HOLDS
    assert claim_rows(table("without_aas", apart, change=1.0), claim)[0]["verdict"] == FAILS
    assert claim_rows(table("without_aas", apart, change=0.0), claim)[0]["verdict"] == FAILS


def test_the_agreement_of_two_maps_is_told():
    claim, apart = one("cas_change"), {"change": {"a": figure(0.0, 0.01, 0.01)}}
    rows = table("without_cas", apart)
    rows[1]["map"] = {"kind": "sharp_without_cas", "agreement": 0.876}
    assert claim_rows(rows, claim)[0]["why"].endswith("(The two maps correlate to 0.88.)")


def test_fewer_than_three_seeds_decide_nothing():
    claim, apart = one("signature_psnr"), {"psnr": figure(-5.0, 0.01, 0.01)}
    rows = table("stable_signature", apart)
    assert claim_rows(rows, claim)[0]["verdict"] == HOLDS
    rows[1]["seeds"] = ["0", "1"]
    (row,) = claim_rows(rows, claim)
    assert (
        row["verdict"] == OPEN and row["why"] == "Of 3 seeds that are asked for, both rows have 2."
    )
    assert "-5.00" in row["measured"]


def test_decoders_that_never_read_well_decide_nothing():
    claim, apart = one("signature_psnr"), {"psnr": figure(-5.0, 0.01, 0.01)}
    rows = table("stable_signature", apart)
    rows[1]["at_floor"] = True
    (row,) = claim_rows(rows, claim)
    assert row["verdict"] == OPEN and "stable_signature never read well enough" in row["why"]


def test_a_missing_row_is_said():
    rows = claim_rows([{"row": "medsign"}])
    assert len(rows) == len(CLAIMS) and {row["verdict"] for row in rows} == {OPEN}
    assert rows[0]["why"] == "There is no row stable_signature yet."


def test_every_claim_is_about_a_row_that_can_be_made_and_says_what_it_rests_on():
    assert {claim.row for claim in CLAIMS} <= {*VARIANTS, RANDOM}
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert set(claim.because) == {HOLDS, FAILS, OPEN}
        assert claim.because[HOLDS] and claim.because[FAILS]


@pytest.mark.parametrize(("field", "value"), [("says", "better"), ("figure", "beauty")])
def test_claim_refuses(field, value):
    fields = {"key": "k", "text": "", "place": "", "row": "medsign", "figure": "psnr",
              "says": "more", "paper": "", "because": {}}  # fmt: skip
    with pytest.raises(ValueError, match=value):
        Claim(**fields | {field: value})
