"""The main path on real radiographs and a real autoencoder, a few steps long.

What a budget of minutes reaches is recorded in results/real_radiographs.json.
"""

import pytest
import torch
from diffusers import AutoencoderTiny

from benchmarks import real_decoder
from benchmarks.real_radiographs import run
from medsign_lite.checkpoints import read_config
from medsign_lite.data import read_manifest
from medsign_lite.images import save_image
from medsign_lite.latent_diffusion import copy_decoder, decode, encode, load_decoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(root):
    folder = root.parent / "shared" / "data"
    if not (folder / "cxr").is_dir() or not (folder / "taesd").is_dir():
        pytest.skip(f"no real radiographs and autoencoder at {folder.relative_to(root.parent)}")
    return folder


def test_main_path_runs_on_real_radiographs(data, tmp_path):
    values = run(
        data,
        tmp_path,
        size=96,  # quick; the recorded figures are those of 256 pixels
        limit=66,
        extractor_budget={"steps": 2, "batch_pixels": 4 * 64 * 64},
        decoder_budget={"steps": 2, "batch_size": 1},
    )
    counts = values["images"]
    assert counts["train"] == 66 and 0 < counts["test"] <= 66
    assert len(read_manifest(tmp_path / "radiographs")) == 220
    attacks = [row["attack"] for row in values["attacks"]]
    assert attacks == ["none", "brightness", "crop", "jpeg", "rotation", "resize", "mean"]
    assert all(0 <= row["bit_accuracy"] <= 1 for row in values["attacks"])
    # Two steps hardly change an image, but they change it.
    assert 20 < values["quality"]["psnr"] < 100
    vae = AutoencoderTiny.from_pretrained(data / "taesd").eval()
    decoder, config = load_decoder(tmp_path / "decoder" / "decoder", vae)
    assert len(config["message"]) == 48
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(decode(decoder, latents), decode(copy_decoder(vae), latents))


def made_up(folder, *, count=90):
    """Radiographs that are noise, with their table, and an autoencoder with fresh weights."""
    generator = torch.Generator().manual_seed(count)
    (folder / "cxr").mkdir(parents=True)
    lines = ["filename,finding_labels,patient_id"]
    for number in range(count):
        image = torch.rand(3, 96, 96, generator=generator)
        save_image(image, folder / "cxr" / f"{number}.png")
        lines.append(f"{number}.png,No Finding,{number}")
    (folder / "cxr" / "index.csv").write_text("\n".join(lines))
    channels = {f"{half}_block_out_channels": (8,) * 4 for half in ("encoder", "decoder")}
    AutoencoderTiny(**channels).save_pretrained(folder / "taesd")
    return folder


def test_work_is_gone_on_with_or_refused_but_never_taken_for_other_work(tmp_path):
    work = tmp_path / "work"

    def run_with(data, steps):
        return run(
            data, work, size=96, extractor_budget={"steps": steps, "batch_pixels": 4 * 64 * 64},
            decoder_budget={"steps": 1, "batch_size": 1},
        )  # fmt: skip

    def steps_spent():
        return read_config(work / "extractor" / "extractor" / "config.json")["details"]["step"]

    data = made_up(tmp_path / "data")
    first = run_with(data, 1)
    assert steps_spent() == 1 and run_with(data, 1) == first
    # A larger budget is spent; what was marked for the extractor before is not scored with it.
    with pytest.raises(ValueError, match="decoder holds a run with other settings: extractor was"):
        run_with(data, 2)
    assert steps_spent() == 2
    with pytest.raises(ValueError, match="radiographs holds another conversion"):
        run_with(made_up(tmp_path / "others", count=91), 2)


def test_real_autoencoder_reconstructs_real_radiographs(data):
    from medsign_lite.images import load_image
    from medsign_lite.metrics import psnr

    vae = AutoencoderTiny.from_pretrained(data / "taesd").eval()
    paths = sorted((data / "cxr").glob("*.png"))[:2]
    images = torch.stack([load_image(path) for path in paths])
    decoded = decode(vae, encode(vae, images)).clamp(0, 1)
    # About 32 dB: a wrong scaling factor or range would give less than 20.
    assert psnr(decoded, images, data_range=1.0).mean() > 29


def test_varied_outlines_stay_on_what_they_outline():
    masks = torch.zeros(6, 64, 64)
    masks[:, 20:40, 12:30] = 1
    images = masks[:, None].repeat(1, 3, 1, 1)  # white where it is outlined, black elsewhere
    changed, outlines = real_decoder.varied(images, masks, seed=0)
    assert changed.shape == images.shape and outlines.shape == masks.shape
    assert ((changed[:, 0] > 0.5) == (outlines > 0)).float().mean() > 0.98
    assert (outlines != masks).flatten(1).any(dim=1).all()  # every one is varied
    assert len(torch.unique(outlines, dim=0)) == 6  # and each in its own way
    whole, _ = real_decoder.varied(torch.ones_like(images), masks, seed=0)
    assert whole.mean() > 0.99  # next to nothing of what lies beyond the edge
    again, _ = real_decoder.varied(images, masks, seed=0)
    other, _ = real_decoder.varied(images, masks, seed=1)
    assert torch.equal(again, changed) and not torch.equal(other, changed)


def test_a_real_decoder_is_marked_around_real_outlines(data, tmp_path):
    for name in ("cxr_masks", "stable_signature"):
        if not (data / name).is_dir():
            pytest.skip(f"no {name} beside the real radiographs")
    images, masks = real_decoder.read_outlined(data / "cxr_masks", 64)
    assert images.shape == (18, 3, 64, 64) and masks.shape == (18, 64, 64)
    # Opacities: a part of every radiograph, brighter than the dark half of it.
    assert ((masks.mean(dim=(1, 2)) > 0.005) & (masks.mean(dim=(1, 2)) < 0.6)).all()
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    values = real_decoder.run(
        data, tmp_path, extractor="published", size=64, unseen=2, unremarkable=4,
        budgets=({"steps": 2}, {"steps": 1}), batch_size=1,
    )  # fmt: skip
    assert values["images"] == {"trained": 16, "unseen": 2, "unremarkable": 4}
    for name in ("trained", "unseen"):
        assert 20 < values[name]["quality"]["psnr"] < 100
        assert values[name]["quality"]["masked"] == values["images"][name]
        assert 0 <= values[name]["attacks"][0]["bit_accuracy"] <= 1
    again = real_decoder.run(
        data, tmp_path, extractor="published", size=64, unseen=2, unremarkable=4,
        budgets=({"steps": 2}, {"steps": 1}), batch_size=1,
    )  # fmt: skip
    assert again == values  # nothing is trained twice
