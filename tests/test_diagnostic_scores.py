"""Diagnostic scores: by hand, against scikit-learn, and paired intervals."""

from math import log

import pytest
import torch
from sklearn.metrics import roc_auc_score

from medsign_lite.evaluation import diagnostic_change
from medsign_lite.judges.xrayvision import XRayVisionClassifier
from medsign_lite.rows import share_row
from medsign_lite.tables.diagnostic_scores import (
    diagnostic_rows,
    probabilities,
    require_findings,
    resampled_auc,
)

NAMES = ("edema", "effusion")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows_of(marked, original, labels=None, *, findings=NAMES, resamples=200):
    marked, original = torch.tensor(marked), torch.tensor(original)
    labels = None if labels is None else torch.tensor(labels)
    return diagnostic_rows(
        marked, original, findings=findings, labels=labels, generator=generator(),
        resamples=resamples,
    )  # fmt: skip


def test_rows_by_hand():
    original = [[0.10, 0.50], [0.40, 0.50], [0.60, 0.50], [0.90, 0.50]]
    marked = [[0.10, 0.50], [0.52, 0.50], [0.58, 0.50], [0.50, 0.50]]
    edema, effusion, mean = rows_of(marked, original, [[0, 0], [0, 1], [1, 0], [1, 0]])
    assert edema["change"] == pytest.approx((0 + 12 + 2 + 40) / 4)
    assert edema["shift"] == pytest.approx((12 - 2 - 40) / 4)
    assert edema["largest"] == pytest.approx(40)
    assert edema["tail"] == pytest.approx(40 - 0.15 * 28)  # between 12 and 40, at 2.85 of 3
    odds = [abs(log(p / (1 - p)) - log(q / (1 - q))) for p, q in
            ((0.1, 0.1), (0.52, 0.4), (0.58, 0.6), (0.5, 0.9))]  # fmt: skip
    assert edema["log_odds"] == pytest.approx(sum(odds) / 4)
    assert edema["flipped"] == 0.5  # the second is found now, the fourth no longer
    assert edema["auc"] == 1 and edema["auc_marked"] == 3 / 4  # .50 lies below .52
    assert edema["auc_change"] == -0.25
    assert effusion["change"] == 0 and effusion["auc"] == 0.5 and effusion["auc_change"] == 0
    assert mean["change"] == pytest.approx(edema["change"] / 2)
    assert mean["largest"] == pytest.approx(40) and mean["flipped"] == 0.25
    exact = share_row("flipped", torch.tensor([True, False, False, False]))
    assert {name: mean[name] for name in exact} == pytest.approx(exact)  # 4 images, not 8 answers
    assert mean["auc_change"] == -0.125 and mean["shift"] == pytest.approx(edema["shift"] / 2)


def test_change_is_that_of_the_papers_table():
    images, reference = torch.rand(2, 9, 3, 16, 16, generator=generator(1))

    def classify(image):
        return image.mean(dim=(2, 3))[:, :2]

    old = diagnostic_change(classify, images, reference, findings=NAMES, generator=generator())
    pair = (probabilities(classify, some, batch_size=4) for some in (images, reference))
    new = diagnostic_rows(*pair, findings=NAMES, generator=generator())
    for before, now in zip(old, new, strict=True):
        assert now["change"] == pytest.approx(before["change"])
        assert now["shift"] == pytest.approx(before["shift"])


def test_resampled_auc_agrees_with_scikit_learn():
    scores = (10 * torch.rand(40, generator=generator(2))).round() / 10  # with ties
    target = torch.rand(40, generator=generator(3)) > 0.6
    rows = torch.randint(40, (20, 40), generator=generator(4))
    expected = [roc_auc_score(target[row], scores[row]) for row in rows]
    assert resampled_auc(scores, target, rows).tolist() == pytest.approx(expected)
    assert resampled_auc(scores, target, torch.zeros(1, 40, dtype=torch.long)).isnan().all()


def test_intervals_are_paired_over_images():
    # Images differ wildly and the watermark adds the same to each: there is nothing to doubt.
    original = torch.rand(200, 1, generator=generator(5)).double() * 0.8
    labels = (original > 0.4).double()
    row = diagnostic_rows(
        original + 0.1, original, findings=("edema",), labels=labels, generator=generator()
    )[0]
    for name, value in (("change", 10), ("tail", 10), ("largest", 10), ("auc_change", 0)):
        ends = [row[f"{name}_{end}"] for end in ("low", "high")]
        assert [row[name], *ends] == pytest.approx([value] * 3, abs=1e-9)


