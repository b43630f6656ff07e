"""Chest phantoms: the picture, the masks and the report of one seed agree with each other."""

import re

import numpy as np
import pytest

from data_prep.chest_findings import FINDINGS, MASK_LEVEL
from data_prep.chest_phantom import draw_chest
from data_prep.chest_reports import MAXIMUM_WORDS, NEGATIVES, WORDS, chest_report
from data_prep.phantom import Finding, smooth_noise, smooth_step


def occurrences(word: str, report: str) -> int:
    return len(re.findall(rf"\b{word}\b", report, flags=re.IGNORECASE))


@pytest.fixture(scope="module")
def phantoms():
    return [draw_chest(seed, size=64) for seed in range(200)]


def test_draw_chest_same_seed_same_pixels():
    first, second, other = draw_chest(5), draw_chest(5), draw_chest(6)
    assert first.image.tobytes() == second.image.tobytes()
    assert (first.report, first.findings) == (second.report, second.findings)
    assert all((a == b).all() for a, b in zip(first.masks, second.masks, strict=True))
    assert np.abs(first.image.astype(int) - other.image).mean() > 3


@pytest.mark.parametrize("size", [32, 97, 128])
def test_draw_chest_shapes(size):
    phantom = draw_chest(11, size=size, findings=("effusion", "pneumonia"))
    assert phantom.image.shape == (size, size) and phantom.image.dtype == np.uint8
    assert [finding.name for finding in phantom.findings] == ["effusion", "pneumonia"]
    assert all(mask.shape == (size, size) and mask.dtype == bool for mask in phantom.masks)
    assert phantom.modality == "chest"


def test_draw_chest_has_the_same_anatomy_at_another_size():
    small = draw_chest(3, size=64, findings=("cardiomegaly",))
    large = draw_chest(3, size=256, findings=("cardiomegaly",))
    shrunk = large.image.reshape(64, 4, 64, 4).mean(axis=(1, 3))
    assert np.abs(shrunk - small.image).mean() < 6
    coarse = large.masks[0].reshape(64, 4, 64, 4).mean(axis=(1, 3)) > 0.5
    both, either = (coarse & small.masks[0]).sum(), (coarse | small.masks[0]).sum()
    assert both / either > 0.8
    assert small.report == large.report


@pytest.mark.parametrize("name", FINDINGS)
def test_masks_hold_the_change_of_the_picture(name):
    for seed in range(8):
        with_it = draw_chest(seed, findings=(name,))
        without = draw_chest(seed, findings=())
        change = np.abs(with_it.image.astype(float) - without.image)
        mask = with_it.masks[0]
        assert 0.004 < mask.mean() < 0.35
        assert change[mask].mean() > 14, "the finding does not show"
        far = change[~mask]  # a soft rim below MASK_LEVEL of the peak, and scatter elsewhere
        assert np.quantile(far, 0.97) < 16 + 60 * MASK_LEVEL
        assert far.mean() < 3
        assert change[mask].mean() > 12 * far.mean()


def test_air_is_dark_and_opacities_are_bright():
    for name in FINDINGS:
        with_it, without = draw_chest(2, findings=(name,)), draw_chest(2, findings=())
        change = (with_it.image.astype(float) - without.image)[with_it.masks[0]].mean()
        assert (change < 0) == (name == "pneumothorax")


def test_side_of_the_mask_is_the_side_named():
    # the patient's right is the left half of the image
    seen = set()
    for name in ("pneumonia", "pneumothorax", "atelectasis", "effusion"):
        for seed in range(15):
            phantom = draw_chest(seed, size=64, findings=(name,))
            side, mask = phantom.findings[0].side, phantom.masks[0]
            left_half = mask[:, :32].sum() / mask.sum()
            seen.add(side)
            assert {
                "right": left_half > 0.95,
                "left": left_half < 0.05,
                "bilateral": 0.05 < left_half < 0.95,
            }[side]
            if side in ("right", "left"):
                other = {"right": "left", "left": "right"}[side]
                assert occurrences(other, phantom.report) == 0
                assert occurrences(side, phantom.report) == 1
    assert seen == {"right", "left", "bilateral"}


