"""The judges: what they compute, how they are scored, and that training works and resumes."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from medsign_lite.data import CHEST_FINDINGS, FUNDUS_FINDINGS, Record, write_manifest
from medsign_lite.judges import judge_training
from medsign_lite.judges.judge_data import Phantoms, disturb
from medsign_lite.judges.judge_networks import (
    FindingClassifier,
    FindingSegmenter,
    JudgeConfig,
    Reading,
)
from medsign_lite.training.training_state import load_training_state

NAMES = ("pneumonia", "effusion", "drusen")
SIZE = 32


def config(kind: str) -> JudgeConfig:
    return JudgeConfig(kind=kind, findings=NAMES, size=SIZE, widths=(8, 8, 16, 16))


@pytest.fixture
def classifier() -> FindingClassifier:
    torch.manual_seed(0)
    return FindingClassifier(config("classifier")).eval()


@pytest.fixture
def mixer() -> FindingClassifier:
    torch.manual_seed(0)
    small = {"findings": NAMES, "size": SIZE, "widths": (8, 8, 16, 16)}
    return FindingClassifier(JudgeConfig(kind="classifier", architecture="mixer", **small)).eval()


@pytest.fixture
def segmenter() -> FindingSegmenter:
    torch.manual_seed(0)
    return FindingSegmenter(config("segmenter")).eval()


def toy(count: int = 16) -> Phantoms:
    """Chest images with a bright square in one half: pneumonia of that side."""
    generator = torch.Generator().manual_seed(3)
    left = torch.arange(count) % 2 == 0  # the left half of the image: the patient's right
    shown = torch.arange(count) % 4 < 2
    images = torch.randint(0, 60, (count, SIZE, SIZE, 3), generator=generator).to(torch.uint8)
    masks = torch.zeros(count, SIZE, SIZE, dtype=torch.int16)
    for row in torch.nonzero(shown).flatten():
        column = 4 if left[row] else 20
        images[row, 12:20, column : column + 8] = 220
        masks[row, 12:20, column : column + 8] = 1
    presence, sides = torch.zeros(count, 3), torch.zeros(count, 3, 2)
    presence[:, 0] = shown.float()
    sides[:, 0, 0], sides[:, 0, 1] = (shown & left).float(), (shown & ~left).float()
    return Phantoms(
        images=images, masks=masks, presence=presence, sides=sides,
        eye=torch.full((count,), torch.nan), fundus=torch.zeros(count, dtype=torch.bool),
        findings=NAMES,
    )  # fmt: skip


# The networks


@pytest.mark.parametrize("kind", [FindingClassifier, FindingSegmenter])
def test_shipped_networks_are_small(kind):
    network = kind()
    assert sum(p.numel() for p in network.parameters()) <= 700_000
    assert network.config.findings == CHEST_FINDINGS + FUNDUS_FINDINGS


def test_classifier_presence_is_the_larger_side(classifier):
    image = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    reading = classifier(image)
    assert reading.sides.shape == (2, 3, 2) and reading.eye.shape == (2,)
    torch.testing.assert_close(reading.presence, reading.sides.max(dim=2).values)
    torch.testing.assert_close(
        classifier.probability(image, ["drusen", "pneumonia"]),
        torch.sigmoid(reading.presence[:, [2, 0]]),
    )


def test_classifier_names_the_side(classifier, monkeypatch):
    logits = torch.tensor([[2.0, 1.0], [2.0, -1.0], [-3.0, -2.0]])
    sides = logits[:, None].expand(3, 3, 2)
    reading = Reading(presence=sides.amax(2), sides=sides, eye=torch.zeros(3))
    monkeypatch.setattr(classifier, "forward", lambda image: reading)
    image = torch.zeros(3, 3, SIZE, SIZE)
    assert classifier.sides(image, "pneumonia") == ["bilateral", "right", "left"]
    assert classifier.sides(image, "drusen") == ["bilateral", "superior", "inferior"]


def test_segmenter_answers_at_the_size_of_the_image(segmenter):
    image = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    logits = segmenter(image)
    assert logits.shape == (2, 3, 48, 64)
    mask = segmenter.mask(image, ["drusen"])
    torch.testing.assert_close(mask, logits[:, 2:] > 0)


@pytest.mark.parametrize("judge", ["classifier", "segmenter"])
def test_judge_refuses_a_finding_it_lacks(judge, request):
    network = request.getfixturevalue(judge)
    with pytest.raises(ValueError, match=f"{judge} knows pneumonia.* has no edema"):
        network.indices(["pneumonia", "edema"])


def test_judge_refuses_other_images(classifier):
    with pytest.raises(ValueError, match="expected 3 channels"):
        classifier(torch.zeros(1, 1, SIZE, SIZE))
    with pytest.raises(ValueError, match="at least 32 pixels"):
        classifier(torch.zeros(1, 3, 16, SIZE))
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        classifier(torch.full((1, 3, SIZE, SIZE), 2.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "oracle"}, "kind 'classifier' or 'segmenter', got 'oracle'"),
        ({"findings": ("fracture",)}, "distinct findings"),
        ({"findings": ("edema", "edema")}, "distinct findings"),
        ({"size": 100}, "multiple of 16"),
        ({"widths": (8, 8, 8)}, "four widths"),
        ({"widths": (8, 8, 8, 9)}, "multiples of 8, got"),
        ({"architecture": "oracle"}, "architecture of .*'mixer'.*, got 'oracle'"),
        ({"architecture": "mixer", "widths": (8, 8, 16, 8)}, "one or more equal ones"),
        ({"architecture": "mixer", "kind": "segmenter"}, "a segmenter is convolutional"),
    ],
    ids=["kind", "unknown", "twice", "size", "widths", "eights", "architecture", "blocks", "mask"],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        JudgeConfig(**({"kind": "classifier"} | changes))


def test_networks_refuse_the_other_kind():
    with pytest.raises(ValueError, match="classifier's configuration, got kind 'segmenter'"):
        FindingClassifier(config("segmenter"))
    with pytest.raises(ValueError, match="segmenter's configuration, got kind 'classifier'"):
        FindingSegmenter(config("classifier"))


def test_save_and_load_give_the_same_answers(classifier, segmenter, tmp_path):
    image = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    judge_training.save_judge(tmp_path / "c", classifier)
    judge_training.save_judge(tmp_path / "s", segmenter)
    read = judge_training.load_classifier(tmp_path / "c")
    assert read.config == classifier.config and not read.training
    assert not any(p.requires_grad for p in read.parameters())
    torch.testing.assert_close(read(image).sides, classifier(image).sides, atol=5e-3, rtol=0)
    read = judge_training.load_segmenter(tmp_path / "s")
    torch.testing.assert_close(read(image), segmenter(image), atol=5e-3, rtol=0)
    with pytest.raises(ValueError, match="expected a model of kind 'classifier'"):
        judge_training.load_classifier(tmp_path / "s")


def test_mixer_is_small_reads_alike_and_is_loaded_by_the_same_name(mixer, tmp_path):
    default = FindingClassifier(JudgeConfig(kind="classifier", architecture="mixer"))
    assert 2 * sum(p.numel() for p in default.parameters()) <= 1.5e6  # bytes, in half precision
    image = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    reading = mixer(image)
    assert reading.sides.shape == (2, 3, 2) and reading.eye.shape == (2,)
    torch.testing.assert_close(
        mixer.probability(image, ["drusen"]), reading.presence[:, [2]].sigmoid()
    )
    judge_training.save_judge(tmp_path, mixer)
    read = judge_training.load_classifier(tmp_path)
    assert read.config.architecture == "mixer" and read.config == mixer.config
    torch.testing.assert_close(read(image).sides, reading.sides, atol=5e-3, rtol=0)
    with pytest.raises(ValueError, match="stages to start from"):
        FindingSegmenter(config("segmenter")).start_from(mixer)


def test_judges_from_before_there_were_two_architectures_are_convolutional(classifier, tmp_path):
    judge_training.save_judge(tmp_path, classifier)
    path = tmp_path / "config.json"
    about = json.loads(path.read_text())
    assert about.pop("architecture") == "convolutional"
    path.write_text(json.dumps(about))
    assert judge_training.load_classifier(tmp_path).config == classifier.config


def test_mixer_learns_one_batch(mixer):
    data = toy()
    batch = data.batch(torch.arange(16))
    optimiser = torch.optim.AdamW(mixer.parameters(), lr=1e-2)
    mixer.train()
    losses = [judge_training.classifier_step(mixer, optimiser, batch)["loss"] for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]
    scores = judge_training.evaluate_classifier(mixer, data)["findings"]["pneumonia"]
    assert scores["accuracy"] > 0.9 and scores["side"] > 0.9


def test_start_from_copies_what_sees_the_image(classifier):
    torch.manual_seed(1)
    segmenter = FindingSegmenter(config("segmenter")).eval()
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(segmenter.features(image)[-1], classifier.features(image)[-1])
    segmenter.start_from(classifier)
    assert torch.equal(segmenter.features(image)[-1], classifier.features(image)[-1])
    with pytest.raises(ValueError, match="stages to start from"):
        segmenter.start_from(FindingClassifier(JudgeConfig(kind="classifier")))


# The data


def record(folder, name: str, **values) -> Record:
    defaults = {"id": name, "image": folder / f"{name}.png", "modality": "chest"}
    return Record(**({"split": "train", "report": "Text."} | defaults | values))


@pytest.fixture
def records(tmp_path) -> list[Record]:
    """A chest image with three findings, one with a mask, and a fundus image of a left eye."""
    mask = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    mask[:, :10] = 255
    Image.fromarray(mask.numpy()).save(tmp_path / "mask.png")
    Image.new("L", (SIZE, SIZE), 100).save(tmp_path / "chest.png")
    Image.new("RGB", (2 * SIZE, 2 * SIZE), (200, 0, 50)).save(tmp_path / "fundus.png")
    return [
        record(
            tmp_path, "chest", findings=("effusion", "pneumonia", "edema"), words=("",) * 3,
            sides=("right", "", "bilateral"), masks=(tmp_path / "mask.png", None, None),
        ),
        record(
            tmp_path, "fundus", modality="fundus", report="Drusen, left eye.",
            findings=("drusen",), words=("Drusen",), sides=("inferior",), masks=(None,),
        ),
    ]  # fmt: skip


def test_phantoms_hold_what_the_records_say(records):
    data = Phantoms.load(records, config("classifier"))
    batch = data.batch(torch.tensor([0, 1]))
    assert batch["presence"].tolist() == [[1, 1, 0], [0, 0, 1]]
    assert batch["sides"][0, 1].tolist() == [1, 0]  # effusion: the patient's right
    assert batch["sides"][0, 0].isnan().all()  # pneumonia: not stated
    assert batch["sides"][0, 2].tolist() == [0, 0]  # drusen: absent
    assert batch["sides"][1, 2].tolist() == [0, 1]  # drusen: inferior
    assert batch["eye"][0].isnan() and batch["eye"][1] == 0
    assert data.asked("drusen").tolist() == [False, True]
    assert batch["masks"][0].sum(dim=(1, 2)).tolist() == [0, SIZE * 10, 0]
    assert batch["masks"][0, 1, :, :10].all()
    expected = torch.tensor([200.0, 0.0, 50.0]) / 255  # from 64 px to 32
    torch.testing.assert_close(batch["image"][1], expected.view(3, 1, 1).expand(3, SIZE, SIZE))


@pytest.mark.parametrize(
    ("report", "eye"),
    [("Fundus of the right eye.", 1), ("OS: normal.", 0), ("Left retina.", 0), ("Right.", None)],
)
def test_phantoms_read_the_eye(tmp_path, records, report, eye):
    row = record(tmp_path, "fundus", modality="fundus", report=report)
    value = Phantoms.load([row], config("classifier")).eye
    assert value.isnan() if eye is None else value == eye


def test_disturb_moves_image_and_masks_together():
    image = torch.zeros(8, 3, SIZE, SIZE)
    image[:, :, 8:20, 10:24] = 1
    labels = torch.zeros(8, 1, SIZE, SIZE, dtype=torch.int16)
    labels[:, :, 8:20, 10:24] = 5
    moved, after = disturb(image, labels, generator=torch.Generator().manual_seed(0))
    assert moved.shape == image.shape and 0 <= moved.min() and moved.max() <= 1
    assert set(after.unique().tolist()) == {0, 5}
    bright = moved.mean(dim=1) > 0.5
    overlap = (bright & (after[:, 0] > 0)).sum() / (after > 0).sum()
    assert overlap > 0.9
    assert not torch.equal(after, labels)


def test_disturb_is_drawn_from_the_generator():
    image, labels = torch.rand(4, 3, SIZE, SIZE), torch.zeros(4, 1, SIZE, SIZE, dtype=torch.int16)
    first, again, other = (
        disturb(image, labels, generator=torch.Generator().manual_seed(seed))[0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


# The scores


class _Told(torch.nn.Module):
    """A judge that gives prepared answers, 64 at a time."""

    def __init__(self, answers):
        super().__init__()
        self.weight, self.answers = torch.nn.Parameter(torch.zeros(())), answers

    def forward(self, image):
        return self.answers


def test_evaluate_classifier_by_hand():
    data = toy(8)  # pneumonia in 0, 1, 4, 5: right, left, right, left
    sides = torch.full((8, 3, 2), -1.0)
    sides[0, 0] = torch.tensor([3.0, -1])  # right: correct
    sides[1, 0] = torch.tensor([3.0, 1])  # found; read as bilateral: wrong
    sides[4, 0] = torch.tensor([-0.5, -2])  # missed, but likelier right: correct
    sides[5, 0] = torch.tensor([-2.0, 1])  # left: correct
    sides[2, 0] = torch.tensor([2.0, 0])  # a false alarm
    scores = judge_training.evaluate_classifier(
        _Told(Reading(sides.amax(2), sides, torch.zeros(8))), data
    )
    found = scores["findings"]["pneumonia"]
    assert found["count"] == 4
    assert found["accuracy"] == 6 / 8
    assert found["sensitivity"] == found["specificity"] == found["side"] == 3 / 4
    # Pairs of a positive (3, 3, -.5, 1) above a negative (2, -1, -1, -1): 4 + 4 + 3 + 3 of 16.
    assert found["auc"] == pytest.approx(14 / 16)
    assert scores["auc"] == found["auc"]  # effusion never occurs: not in the mean
    assert scores["findings"]["effusion"]["auc"] is None
    assert "drusen" not in scores["findings"]  # no fundus image here
    assert scores["eye"] is None


def test_evaluate_segmenter_by_hand():
    data = toy(8)
    logits = torch.full((8, 3, SIZE, SIZE), -1.0)
    logits[0, 0, 12:20, 4:12] = 1  # exact: 1
    logits[1, 0, 12:20, 20:24] = 1  # half of it: 2 * 32 / (32 + 64)
    logits[4, 0, 0, 0] = 1  # beside it: 0; number 5 finds nothing: 0
    logits[2, 0, 0, :2] = 1  # 2 of 1,024 pixels in an image without: not clean
    scores = judge_training.evaluate_segmenter(_Told(logits), data)
    assert scores["findings"]["pneumonia"] == {
        "dice": pytest.approx((1 + 2 / 3) / 4),
        "clean": 3 / 4,
        "count": 4,
    }
    assert scores["findings"]["effusion"] == {"dice": None, "clean": 1.0, "count": 0}
    assert scores["clean"] == pytest.approx(7 / 8)


# Training


def test_classifier_step_is_the_sum_of_its_losses(classifier):
    batch = toy(4).batch(torch.arange(4))
    batch["sides"][0, 0] = torch.nan  # a side that is not stated must not matter
    batch["eye"] = torch.tensor([1.0, torch.nan, torch.nan, torch.nan])
    optimiser = torch.optim.SGD(classifier.parameters(), lr=0.0)
    classifier.eval()
    losses = judge_training.classifier_step(classifier, optimiser, batch)
    reading = classifier(batch["image"])
    stated = torch.ones(4, 3, 2, dtype=torch.bool)
    stated[0, 0] = False
    entropy = F.binary_cross_entropy_with_logits
    expected = {
        "presence": entropy(reading.presence, batch["presence"]),
        "sides": entropy(reading.sides[stated], batch["sides"][stated]),
        "eye": entropy(reading.eye[0], torch.tensor(1.0)),
    }
    for name, value in expected.items():
        assert losses[name] == pytest.approx(value.item(), abs=0.02)  # bfloat16 where it is fast
    total = losses["presence"] + losses["sides"] + 0.1 * losses["eye"]
    assert losses["loss"] == pytest.approx(total, abs=1e-4)


def test_classifier_learns_one_batch(classifier):
    data = toy()
    batch = data.batch(torch.arange(16))
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=1e-2)
    classifier.train()
    losses = [
        judge_training.classifier_step(classifier, optimiser, batch)["loss"] for _ in range(60)
    ]
    assert losses[-1] < 0.2 * losses[0]
    scores = judge_training.evaluate_classifier(classifier, data)["findings"]["pneumonia"]
    assert scores["accuracy"] > 0.9 and scores["side"] > 0.9


def test_segmenter_learns_one_batch(segmenter):
    data = toy()
    batch = data.batch(torch.arange(16))
    optimiser = torch.optim.AdamW(segmenter.parameters(), lr=1e-2)
    segmenter.train()
    for _ in range(60):
        judge_training.segmenter_step(segmenter, optimiser, batch)
    assert judge_training.evaluate_segmenter(segmenter, data)["findings"]["pneumonia"]["dice"] > 0.8


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_fit_judge_resumes_where_it_was_killed(kind, tmp_path, monkeypatch):
    """Killed after 3 of 6 steps and started again: the same weights as without interruption."""
    data, network = toy(), {"classifier": FindingClassifier, "segmenter": FindingSegmenter}[kind]

    def fit(folder):
        torch.manual_seed(0)
        judge = network(config(kind))
        options = {"steps": 6, "batch": 8, "log_seconds": 0.0, "save_seconds": 0.0}
        judge_training.fit_judge(judge, data, data, tmp_path / folder, **options)
        return judge.state_dict()

    whole = fit("whole")
    step, calls = getattr(judge_training, f"{kind}_step"), []

    def killed(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(None)
        return step(*arguments)

    monkeypatch.setattr(judge_training, f"{kind}_step", killed)
    with pytest.raises(KeyboardInterrupt):
        fit("parts")
    assert load_training_state(tmp_path / "parts" / "training.pt")["budget"]["step"] == 3
    monkeypatch.setattr(judge_training, f"{kind}_step", step)
    parts = fit("parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    lines = (tmp_path / "parts" / "log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 6]
    assert "findings" in rows[-1]["validation"]


def test_fit_judge_refuses_another_run_and_unclear_lengths(classifier, tmp_path):
    data = toy()
    judge_training.fit_judge(classifier, data, data, tmp_path, steps=1, batch=4)
    with pytest.raises(ValueError, match="run with other settings"):
        judge_training.fit_judge(classifier, data, data, tmp_path, steps=2, batch=2)
    other = replace(data, images=255 - data.images)
    with pytest.raises(ValueError, match="other settings: images was"):
        judge_training.fit_judge(classifier, other, data, tmp_path, steps=2, batch=4)
    other = replace(data, presence=1 - data.presence)
    with pytest.raises(ValueError, match="other settings: labels was"):
        judge_training.fit_judge(classifier, other, data, tmp_path, steps=2, batch=4)
    # Longer is no other run.
    judge_training.fit_judge(classifier, data, data, tmp_path, steps=2, batch=4)
    assert load_training_state(tmp_path / "training.pt")["budget"]["step"] == 2
    with pytest.raises(ValueError, match="either minutes or steps"):
        judge_training.fit_judge(classifier, data, data, tmp_path)


def test_main_trains_from_a_manifest(tmp_path, records, capsys):
    rows = [*records, record(tmp_path, "chest", id="other", split="validation")]
    path = write_manifest(tmp_path / "manifest.csv", rows)
    out = tmp_path / "out"
    judge_training.main(
        f"classifier --data {path} --out {out} --steps 1 --batch 2 --device cpu".split()
    )
    assert json.loads(capsys.readouterr().out)["findings"]["pneumonia"]["count"] == 0
    assert json.loads((out / "scores.json").read_text())["config"]["step"] == 1
    assert judge_training.load_classifier(out).config.size == 128
    other = f"classifier --architecture mixer --data {path} --out {tmp_path / 'mixer'} --steps 1"
    judge_training.main(f"{other} --batch 2 --device cpu".split())
    assert judge_training.load_classifier(tmp_path / "mixer").config.architecture == "mixer"
    with pytest.raises(ValueError, match="a segmenter is convolutional"):
        judge_training.main(
            f"segmenter --architecture mixer --data {path} --out {out} --steps 1".split()
        )
