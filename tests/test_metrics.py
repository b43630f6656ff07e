import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import jaccard_score, roc_auc_score
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr

from medsign_lite import metrics


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(batch=3, height=40, width=33, noise=0.1):
    reference = torch.rand(batch, 3, height, width, generator=generator())
    scale = noise * torch.arange(1, batch + 1).view(-1, 1, 1, 1)
    other = torch.rand(reference.shape, generator=generator(1)) - 0.5
    return (reference + scale * other).clamp(0, 1), reference


def located(batch=4, height=16, width=12, levels=None):
    map = torch.rand(batch, height, width, generator=generator(2))
    if levels:
        map = (map * levels).floor() / levels  # many ties
    mask = torch.rand(batch, height, width, generator=generator(3)) < 0.2 + 0.4 * map
    return map, mask


def test_bit_accuracy_by_hand():
    logits = torch.tensor([[2.0, -1.0, 0.5, -0.1], [-2.0, 1.0, 0.0, 3.0]])
    message = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert metrics.bit_accuracy(logits, message).tolist() == [0.75, 0.25]
    each = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]])
    assert metrics.bit_accuracy(logits, each).tolist() == [1, 1]  # a logit of 0 reads as 0


@pytest.mark.parametrize("message", [torch.zeros(5), torch.zeros(3, 4), torch.zeros(1, 1, 4)])
def test_bit_accuracy_refuses_other_shapes(message):
    with pytest.raises(ValueError, match=r"expected logits .* got \(2, 4\) and"):
        metrics.bit_accuracy(torch.zeros(2, 4), message)


def test_psnr_by_hand_per_image():
    image = torch.zeros(2, 3, 4, 4)
    image[0] += 0.1  # squared error .01: 20 dB
    image[1, 0, 0, 0] = 1  # squared error 1/48: 16.81 dB
    got = metrics.psnr(image, torch.zeros_like(image), data_range=1.0)
    assert got.tolist() == pytest.approx([20, 10 * math.log10(48)], abs=1e-4)
    bytes_ = metrics.psnr(image * 255, torch.zeros_like(image), data_range=255)
    assert torch.allclose(bytes_, got, atol=1e-4)


def test_psnr_agrees_with_skimage_and_torchmetrics():
    image, reference = pair()
    got = metrics.psnr(image, reference, data_range=1.0)
    for index in range(3):
        expected = peak_signal_noise_ratio(
            reference[index].numpy(), image[index].numpy(), data_range=1
        )
        assert got[index] == pytest.approx(expected, abs=1e-3)
    expected = torchmetrics_psnr(image, reference, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(got, expected, atol=1e-3)


def test_psnr_of_identical_images_is_100_and_above_the_smallest_visible_error():
    image = torch.rand(2, 3, 128, 128, generator=generator())
    assert metrics.psnr(image, image, data_range=1.0).tolist() == [100, 100]
    other = image.clone()
    other[:, 0, 0, 0] += 1 / 255
    assert (metrics.psnr(other, image, data_range=1.0) < 96).all()


def test_region_psnr_by_hand_and_over_everything():
    image = torch.zeros(1, 3, 4, 4)
    image[..., :2] = 0.1
    image[..., 2:] = 0.01
    left = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    left[..., :2] = True
    zero = torch.zeros_like(image)
    assert metrics.region_psnr(image, zero, left, data_range=1.0).item() == pytest.approx(20)
    assert metrics.region_psnr(image, zero, ~left, data_range=1.0).item() == pytest.approx(40)
    image, reference = pair()
    everything = torch.ones(3, 1, 40, 33, dtype=torch.bool)
    assert torch.allclose(
        metrics.region_psnr(image, reference, everything, data_range=1.0),
        metrics.psnr(image, reference, data_range=1.0),
        atol=1e-4,
    )


def test_worst_window_tells_a_speckle_from_an_even_change():
    reference = torch.full((4, 3, 64, 64), 0.5)
    image = reference.clone()
    image[0] += 0.01
    image[1, :, 16:24, 40:48] += 0.1  # one window of 64 holds all of it
    image[2, :1, :, :32] += 0.1  # half of the image, one channel of three
    ratio = metrics.worst_window(image, reference)
    assert ratio.tolist() == pytest.approx([1, 64, 2, 1])
    assert metrics.worst_window(image[:, :, :4, :4], reference[:, :, :4, :4])[0].item() == 1


@pytest.mark.parametrize("size", [(90, 90), (8, 11), (13, 64)], ids=["square", "flat", "wide"])
def test_worst_window_sees_the_last_row_and_column(size):
    height, width = size
    reference = torch.full((3, 3, *size), 0.5)
    image = reference.clone()
    image[0, :, -1] += 0.1  # one row of the 8 in its window, one of all in the image
    image[1, ..., -1] += 0.1
    image[2, :, -1, -1] += 0.1
    expected = [height / 8, width / 8, height * width / 64]
    assert metrics.worst_window(image, reference).tolist() == pytest.approx(expected, rel=1e-5)


def test_region_psnr_refuses():
    image = torch.zeros(2, 3, 4, 4)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match="mask 1 of the batch has no pixel"):
        metrics.region_psnr(image, image, mask, data_range=1.0)
    with pytest.raises(ValueError, match=r"bool mask \(2, 1, 4, 4\), got torch.bool \(2, 4, 4\)"):
        metrics.region_psnr(image, image, mask[:, 0], data_range=1.0)
    with pytest.raises(ValueError, match="got torch.float32"):
        metrics.region_psnr(image, image, mask.float(), data_range=1.0)


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])
def test_ssim_agrees_with_skimage(channels):
    image, reference = (x[:, :channels] for x in pair(height=64, width=48))
    got = metrics.ssim(image, reference, data_range=1.0)
    assert got.shape == (3,)
    for index in range(3):
        expected = structural_similarity(
            reference[index].numpy(),
            image[index].numpy(),
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert got[index] == pytest.approx(expected, abs=2e-3)
    assert got[0] > got[1] > got[2]


def test_ssim_of_one_image_keeps_its_shape_and_identical_is_one():
    image, _ = pair(1)
    assert metrics.ssim(image, image, data_range=1.0).tolist() == pytest.approx([1.0], abs=1e-6)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_quality_refuses(metric):
    image = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"got \(1, 3, 16, 16\) and \(3, 16, 16\)"):
        metric(image, image[0], data_range=1.0)
    with pytest.raises(ValueError, match="data_range above 0, got 0"):
        metric(image, image, data_range=0)
    with pytest.raises(TypeError, match="data_range"):
        metric(image, image)
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(image[..., :10], image[..., :10], data_range=1.0)


