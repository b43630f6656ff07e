"""Messages that unmarked images do not lean to: lean is measured, and few bits are flipped."""

import json

import numpy as np
import pytest
import torch

from medsign_lite import neutral_messages
from medsign_lite.extractor import ExtractorConfig, build_networks, save_extractor, whiten
from medsign_lite.latent_cache import write_latent_cache
from medsign_lite.latent_diffusion import LatentDecoder
from medsign_lite.messages import message_from_string
from medsign_lite.neutral_messages import (
    lean,
    neutral_message,
    read_unmarked,
    unmarked_views,
)
from tests.tiny_pipeline import tiny_pipeline


def leaning(*means, count=50, seed=0):
    """Logits (N, K) whose mean is exactly this, with noise around it."""
    noise = torch.randn(count, len(means), generator=torch.Generator().manual_seed(seed))
    return noise - noise.mean(dim=0) + torch.tensor(means)


def test_lean_by_hand():
    logits = leaning(3.0, 0.0, -4.0, 0.0)  # of length 5
    assert lean(torch.tensor([1.0, 1, 1, 1]), logits) == pytest.approx(-0.2)
    assert lean(torch.tensor([1.0, 1, 0, 1]), logits) == pytest.approx(1.4)
    assert lean(torch.tensor([1.0, 0, 0, 0]), logits) == pytest.approx(1.4)


def test_lean_has_deviation_one_over_random_messages():
    logits = leaning(*torch.randn(48, generator=torch.Generator().manual_seed(2)).tolist())
    messages = torch.randint(0, 2, (2000, 48), generator=torch.Generator().manual_seed(3)).float()
    leans = torch.tensor([lean(message, logits) for message in messages])
    assert abs(leans.mean()) < 0.1 and 0.95 < leans.std() < 1.05


def test_nothing_leans_where_logits_do_not():
    assert lean(torch.ones(4), torch.zeros(5, 4)) == 0


def test_a_message_that_does_not_lean_stays():
    message = torch.tensor([1.0, 0, 1, 0])
    assert torch.equal(neutral_message(message, [leaning(1.0, 1.0, 1.0, 1.0)]), message)


def test_the_bits_that_lean_most_are_flipped_and_no_more_than_needed():
    message = torch.tensor([1.0, 0, 1, 1])
    logits = leaning(1.5, -0.5, 2.0, 0.1)
    neutral = neutral_message(message, [logits])
    assert neutral.tolist() == [1, 0, 0, 1]
    assert lean(message, logits) > 1.5 > 0.75 > lean(neutral, logits)
    assert message.tolist() == [1, 0, 1, 1]  # the one handed in is left as it was


def test_a_bit_that_leans_too_far_is_left():
    neutral = neutral_message(torch.ones(4), [leaning(3.0, 2.0, 1.0, 1.0)])
    assert neutral.tolist() == [1, 0, 0, 1]


def test_no_view_may_lean():
    """Neutral where it is not attacked, but not after the attack."""
    message = torch.ones(4)
    plain, attacked = leaning(1.0, -1.0, 1.0, -1.0), leaning(2.0, 1.0, 1.0, 1.0, seed=1)
    assert torch.equal(neutral_message(message, [plain]), message)
    neutral = neutral_message(message, [plain, attacked])
    assert lean(neutral, plain) <= 0.75 and lean(neutral, attacked) <= 0.75


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([], "at least one view"),
        ([leaning(9.0, 9.0, 9.0, 9.0)], "by 2.00 standard deviations, 0.75 are allowed"),
    ],
)
def test_neutral_message_refuses(views, message):
    with pytest.raises(ValueError, match=message):
        neutral_message(torch.ones(4), views)


def test_message_of_another_length_is_refused():
    with pytest.raises(ValueError, match="expected a message of 4 bits"):
        neutral_message(torch.ones(5), [leaning(1.0, 1.0, 1.0, 1.0)])


def test_a_latent_cache_gives_its_decoders_images(tmp_path):
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "pipeline")
    latents = torch.randn(3, 4, 8, 8)
    write_latent_cache(tmp_path / "cache", latents, torch.rand(3, 8, 8), ["a", "b", "c"])
    found = read_unmarked(tmp_path / "cache", tmp_path / "pipeline", limit=2)
    with torch.no_grad():
        expected = LatentDecoder(pipeline.vae).eval()(latents[:2])
    assert found.dtype == torch.uint8
    assert (found.float() / 255 - expected.clamp(0, 1)).abs().max() < 0.01
    with pytest.raises(ValueError, match="--pipeline must name"):
        read_unmarked(tmp_path / "cache", None, limit=2)


def test_command_records_a_message_that_does_not_lean(tmp_path, capsys):
    config = ExtractorConfig(bits=8, channels=16, stages=(1,), width=16, embedder_channels=16)
    _, extractor = build_networks(config)
    images = torch.randint(40, 200, (60, 3, 128, 128), generator=torch.Generator().manual_seed(0))
    striped = (images + 6 * (torch.arange(128) % 4 == 0)).clamp(max=255).to(torch.uint8)
    extractor = whiten(extractor, [images.float() / 255])
    save_extractor(tmp_path / "extractor", extractor)
    np.save(tmp_path / "striped.npy", striped.numpy())
    views = unmarked_views(extractor, striped)
    assert {view.shape for view in views.values()} == {(60, 8)}
    towards = "".join(str(int(bit > 0)) for bit in views["none"].mean(dim=0))
    neutral_messages.main([
        *("--seed", towards, "--images", str(tmp_path / "striped.npy")),
        *("--extractor", str(tmp_path / "extractor"), "--out", str(tmp_path / "message.json")),
    ])  # fmt: skip
    assert "bits flipped" in capsys.readouterr().out
    result = json.loads((tmp_path / "message.json").read_text())["values"]
    message = message_from_string(result["message"], bits=8)
    assert result["message"] != towards and result["leaned"]["none"] > 1
    for name, logits in views.items():
        assert lean(message, logits) == pytest.approx(result["leans"][name], abs=1e-4)
        assert lean(message, logits) <= 0.75
