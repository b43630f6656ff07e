import json

import pytest
import torch

from medsign_lite.checkpoints import load_checkpoint, save_checkpoint
from medsign_lite.extractor import (
    MESSAGE_GAIN,
    Embedder,
    Extractor,
    ExtractorConfig,
    fold_space,
    load_extractor,
    published_config,
    save_extractor,
    whiten,
)


def tiny_config(**changes):
    settings = {"bits": 4, "channels": 16, "stages": (1, 1), "width": 32, "embedder_channels": 16}
    return ExtractorConfig(**(settings | changes))


@pytest.fixture
def extractor():
    torch.manual_seed(0)
    return Extractor(tiny_config()).eval()


def test_fold_space_keeps_every_pixel():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    folded = fold_space(image, 2)
    assert folded.shape == (1, 4, 2, 2)
    assert folded[0, :, 0, 0].tolist() == [0, 1, 4, 5]
    assert folded[0, :, 1, 1].tolist() == [10, 11, 14, 15]


def test_fold_space_repeats_the_edge_of_an_odd_side():
    folded = fold_space(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 2)
    assert folded[0, :, 0, 1].tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("fold", [1, 2, 4])
@pytest.mark.parametrize("size", [(16, 16), (45, 90)], ids=["smallest", "odd"])
def test_extractor_takes_any_size(fold, size):
    logits = Extractor(tiny_config(fold=fold))(torch.rand(2, 3, *size))
    assert logits.shape == (2, 4) and logits.dtype == torch.float32


def test_published_extractor_has_the_published_layers():
    """8 blocks of 64, one of 48, a linear layer: the sizes in Stable Signature's checkpoint."""
    extractor = Extractor(published_config())
    shapes = [tuple(b.convolution.weight.shape) for b in extractor.blocks]
    assert shapes == [(64, 3, 3, 3)] + 6 * [(64, 64, 3, 3)] + [(48, 64, 3, 3)]
    assert extractor.blocks[0].norm.eps == 1e-3 and extractor.blocks[0].norm.momentum == 0.01
    assert extractor.head.weight.shape == (48, 48)


def test_grey_extractor_ignores_colour(extractor):
    image = torch.rand(2, 3, 32, 32)
    scale = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    shift = torch.tensor([0.02, -0.02, 0.0]).view(1, 3, 1, 1) * scale  # of zero sum as it is seen
    assert torch.allclose(extractor(image), extractor(image + shift), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_extractor_refuses_other_channels(extractor, channels):
    with pytest.raises(ValueError, match=f"expected 3 channels .* got {channels}"):
        extractor(torch.rand(1, channels, 32, 32))


def test_extractor_refuses_an_image_that_is_too_small(extractor):
    with pytest.raises(ValueError, match="at least 16 pixels"):
        extractor(torch.rand(1, 3, 15, 32))


@pytest.mark.parametrize("size", [(32, 32), (37, 50)], ids=["even", "odd"])
def test_embedding_has_exactly_the_strength_asked_for(size):
    embedder = Embedder(tiny_config())
    image, message = torch.rand(2, 3, *size), torch.tensor([[0.0, 1, 0, 1], [1, 1, 0, 0]])
    marked = embedder.embed(image, message, 0.02)
    power = (marked - image).square().mean(dim=(1, 2, 3)).sqrt()
    assert torch.allclose(power, torch.full((2,), 0.02), rtol=1e-3)


def test_embedder_of_a_grey_extractor_adds_no_colour():
    residual = Embedder(tiny_config())(torch.rand(1, 3, 32, 32), torch.ones(1, 4))
    assert residual.shape == (1, 1, 32, 32)


def test_embedder_starts_with_orthogonal_messages():
    for projection in Embedder(tiny_config()).projections:
        product = projection.weight.T @ projection.weight / MESSAGE_GAIN**2
        assert torch.allclose(product, torch.eye(4), atol=1e-5)


def test_embedder_refuses_a_message_of_another_length():
    with pytest.raises(ValueError, match=r"a message \(2, 4\), one row per image, got \(2, 5\)"):
        Embedder(tiny_config())(torch.rand(2, 3, 32, 32), torch.ones(2, 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 3}, "fold must be 1, 2, 4 or 8, got 3"),
        ({"norm": "layer"}, "norm must be one of .* got 'layer'"),
        ({"stages": ()}, "at least one positive number"),
        ({"bits": 0}, "bits must be at least 1"),
        ({"bits": 17}, "needs embedder_channels of at least 17, got 16"),
    ],
)
def test_config_refuses_bad_values(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_config_survives_json():
    config = tiny_config()
    assert ExtractorConfig(**json.loads(json.dumps(vars(config)))) == config


def calibration():
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(16, 3, 32, 32, generator=generator) for _ in range(4)]


def test_whitened_extractor_gives_white_logits(extractor):
    batches = calibration()
    whitened = whiten(extractor, batches)
    logits = torch.cat([whitened(batch) for batch in batches]).detach()
    assert torch.allclose(logits.mean(dim=0), torch.zeros(4), atol=1e-2)
    assert torch.allclose(logits.T @ logits / 64, torch.eye(4), atol=2e-2)
    assert extractor.whitening is None  # the one handed in is left as it was


def test_whiten_refuses_to_whiten_twice(extractor):
    with pytest.raises(ValueError, match="whitened already"):
        whiten(whiten(extractor, calibration()), calibration())


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["single", "half"])
def test_saved_extractor_reads_the_same(extractor, tmp_path, dtype):
    whitened = whiten(extractor, calibration())
    save_extractor(tmp_path, whitened, dtype=dtype, details={"note": "a test"})
    loaded = load_extractor(tmp_path)
    image = torch.rand(2, 3, 40, 40)
    tolerance = 1e-6 if dtype is None else 0.1
    assert torch.allclose(loaded(image), whitened(image), atol=tolerance)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert load_checkpoint(tmp_path, kind="extractor")[1]["details"] == {"note": "a test"}


def test_self_check_finds_weights_that_were_exchanged(extractor, tmp_path):
    save_extractor(tmp_path, extractor)
    state, config = load_checkpoint(tmp_path, kind="extractor")
    state["head.weight"] = state["head.weight"].flip(0)
    save_checkpoint(tmp_path, state, config)
    with pytest.raises(RuntimeError, match="self-check failed"):
        load_extractor(tmp_path)


def test_load_refuses_weights_of_another_architecture(extractor, tmp_path):
    save_extractor(tmp_path, extractor)
    state, config = load_checkpoint(tmp_path, kind="extractor")
    config["architecture"]["width"] = 48
    save_checkpoint(tmp_path, state, config)
    with pytest.raises(ValueError, match="another architecture"):
        load_extractor(tmp_path)


def test_load_refuses_an_unknown_field(extractor, tmp_path):
    save_extractor(tmp_path, extractor)
    state, config = load_checkpoint(tmp_path, kind="extractor")
    config["architecture"]["colour"] = True
    save_checkpoint(tmp_path, state, config)
    with pytest.raises(ValueError, match="not an extractor's configuration: .*colour"):
        load_extractor(tmp_path)


def test_load_refuses_a_truncated_file(extractor, tmp_path):
    save_extractor(tmp_path, extractor)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        load_extractor(tmp_path)
