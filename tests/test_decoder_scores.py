"""All scores of one decoder in one call."""

import pytest
import torch

from medsign_lite.attacks import PAPER_ATTACKS
from medsign_lite.evaluation import quality_row
from medsign_lite.images import quantise
from medsign_lite.latent_diffusion import copy_decoder, decode
from medsign_lite.published import TABLE1_COLUMNS
from medsign_lite.records.decoder_scores import score_decoder, table1_row
from tests.tiny_pipeline import tiny_pipeline


class Classifier:
    def probability(self, image, findings):
        return image.mean(dim=(1, 2, 3))[:, None].expand(-1, len(findings)).clamp(0, 1)


class Segmenter:
    def mask(self, image, findings):
        mask = torch.zeros(len(image), len(findings), *image.shape[-2:], dtype=torch.bool)
        mask[:, 0, :8] = True
        return mask


def scored(decoder, vae, latents):
    def extractor(image):  # reads 1 from every image, so half of this message
        return torch.ones(len(image), 4)

    return score_decoder(
        decoder, vae, latents, torch.tensor([1.0, 1.0, 0.0, 0.0]), extractor,
        classifier=Classifier(), segmenter=Segmenter(), findings=("edema", "effusion"),
        attacks={name: PAPER_ATTACKS[name] for name in ("none", "crop")},
        generator=torch.Generator().manual_seed(0), resamples=20, batch_size=2,
        false_positive_rate=0.1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    vae = tiny_pipeline().vae
    return vae, torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def test_an_unchanged_decoder_costs_nothing(parts):
    vae, latents = parts
    scores = scored(copy_decoder(vae), vae, latents)
    assert [row["attack"] for row in scores["attacks"]] == ["none", "crop", "mean"]
    assert all(row["bit_accuracy"] == 0.5 for row in scores["attacks"])
    assert scores["quality"]["psnr"] == 100 and scores["quality"]["images"] == 3
    assert scores["diagnosis"][-1]["change"] == 0


def test_scores_are_those_of_the_rounded_images(parts):
    vae, latents = parts
    decoder = copy_decoder(vae)
    with torch.no_grad():
        decoder.decoder.conv_out.bias += 0.1
    scores = scored(decoder, vae, latents)
    marked, plain = (quantise(decode(model, latents)) for model in (decoder, vae))
    masks = Segmenter().mask(plain, ("edema", "effusion")).any(dim=1)
    row = quality_row(marked, plain, masks=masks, generator=torch.Generator(), resamples=2)
    for name in ("psnr", "ssim", "psnr_inside"):
        assert scores["quality"][name] == pytest.approx(row[name], abs=1e-3)
    shift = (marked.mean(dim=(1, 2, 3)) - plain.mean(dim=(1, 2, 3))).mean() * 100
    assert scores["diagnosis"][-1]["shift"] == pytest.approx(float(shift), abs=1e-3)


def test_table1_row_has_the_papers_columns():
    accuracy = {"bit_accuracy": 0.9, "bit_accuracy_low": 0.8, "bit_accuracy_high": 1.0}
    quality = {"images": 7}
    for name in ("psnr", "ssim"):
        quality |= {name: 40.0, f"{name}_low": 39.0, f"{name}_high": 41.0}
    attacks = [{"attack": name, **accuracy} for name in (*PAPER_ATTACKS, "mean")]
    row = table1_row("chest", "ours", {"attacks": attacks, "quality": quality})
    assert set(TABLE1_COLUMNS) <= set(row) and row["images"] == 7
    assert row["jpeg"] == {"value": 0.9, "low": 0.8, "high": 1.0}