def test_contrast_to_noise_by_hand():
    map = torch.tensor([[[1.0, 0.8], [0.2, 0.0]]])
    mask = torch.tensor([[[True, True], [False, False]]])
    # means .9 and .1, variances .01 and .01
    assert metrics.contrast_to_noise(map, mask).item() == pytest.approx(0.8 / math.sqrt(0.02))
    assert metrics.contrast_to_noise(map, ~mask).item() == pytest.approx(-0.8 / math.sqrt(0.02))
    assert metrics.contrast_to_noise(torch.full_like(map, 0.3), mask).item() == 0


def test_contrast_to_noise_is_invariant_to_scale_and_offset():
    map, mask = located()
    got = metrics.contrast_to_noise(map, mask)
    assert torch.allclose(metrics.contrast_to_noise(map * 0.1 + 0.2, mask), got, atol=1e-4)
    assert (got > 0).all()


@pytest.mark.parametrize("levels", [None, 4], ids=["distinct", "ties"])
def test_roc_auc_agrees_with_sklearn(levels):
    map, mask = located(levels=levels)
    got = metrics.roc_auc(map, mask)
    for index in range(4):
        expected = roc_auc_score(mask[index].flatten().numpy(), map[index].flatten().numpy())
        assert got[index] == pytest.approx(expected, abs=1e-6)
    assert metrics.roc_auc(torch.full_like(map, 0.3), mask).tolist() == [0.5] * 4


def test_iou_at_agrees_with_sklearn_and_includes_the_threshold():
    map, mask = located(levels=4)
    got = metrics.iou_at(map, mask, 0.5)
    for index in range(4):
        found = (map[index] >= 0.5).flatten().numpy()
        assert got[index] == pytest.approx(jaccard_score(mask[index].flatten().numpy(), found))
    assert metrics.iou_at(map, mask, 2.0).tolist() == [0] * 4


@pytest.mark.parametrize("levels", [None, 4], ids=["distinct", "ties"])
def test_best_iou_is_the_best_over_all_thresholds(levels):
    map, mask = located(levels=levels)
    tried = torch.stack([metrics.iou_at(map, mask, t) for t in map.unique().tolist()])
    assert torch.allclose(metrics.best_iou(map, mask), tried.amax(dim=0), atol=1e-6)
    assert metrics.best_iou(mask.float(), mask).tolist() == [1] * 4
    constant = metrics.best_iou(torch.zeros_like(map), mask)
    assert torch.allclose(constant, mask.float().mean(dim=(1, 2)))