def test_enlarged_heart_is_wider_than_a_normal_one():
    for seed in range(6):
        mask = draw_chest(seed, findings=("cardiomegaly",)).masks[0]
        rows = mask.any(axis=1)
        middle = mask[rows][rows.sum() // 2]
        columns = np.flatnonzero(middle)
        assert columns[-1] - columns[0] > middle.sum()  # a ring: the normal heart lies between


def test_one_finding_does_not_move_another():
    alone = draw_chest(8, findings=("edema",))
    together = draw_chest(8, findings=("edema", "cardiomegaly"))
    assert alone.findings[0].severity == together.findings[0].severity
    assert (alone.masks[0] & together.masks[0]).sum() / alone.masks[0].sum() > 0.7


def test_number_and_frequency_of_findings(phantoms):
    counts = np.bincount([len(phantom.findings) for phantom in phantoms], minlength=4)
    assert len(counts) == 4
    np.testing.assert_allclose(counts / 200, [0.16, 0.34, 0.3, 0.2], atol=0.12)
    names = [finding.name for phantom in phantoms for finding in phantom.findings]
    assert all(names.count(name) > len(names) / 12 for name in FINDINGS)
    severities = [finding.severity for phantom in phantoms for finding in phantom.findings]
    assert 0.3 <= min(severities) and max(severities) <= 1


def test_masks_of_random_phantoms_are_not_empty(phantoms):
    for phantom in phantoms:
        assert len(phantom.masks) == len(phantom.findings)
        for finding, mask in zip(phantom.findings, phantom.masks, strict=True):
            assert mask.sum() >= 8, (finding, phantom.report)


def random_findings(generator):
    names = generator.permutation(FINDINGS)[: generator.integers(4)]
    zones = {
        "pneumonia": ("upper", "mid", "lower"),
        "pneumothorax": ("apical", ""),
        "atelectasis": ("lower", "mid"),
    }
    sides = {"edema": ("bilateral",), "cardiomegaly": ("",), "pneumothorax": ("right", "left")}
    return [
        Finding(
            name=str(name),
            severity=float(generator.uniform(0.3, 1)),
            side=str(generator.choice(sides.get(name, ("right", "left", "bilateral")))),
            zone=str(generator.choice(zones.get(name, ("",)))),
        )
        for name in names
    ]


def test_reports_name_each_finding_once_and_no_absent_one():
    generator = np.random.default_rng(0)
    bare, own_word, named_in_all = 0, 0, 0
    for _ in range(2000):
        findings = random_findings(generator)
        report, named = chest_report(findings, generator)
        present = {finding.name for finding in named}
        assert [finding.name for finding in named] == [finding.name for finding in findings]
        assert len(report.split()) <= MAXIMUM_WORDS and report.endswith(".")
        assert report[0].isupper() and ".." not in report and "{" not in report
        for finding in named:
            assert occurrences(finding.word, report) == 1, (finding, report)
            own_word += finding.word in (finding.name, finding.name + "s")
            named_in_all += 1
        bare += "No " not in report
        for sentence in re.findall(r"\bNo [^.]*\.", report):
            for name in present:
                assert not any(phrase in sentence for phrase in NEGATIVES[name]), report
        absent = set(FINDINGS) - present
        positive = re.sub(r"\bNo [^.]*\.", "", report)
        for name in absent:
            assert not any(occurrences(word, positive) for word, _ in WORDS[name]), report
    assert 0.25 < bare / 2000 < 0.42
    assert 0.65 < own_word / named_in_all < 0.8


def test_report_severity_follows_the_finding():
    generator = np.random.default_rng(1)
    for severity, banned in ((0.35, ("moderate", "large", "severe")), (0.95, ("small", "mild"))):
        for _ in range(40):
            finding = Finding(name="effusion", side="left", zone="basal", severity=severity)
            report, _ = chest_report([finding], generator)
            assert not any(occurrences(word, report) for word in banned)
            assert occurrences("right", report) == 0


@pytest.mark.parametrize("findings", [("fracture",), ("edema", "edema")], ids=["unknown", "twice"])
def test_wrong_findings_are_refused(findings):
    with pytest.raises(ValueError, match="expected distinct findings"):
        draw_chest(0, findings=findings)
    with pytest.raises(ValueError, match="expected distinct findings"):
        chest_report([Finding(name=name) for name in findings], np.random.default_rng(0))


@pytest.mark.parametrize("size", [31, 0, 64.0])
def test_wrong_size_is_refused(size):
    with pytest.raises(ValueError, match="at least 32"):
        draw_chest(0, size=size)


def test_smooth_step_by_hand():
    value = np.array([-2, -1, 0, 0.5, 1, 2], dtype=np.float32)
    # t = (value + 1) / 2 clipped; 3 t^2 - 2 t^3 at t = 3/4 is 27/32
    np.testing.assert_allclose(smooth_step(value, 1.0), [0, 0, 0.5, 27 / 32, 1, 1], atol=1e-6)


def test_smooth_noise_is_one_field_at_every_size():
    small, large = (smooth_noise(np.random.default_rng(4), 6, size) for size in (40, 160))
    shrunk = large.reshape(40, 4, 40, 4).mean(axis=(1, 3))
    assert np.abs(shrunk - small).max() < 0.1
