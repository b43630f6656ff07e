"""Figures quoted in prose agree with the recorded ones they are quoted from.

A quote is a number and, right after it, a comment that says where it is from, which no reader sees:

    The image keeps 39.5<!-- watermark_chest/psnr/value --> dB, and after JPEG
    97 %<!-- attacker_chest/curves/attack=jpeg,strength=50/bit_accuracy --> of the bits are read.

The first word is the file in results/, the others lead through its values: a key of a dict, or of a
list the one row with these entries. The number is rounded as it is printed; a percentage is one
hundred times what is recorded. What is not recorded yet is not checked.
"""

import json
import re
from pathlib import Path

import pytest

from medsign_lite.results import record_result

ROOT = Path(__file__).resolve().parent.parent
QUOTE = re.compile(r"(-?\d+(?:\.\d+)?)( ?%)?<!-- (\S+) -->")


def look_up(values, way: list[str]):
    for word in way:
        if isinstance(values, list):
            wanted = dict(pair.split("=") for pair in word.split(","))
            (values,) = (
                row for row in values
                if all(_same(row.get(key), value) for key, value in wanted.items())
            )  # fmt: skip
        else:
            values = values[word]
    return values


def _same(value, text: str) -> bool:
    return value == float(text) if isinstance(value, int | float) else value == text


def wrong_quotes(text: str, results: Path) -> list[str]:
    """A sentence for each quote that is not what is recorded."""
    found = []
    for number, percent, source in QUOTE.findall(text):
        name, *way = source.split("/")
        path = results / f"{name}.json"
        if not path.is_file():
            continue
        try:
            value = look_up(json.loads(path.read_text(encoding="utf-8"))["values"], way)
        except (KeyError, ValueError):
            found.append(f"{source}: nothing is recorded there")
            continue
        value = value * 100 if percent else value
        decimals = len(number.partition(".")[2])
        if f"{value:.{decimals}f}" != number:
            found.append(f"{source}: quoted as {number}, recorded as {value:.{decimals}f}")
    return found


@pytest.fixture
def results(tmp_path):
    rows = [
        {"attack": "jpeg", "strength": float(s), "bits": b} for s, b in ((50, 0.947), (10, 0.5))
    ]
    record_result(tmp_path / "some.json", {"psnr": {"value": 39.512}, "curves": rows}, {})
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "39.5<!-- some/psnr/value --> dB",
        "39.51<!-- some/psnr/value --> and 95 %<!-- some/curves/attack=jpeg,strength=50/bits -->",
        "0.50<!-- some/curves/strength=10/bits -->",
        "7<!-- not_recorded_yet/psnr --> and 8 without a source",
    ],
)
def test_what_is_recorded_may_be_quoted(results, text):
    assert wrong_quotes(text, results) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("39.6<!-- some/psnr/value -->", "quoted as 39.6, recorded as 39.5"),
        ("94 %<!-- some/curves/strength=50/bits -->", "quoted as 94, recorded as 95"),
        ("1<!-- some/ssim -->", "some/ssim: nothing is recorded there"),
        ("1<!-- some/curves/attack=jpeg/bits -->", "nothing is recorded there"),  # two rows
    ],
)
def test_what_is_not_recorded_is_named(results, text, why):
    (found,) = wrong_quotes(text, results)
    assert why in found


def test_quotes_agree_with_what_is_recorded():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("medsign_lite/weights/*.md"),
             *ROOT.glob("notebooks/*.ipynb")]  # fmt: skip
    wrong = []
    for page in pages:
        found = wrong_quotes(page.read_text(encoding="utf-8"), ROOT / "results")
        wrong += [f"{page.name}: {what}" for what in found]
    assert not wrong, "\n".join(wrong)