def test_pointing_game_by_hand():
    map = torch.tensor([[[0.1, 0.9], [0.2, 0.3]], [[0.9, 0.1], [0.2, 0.3]], [[0.5, 0.5], [0, 0]]])
    mask = torch.tensor([[False, True], [False, False]]).expand(3, 2, 2)
    assert metrics.pointing_game(map, mask).tolist() == [1, 0, 0.5]
    constant = metrics.pointing_game(torch.zeros(1, 2, 2), mask[:1])
    assert constant.item() == 0.25  # chance, not a hit


LOCALISATION = [
    metrics.contrast_to_noise,
    metrics.roc_auc,
    metrics.best_iou,
    metrics.pointing_game,
    lambda map, mask: metrics.iou_at(map, mask, 0.5),
]


@pytest.mark.parametrize("metric", LOCALISATION)
def test_localisation_refuses(metric):
    map, mask = located()
    for filled, match in ((False, "mask 2 of the batch is empty"), (True, "mask 2 .* full")):
        wrong = mask.clone()
        wrong[2] = filled
        with pytest.raises(ValueError, match=match):
            metric(map, wrong)
    with pytest.raises(ValueError, match=r"one shape \(B, H, W\)"):
        metric(map, mask[:, :8])
    with pytest.raises(ValueError, match="bool mask .* got .* torch.float32"):
        metric(map, mask.float())
    with pytest.raises(ValueError, match="finite map"):
        metric(map.masked_fill(mask, math.nan), mask)


@pytest.mark.parametrize("metric", LOCALISATION)
def test_localisation_is_per_image(metric):
    map, mask = located()
    alone = torch.cat([metric(map[i : i + 1], mask[i : i + 1]) for i in range(4)])
    assert torch.allclose(metric(map, mask), alone)


def test_side_attention_by_hand():
    map = torch.zeros(1, 2, 3)
    map[0] = torch.tensor([[0.4, 0.2, 0.0], [0.0, 0.2, 0.2]])
    got = {side: metrics.side_attention(map, side).item()
           for side in ("left", "right", "upper", "lower")}  # fmt: skip
    assert got == pytest.approx({"left": 0.6, "right": 0.4, "upper": 0.6, "lower": 0.4})
    assert metrics.side_attention(torch.zeros(1, 2, 2)).item() == 0.5


def test_side_attention_refuses():
    with pytest.raises(ValueError, match="'upper' or 'lower', got 'superior'"):
        metrics.side_attention(torch.zeros(1, 2, 2), "superior")
    with pytest.raises(ValueError, match=r"got \(2, 2\)"):
        metrics.side_attention(torch.zeros(2, 2))


def test_bootstrap_interval_has_the_width_of_theory():
    values = torch.randn(400, generator=generator())
    low, high = metrics.bootstrap_interval(values, resamples=4000, generator=generator(1))
    error = float(values.std() / 20)
    assert low == pytest.approx(float(values.mean()) - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(float(values.mean()) + 1.96 * error, abs=0.2 * error)
    narrow = metrics.bootstrap_interval(values, level=0.5, generator=generator(1))
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    stream = generator()
    covered = 0
    for _ in range(300):
        values = torch.rand(60, generator=stream)
        low, high = metrics.bootstrap_interval(values, level=0.9, resamples=200, generator=stream)
        covered += low <= 0.5 <= high
    assert 0.83 < covered / 300 < 0.95


def test_bootstrap_interval_repeats_and_handles_one_value_and_many():
    values = torch.arange(10.0)
    first = metrics.bootstrap_interval(values, generator=generator())
    assert first == metrics.bootstrap_interval(values, generator=generator())
    assert metrics.bootstrap_interval(torch.ones(1), generator=generator()) == (1, 1)
    many = metrics.bootstrap_means(torch.rand(50_000), 100, generator=generator())
    assert many.shape == (100,) and np.std(many.numpy()) < 0.01


@pytest.mark.parametrize("values", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([math.nan])])
def test_bootstrap_interval_refuses(values):
    with pytest.raises(ValueError, match="expected finite values"):
        metrics.bootstrap_interval(values, generator=generator())
    with pytest.raises(ValueError, match="level in"):
        metrics.bootstrap_interval(torch.ones(3), level=1.0, generator=generator())
