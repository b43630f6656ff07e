"""The published extractor, where it is at hand, and files that are not one."""

import warnings

import pytest
import torch
from torch import nn

from medsign_lite.baselines.published_extractor import load_published_extractor


def archive(network, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(network, torch.rand(1, 3, 64, 64)).save(str(path))
    return path


class Grey(nn.Module):
    """Logits: the mean of each channel, so that normalisation can be worked by hand."""

    def forward(self, image):
        return image.mean(dim=(2, 3))


def test_published_extractor_reads_images_normalised_as_imagenets(tmp_path):
    extractor = load_published_extractor(archive(Grey(), tmp_path / "grey.pt"))
    assert extractor.config.bits == 3 and not extractor.training
    logits = extractor(torch.full((2, 3, 32, 40), 0.5))
    expected = torch.tensor([(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225])
    torch.testing.assert_close(logits, expected.expand(2, 3))


def test_published_extractor_refuses_a_small_image(tmp_path):
    extractor = load_published_extractor(archive(Grey(), tmp_path / "grey.pt"))
    with pytest.raises(ValueError, match="at least 32"):
        extractor(torch.rand(1, 3, 16, 64))


def test_load_published_extractor_refuses_what_is_not_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="no extractor at"):
        load_published_extractor(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("not an archive")
    with pytest.raises(ValueError, match="text.pt: expected a TorchScript archive"):
        load_published_extractor(tmp_path / "text.pt")
    same = archive(nn.Identity(), tmp_path / "same.pt")
    with pytest.raises(ValueError, match=r"expected logits \(1, K\) of an image, got \(1, 3, 64"):
        load_published_extractor(same)


def test_the_real_one_reads_what_gradients_write(root):
    path = root.parent / "shared/data/stable_signature/dec_48b_whit.torchscript.pt"
    if not path.is_file():
        pytest.skip(f"no published extractor at {path.relative_to(root.parent)}")
    extractor = load_published_extractor(path)
    assert extractor.config.bits == 48
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 64, 64, generator=generator).requires_grad_(True)
    logits = extractor(image)
    logits[0, 0].backward()
    assert logits.shape == (1, 48) and image.grad.abs().max() > 0
    moved = image.detach() + 0.05 * image.grad.sign()
    assert extractor(moved)[0, 0] > logits[0, 0]