def test_interval_of_the_mean_covers_the_truth():
    """In about 95 of 100 samples; a half of the findings' variation is shared by both."""
    inside = 0
    for seed in range(100):
        drawn = generator(seed)
        shared, own = torch.rand(60, 1, generator=drawn), torch.rand(60, 2, generator=drawn)
        size = (shared + own) / 20  # mean 0.05
        row = diagnostic_rows(
            0.5 + size, torch.full_like(size, 0.5), findings=NAMES, generator=drawn, resamples=300
        )[-1]
        inside += row["change_low"] <= 5 <= row["change_high"]
    assert 87 <= inside <= 100


def test_log_odds_move_where_a_probability_hardly_can():
    sure = rows_of([[1 - 1e-4, 0.0]], [[1 - 1e-3, 0.0]])
    assert sure[0]["change"] < 0.1 and sure[0]["log_odds"] == pytest.approx(log(10), rel=1e-3)
    assert sure[1]["log_odds"] == 0  # certain before and after: finite


def test_interval_of_flips_does_not_collapse():
    edema, _, mean = rows_of([[0.2, 0.2]] * 10, [[0.1, 0.2]] * 10)
    for row in (edema, mean):
        assert (row["flipped"], row["flipped_low"]) == (0, 0)
        assert row["flipped_high"] == pytest.approx(1 - 0.025 ** (1 / 10))  # (1 - p)^10 = 2.5 %


def test_findings_of_one_class_have_no_auc():
    first, second, mean = rows_of([[0.2, 0.3], [0.4, 0.1]], [[0.2, 0.2]] * 2, [[0, 0], [0, 1]])
    assert first["auc"] is first["auc_change"] is first["auc_change_low"] is None
    assert mean["auc_change"] == second["auc_change"] == -0.5
    without = rows_of([[0.2, 0.3]], [[0.2, 0.2]])
    assert "auc" not in without[0] and without[-1]["auc_change"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"original": [[0.1, 0.2]]}, r"expected probabilities \(N, 2\) twice"),
        ({"findings": ("edema",)}, r"expected probabilities \(N, 1\) twice"),
        ({"labels": [[0, 1]]}, r"expected labels \(2, 2\)"),
        ({"labels": [[0, 1], [0, 2]]}, r"of 0 and 1, got \(2, 2\) of \[0, 1, 2\]"),
    ],
    ids=["images", "findings", "labels", "values"],
)
def test_rows_refuse(changes, message):
    arguments = {"marked": [[0.1, 0.2]] * 2, "original": [[0.1, 0.2]] * 2} | changes
    with pytest.raises(ValueError, match=message):
        rows_of(**arguments)


def test_probabilities_refuse_what_is_none():
    image = torch.rand(2, 3, 32, 32)
    with pytest.raises(ValueError, match="got .* to .*: logits, perhaps"):
        probabilities(lambda x: torch.full((len(x), 2), 3.0), image)
    with pytest.raises(ValueError, match=r"expected \(2, F\) probabilities, got \(1, 2\)"):
        probabilities(lambda x: torch.zeros(1, 2), image)
    with pytest.raises(ValueError, match="at least one image"):
        probabilities(lambda x: x, [])


class Network(torch.nn.Module):
    def __init__(self, pathologies):
        super().__init__()
        self.pathologies = pathologies
        self.scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, image):
        return torch.zeros(len(image), len(self.pathologies)) + self.scale


def test_classifier_without_a_finding_is_named_with_it():
    classifiers = {
        "both": XRayVisionClassifier(Network(["Edema", "Effusion"]), size=32),
        "one": XRayVisionClassifier(Network(["Edema", ""]), size=32),
    }
    require_findings({"both": classifiers["both"]}, NAMES)
    with pytest.raises(ValueError, match="classifier 'one' has no effusion: .* but edema"):
        require_findings(classifiers, NAMES)

    class Flat:
        def probability(self, image, findings):
            return torch.zeros(len(image))

    with pytest.raises(ValueError, match=r"'flat', edema: expected a probability \(1, 1\), got"):
        require_findings({"flat": Flat()}, NAMES)
