"""The benchmark of the decoders' recipe: what its runs differ in, and what it says of each."""

import pytest

from benchmarks.decoder_recipe import compare, variants
from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.losses import LossWeights
from medsign_lite.perceptual import perceptual_loss
from tests.test_finetuning import tiny_cache, tiny_extractor, tiny_vae


@pytest.fixture
def recipe():
    return {
        "weights": LossWeights(image=1, message=1, total_variation=0, preservation=0),
        "perceptual": perceptual_loss(masking=0, structure=40, evenness=0.25), "batch_size": 2,
        "optimiser": "muon", "learning_rate": 1e-3, "reads": 2, "attack_names": ["none", "jpeg"],
        "first_quality": 0.3, "last_quality": 8.0,
    }  # fmt: skip


def test_each_run_changes_what_its_name_says(recipe):
    found = variants(recipe)
    names = {name: part["perceptual"].name for name, part in found.items() if "perceptual" in part}
    assert names == {
        "masked by contrast": perceptual_loss(masking=0.7, structure=40, evenness=0.25).name,
        "without SSIM": perceptual_loss(masking=0, evenness=0.25).name,
        "without evenness": perceptual_loss(masking=0, structure=40).name,
    }
    assert found["recipe"] == {} and found["no JPEG"] == {"attack_names": ["none"]}
    assert found["AdamW"] == {"optimiser": "adamw"}
    for name, changes in found.items():
        assert all(recipe.get(key) != value for key, value in changes.items()), name


def test_runs_are_compared_at_one_psnr(recipe):
    vae = tiny_vae()
    rows = compare(vae, tiny_cache(vae), tiny_extractor(), recipe, steps=2, quality=0.1,
                   decibels=36.0, held_out=4)  # fmt: skip
    assert [row["run"] for row in rows] == [*variants(recipe)]
    assert len({row["psnr"] for row in rows}) > 1
    for row in rows:
        assert row["matched"]["psnr"] == pytest.approx(36.0, abs=0.3) and row["step_seconds"] > 0
        assert row["matched"]["images"] == 4 and set(PAPER_ATTACKS) <= set(row["matched"])
        assert "accuracy_per_image" not in row["matched"]
