"""Training the backbone: resuming, collapse, what is left at the end, and the command."""

import json

import pytest
import torch

from medsign_lite.baselines.backbone import SmallBackbone, SmallBackboneConfig, load_backbone
from medsign_lite.baselines.backbone_training import Collapse, evaluate_backbone, fit_backbone, main
from medsign_lite.baselines.vicreg import vicreg_step
from medsign_lite.checkpoints import load_checkpoint
from medsign_lite.data import Record, write_manifest
from medsign_lite.images import save_image

CONFIG = SmallBackboneConfig(channels=(16, 32))
SMALL = {"config": CONFIG, "batch": 8}


def stack(count=48, size=32):
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))
    image = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (255 * image).to(torch.uint8)


def test_fit_leaves_a_whitened_backbone_its_log_and_scores(tmp_path):
    backbone = fit_backbone(stack(), stack(20), tmp_path, steps=4, log_seconds=0, **SMALL)
    read = load_backbone(tmp_path / "backbone")
    calibration = stack().float() / 255
    torch.testing.assert_close(read(calibration), backbone(calibration), atol=1e-3, rtol=1e-3)
    assert read(calibration).mean(dim=0).abs().max() < 0.01
    details = load_checkpoint(tmp_path / "backbone", kind="backbone")[1]["details"]
    assert details["step"] == 4 and details["settings"]["batch"] == 8
    assert details["evaluation"] == pytest.approx(evaluate_backbone(read, stack(20)), abs=0.06)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"loss", "invariance", "variance", "covariance", "spread"} <= set(lines[0])


def test_fit_resumed_after_a_kill_equals_fit_in_one_go(tmp_path, monkeypatch):
    fit_backbone(stack(), stack(8), tmp_path / "whole", steps=6, save_seconds=0, **SMALL)
    calls = []

    def step_until_killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return vicreg_step(*arguments, **options)

    with monkeypatch.context() as context:
        context.setattr("medsign_lite.baselines.backbone_training.vicreg_step", step_until_killed)
        with pytest.raises(KeyboardInterrupt):
            fit_backbone(stack(), stack(8), tmp_path / "killed", steps=6, save_seconds=0, **SMALL)
    fit_backbone(stack(), stack(8), tmp_path / "killed", steps=6, save_seconds=0, **SMALL)
    whole, _ = load_checkpoint(tmp_path / "whole" / "backbone", kind="backbone")
    killed, _ = load_checkpoint(tmp_path / "killed" / "backbone", kind="backbone")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_fit_notices_collapse(tmp_path):
    """Views that shall be the same and need not differ between images: all become one."""
    with pytest.raises(Collapse, match=r"collapsed after \d+ steps: the embeddings' spread is 0"):
        fit_backbone(
            stack(), stack(8), tmp_path, steps=200, weights=(25.0, 0.0, 0.0), learning_rate=0.1,
            check_steps=10, **SMALL,
        )  # fmt: skip
    assert not (tmp_path / "backbone").exists()


def test_evaluate_backbone_finds_each_image_again_where_nothing_was_done(tmp_path):
    backbone = fit_backbone(stack(), stack(8), tmp_path, steps=1, **SMALL)
    scores = evaluate_backbone(backbone, stack(20))
    assert scores["none"] == 1.0 and 0 <= scores["crop"] <= 1
    assert scores["dimensions"] == backbone.dimensions
    assert 1 < scores["effective_rank"] <= 32


def test_fit_names_what_it_cannot_do(tmp_path):
    with pytest.raises(ValueError, match="32 features needs more images than that, got 32"):
        fit_backbone(stack(32), stack(8), tmp_path, steps=1, **SMALL)
    with pytest.raises(ValueError, match=r"images: expected at least 24 pixels.*\(20, 20\)"):
        fit_backbone(stack(), stack(8, size=20), tmp_path, steps=1, **SMALL)
    with pytest.raises(ValueError, match="batch: expected at least 2"):
        fit_backbone(stack(), stack(8), tmp_path, steps=1, config=CONFIG, batch=1)
    with pytest.raises(ValueError, match="either minutes or steps"):
        fit_backbone(stack(), stack(8), tmp_path, **SMALL)
    fit_backbone(stack(), stack(8), tmp_path, steps=1, **SMALL)
    with pytest.raises(ValueError, match="holds a run with other settings: .*seed was 0, is 1"):
        fit_backbone(stack(), stack(8), tmp_path, steps=1, seed=1, **SMALL)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """260 training images, more than the small backbone has features, and 4 to validate on."""
    records, folder = [], tmp_path_factory.mktemp("data")
    for index, image in enumerate(stack(264, size=48).float() / 255):
        path = save_image(image, folder / f"{index}.png")
        split = "train" if index < 260 else "validation"
        records.append(
            Record(id=str(index), image=path, modality="chest", split=split, report="a chest")
        )
    return write_manifest(folder / "manifest.csv", records)


def test_main_trains_on_a_manifest(manifest, tmp_path):
    main([
        "--data", str(manifest), "--out", str(tmp_path / "run"), "--steps", "1", "--size", "48",
        "--batch", "4", "--device", "cpu",
    ])  # fmt: skip
    details = load_checkpoint(tmp_path / "run" / "backbone", kind="backbone")[1]["details"]
    assert details["settings"]["entries"] == 260


def test_main_whitens_a_network_that_somebody_else_trained(manifest, tmp_path, monkeypatch):
    network = SmallBackbone(CONFIG)
    monkeypatch.setattr(
        "medsign_lite.baselines.backbone_training.load_resnet50", lambda path: network
    )
    main([
        "--data", str(manifest), "--out", str(tmp_path / "run"), "--size", "32",
        "--resnet50", "dino.pth", "--floor", "0.1", "--device", "cpu",
    ])  # fmt: skip
    read, config = load_checkpoint(tmp_path / "run" / "backbone", kind="backbone")
    for name, weight in network.state_dict().items():
        assert torch.equal(read[f"network.{name}"], weight)
    assert config["dimensions"] < 32 and config["details"]["floor"] == 0.1


def test_main_says_that_it_stopped(manifest, tmp_path, monkeypatch):
    def collapse(*arguments, **options):
        raise Collapse("all images look alike")

    monkeypatch.setattr("medsign_lite.baselines.backbone_training.fit_backbone", collapse)
    with pytest.raises(SystemExit, match="stopped: all images look alike"):
        main(["--data", str(manifest), "--out", str(tmp_path / "run"), "--steps", "1"])
