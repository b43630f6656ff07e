"""Latents of a manifest: those of the boundary, in order, made once."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import medsign_lite.encoded_images as module
from medsign_lite.data import Record
from medsign_lite.encoded_images import central_part, encoded_images
from medsign_lite.images import load_image
from medsign_lite.latent_diffusion import encode
from tests.tiny_pipeline import tiny_autoencoder, tiny_pipeline

SIZE = (16, 16)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD", 3)


@pytest.fixture
def records(tmp_path):
    found = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        pixels = torch.randint(0, 256, (16, 20 if number == 6 else 16), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
        found.append(
            Record(id=str(number), image=path, modality="chest", split="train", report="a")
        )
    return found


def encoded(records, vae, folder, **options):
    return encoded_images(records, vae, folder, size=SIZE, batch=2, progress=False, **options)


@pytest.mark.parametrize("tiny", [False, True], ids=["full", "tiny"])
def test_latents_are_those_of_each_image_in_order(records, tmp_path, tiny):
    vae = tiny_autoencoder() if tiny else tiny_pipeline().vae
    latents = encoded(records, vae, tmp_path / "out")
    images = [load_image(r.image)[None] for r in records]
    images[6] = images[6][..., 2:18]
    expected = encode(vae, torch.cat(images))
    assert latents.dtype == torch.float16
    torch.testing.assert_close(latents.float(), expected, rtol=2e-3, atol=2e-3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "latents.json",
        "latents.safetensors",
    ]


def test_killed_run_goes_on_with_the_next_shard_and_a_finished_one_is_read(
    records, tmp_path, monkeypatch
):
    vae, read, out = tiny_pipeline().vae, [], tmp_path / "out"

    def killed(path):
        read.append(Path(path).stem)
        if len(read) == 5:  # in the second shard
            raise KeyboardInterrupt
        return load_image(path)

    monkeypatch.setattr(module, "load_image", killed)
    with pytest.raises(KeyboardInterrupt):
        encoded(records, vae, out)
    latents = encoded(records, vae, out)
    assert read[5:] == ["3", "4", "5", "6"]
    assert torch.equal(encoded(records, vae, out), latents) and len(read) == 9
    assert torch.equal(latents, encoded(records, vae, tmp_path / "whole"))


def test_other_images_or_autoencoders_are_refused(records, tmp_path):
    vae, out = tiny_pipeline().vae, tmp_path / "out"
    encoded(records, vae, out)
    with pytest.raises(ValueError, match="other settings: images was"):
        encoded(records[:-1], vae, out)
    with pytest.raises(ValueError, match="other settings: autoencoder was"):
        encoded(records, tiny_autoencoder(), out)
    assert "6" not in (out / "latents.json").read_text().split('"')  # no image's id


def test_disk_that_is_too_small_is_named_before_anything_is_encoded(records, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("medsign_lite.shards.shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr(module, "load_image", lambda path: pytest.fail("read"))
    with pytest.raises(OSError, match="GiB free"):
        encoded(records, tiny_pipeline().vae, tmp_path / "out")


def test_central_part_is_cut_then_resized():
    image = torch.arange(24.0).view(1, 1, 4, 6)
    assert torch.equal(central_part(image, (4, 4)), image[..., 1:5])
    assert torch.equal(central_part(image, (2, 6)), image[..., 1:3, :])
    half = central_part(image, (2, 2))  # of the central square, mirrored like it
    assert half.shape == (1, 1, 2, 2)
    torch.testing.assert_close(half + half.flip(-1, -2), torch.full((1, 1, 2, 2), 23.0))
