"""The fundus phantom: same seed same eye, masks where the findings are, reports that tell it."""

import re

import numpy as np
import pytest

from data_prep.fundus_phantom import COUNT_SHARES, FINDINGS, draw_fundus
from data_prep.fundus_reports import WORDS, fundus_report
from data_prep.phantom import Finding

SIDED = FINDINGS[:3]
SEEDS = range(10)


@pytest.fixture(scope="module")
def many():
    return [draw_fundus(seed, size=32) for seed in range(300)]


def reduced(image: np.ndarray, size: int) -> np.ndarray:
    """Mean over blocks: (H, W, 3) uint8 to (size, size, 3) float in [0, 1]."""
    block = image.shape[0] // size
    return image.reshape(size, block, size, block, 3).mean(axis=(1, 3)) / 255.0


def occurrences(word: str, text: str) -> int:
    return len(re.findall(rf"\b{word}\b", text, flags=re.IGNORECASE))


def test_draw_fundus_repeats_its_pixels():
    first, second = draw_fundus(5), draw_fundus(5)
    assert first.image.shape == (128, 128, 3) and first.image.dtype == np.uint8
    assert first.modality == "fundus"
    np.testing.assert_array_equal(first.image, second.image)
    assert first.report == second.report and first.findings == second.findings
    assert not np.array_equal(first.image, draw_fundus(6).image)


def test_draw_fundus_shows_the_same_eye_at_another_size():
    for seed in range(3):
        small, large = draw_fundus(seed, size=128), draw_fundus(seed, size=512)
        assert small.report == large.report and small.findings == large.findings
        difference = reduced(small.image, 32) - reduced(large.image, 32)
        other = reduced(small.image, 32) - reduced(draw_fundus(seed + 50, size=512).image, 32)
        assert np.abs(difference).mean() < 0.02 < np.abs(other).mean()


@pytest.mark.parametrize("size", [32, 57, 128])
@pytest.mark.parametrize("name", FINDINGS)
def test_masks_are_not_empty_and_lie_inside_the_field(name, size):
    for seed in SEEDS:
        phantom = draw_fundus(seed, size=size, findings=(name,))
        (mask,) = phantom.masks
        assert mask.shape == (size, size) and mask.dtype == bool and mask.any()
        assert mask.mean() < 0.2
        assert phantom.image.max(axis=2)[mask].min() > 10  # the surround is black
        assert phantom.image[0, 0].max() == 0


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_changes_the_picture_inside_its_mask_only(name):
    for seed in SEEDS:
        bare, drawn = draw_fundus(seed, findings=()), draw_fundus(seed, findings=(name,))
        change = np.abs(drawn.image.astype(int) - bare.image).max(axis=2)
        (mask,) = drawn.masks
        assert change[mask].mean() > 12
        assert change[~mask].mean() < 0.2
        if name != "cupping":  # a wider cup softens its own edge
            assert change[~mask].max() <= 16


@pytest.mark.parametrize("name", SIDED)
def test_sided_findings_lie_wholly_on_their_side(name):
    seen = set()
    for seed in SEEDS:
        phantom = draw_fundus(seed, findings=(name,))
        (finding,), (mask,) = phantom.findings, phantom.masks
        seen.add(finding.side)
        upper, lower = mask[:64].any(), mask[64:].any()
        assert (upper, lower) == ((True, False) if finding.side == "superior" else (False, True))
        right_eye = "right eye" in phantom.report.lower()
        rightmost = np.nonzero(mask)[1].mean() > 63.5
        assert rightmost == (right_eye == (finding.zone == "nasal"))
    assert seen == {"superior", "inferior"}


def test_sided_findings_of_one_image_lie_in_different_quadrants():
    for seed in SEEDS:
        found = draw_fundus(seed, findings=SIDED).findings
        assert len({(finding.side, finding.zone) for finding in found}) == 3


def test_the_disc_lies_on_the_side_of_the_eye_named():
    eyes = []
    for seed in range(30):
        phantom = draw_fundus(seed, findings=())
        report = phantom.report.lower()
        right = "right eye" in report
        assert right != ("left eye" in report)
        green = phantom.image[44:84, :, 1].astype(float).mean(axis=0)  # the disc's rows
        assert (green.argmax() >= 64) == right
        eyes.append(right)
    assert 5 < sum(eyes) < 25


def test_cupping_widens_the_cup_beyond_two_thirds_of_the_disc():
    for seed in SEEDS:
        bare, drawn = draw_fundus(seed, findings=()), draw_fundus(seed, findings=("cupping",))
        blue = drawn.image[..., 2].astype(float) - bare.image[..., 2]
        assert blue[drawn.masks[0]].mean() > 15
        assert drawn.masks[0].sum() > np.pi * (0.66 * 0.145 * 64) ** 2 * 0.85


def test_findings_are_drawn_in_the_stated_shares(many):
    counts = np.zeros(4)
    names = dict.fromkeys(FINDINGS, 0)
    for phantom in many:
        found = phantom.findings
        counts[len(found)] += 1
        for finding in found:
            names[finding.name] += 1
            assert 0.3 <= finding.severity <= 1.0
    np.testing.assert_allclose(counts / len(many), COUNT_SHARES, atol=0.08)
    assert min(names.values()) > 0.7 * max(names.values())


def test_reports_name_each_finding_once_and_deny_only_what_is_absent(many):
    short = 0
    for phantom in many:
        report = phantom.report
        assert len(phantom.findings) == len(phantom.masks)
        assert len(report.split()) <= 45 and "{" not in report and "  " not in report
        assert "eye" in report.lower()
        denied = set(re.findall(r"no (?:[a-z]+ )?([a-z]+)", report.lower()))
        for finding in phantom.findings:
            assert finding.word in WORDS[finding.name]
            assert occurrences(finding.word, report) == 1
            assert not denied & set(WORDS[finding.name])
            if finding.side:  # CLIP's text encoder does not look ahead
                before = report.lower()[: report.lower().index(finding.word)]
                assert re.findall("superior|inferior", before)[-1] == finding.side
        for absent in set(FINDINGS) - {finding.name for finding in phantom.findings}:
            for word in WORDS[absent]:
                assert occurrences(word, report) == occurrences(rf"no (?:[a-z]+ )?{word}", report)
        sides = {finding.side for finding in phantom.findings}
        for side in ("superior", "inferior"):
            assert side in sides or occurrences(side, report) == 0
        short += report.count(".") == 1
    assert 0.2 < short / len(many) < 0.5


def test_fundus_report_words_of_one_finding():
    finding = Finding(name="exudates", side="inferior", zone="temporal", severity=0.9)
    reports = set()
    for seed in range(60):
        report, (named,) = fundus_report((finding,), "left", np.random.default_rng(seed))
        assert named == Finding(
            name="exudates", word="exudates", side="inferior", zone="temporal", severity=0.9
        )
        assert "left eye" in report.lower() and "nasal" not in report
        assert not re.search("mild|moderate|few", report.lower())
        reports.add(report)
    assert len(reports) > 50


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="at least 32"):
        draw_fundus(0, size=31)
    with pytest.raises(ValueError, match="seed"):
        draw_fundus(-1)
    with pytest.raises(ValueError, match="pneumonia"):
        draw_fundus(0, findings=("pneumonia",))
    with pytest.raises(ValueError, match="different findings"):
        draw_fundus(0, findings=("drusen", "drusen"))
    with pytest.raises(ValueError, match="middle"):
        fundus_report((), "middle", np.random.default_rng(0))
    with pytest.raises(ValueError, match="glaucoma"):
        fundus_report((Finding(name="glaucoma"),), "left", np.random.default_rng(0))
